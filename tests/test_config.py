"""Every choice and every cell composes without torch and without network; wrong values are named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from composing import NEEDED, ROOT, config_of, every_choice, tree_of
from hydra.errors import HydraException

from nlu_ppo.choices import STUDIES, default_choices, read_groups
from nlu_ppo.composition import check, register_schemas, to_config
from nlu_ppo.config import METHOD_SCHEMAS, Config, PPOConfig, walk
from nlu_ppo.errors import ConfigError
from nlu_ppo.mistakes import WANTED, all_fields, explain, wanted
from nlu_ppo.tasks.benchmarks import BENCHMARK_TASKS

STUDY_NAMES = sorted(file.stem for file in (ROOT / "sweeps").glob("*.yaml"))


def mistake(*overrides: str) -> str:
    """What is said about a wrong command line."""
    with pytest.raises((ConfigError, HydraException)) as caught:
        config_of(*overrides)
    message = explain(caught.value)
    assert message is not None
    return message


# -- what composes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", every_choice())
def test_every_choice_composes(choice):
    config = config_of(choice, *NEEDED.get(choice, []))
    group, _, name = choice.partition("=")
    named = {"model=local": "folder", "model=openai_compatible": "m"}  # said on the command line
    if group in ("task", "model", "lora"):
        assert getattr(config, group).name == named.get(choice, name)
    if group == "method":  # `ppo_text` and the like are variants of a method, under its name
        assert name in (config.method.name, f"{config.method.name}_{name.rpartition('_')[2]}")
        assert type(config.method) is METHOD_SCHEMAS[config.method.name]


@pytest.mark.parametrize("method", sorted(METHOD_SCHEMAS))
@pytest.mark.parametrize("task", ["rte", "stsb", "record", "squad"])
def test_every_method_composes_with_every_kind_of_task(method, task):
    config = config_of(f"method={method}", f"task={task}", "reward=graded", "lora=none")
    assert type(config.method) is METHOD_SCHEMAS[method]


@pytest.mark.parametrize("method", sorted(METHOD_SCHEMAS))
def test_three_keys_shorten_any_run(method):
    short = ["task.limit.train=8", "task.limit.eval=8", "method.max_steps=2"]
    assert config_of(f"method={method}", *short).method.max_steps == 2


def test_every_benchmark_task_and_every_method_has_a_choice():
    groups = {group: {choice.name for choice in choices} for group, choices in read_groups().items()}
    assert set(BENCHMARK_TASKS) <= groups["task"]
    assert set(METHOD_SCHEMAS) | {"ppo_text", "sft_code"} == groups["method"]
    assert set(STUDY_NAMES) == groups[STUDIES]


def test_the_default_is_the_embedded_run():
    config = config_of()
    assert (config.task.name, config.model.name, config.method.name) == ("toy_sentiment", "tiny", "ppo")
    assert default_choices()["task"] == "toy_sentiment"


def test_composing_everything_needs_neither_torch_nor_network():
    script = """
import socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("a socket was opened")

socket.socket = socket.create_connection = socket.getaddrinfo = refuse
from composing import compose_all
count = compose_all()
heavy = {"torch", "transformers", "peft", "trl", "datasets", "mlflow"} & set(sys.modules)
assert not heavy, heavy
print(count)
"""
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT / "tests", capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    assert int(told.stdout) >= len(every_choice())


def test_dataclasses_come_out_whatever_the_yaml_wrote():
    config = config_of("method=ppo", "reward.correct=2", "lora.targets=[q_proj]", "task.limit.train=5")
    assert isinstance(config, Config)
    assert isinstance(config.method, PPOConfig)
    assert isinstance(config.reward.correct, float)
    assert config.lora.targets == ["q_proj"]
    assert config.task.limit.train == 5


def test_the_learning_rate_follows_the_model():
    assert config_of("method=sft").method.learning_rate == pytest.approx(4e-3)
    assert config_of("method=sft", "model=llama2_7b").method.learning_rate == pytest.approx(9e-6)
    assert config_of("method=ppo", "method.learning_rate=1e-4").method.learning_rate == pytest.approx(1e-4)


# -- what doesn't --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("method.learning_rate=abc", "a number"),
        ("seed=1.5", "a whole number"),
        ("seed=null", "a whole number"),
        ("seed=-1", "at least 0"),
        ("method.kl_coef=-1", "at least 0"),
        ("method.gamma=1.01", "at most 1"),
        ("method.temperature=0", "at least 0.001"),
        ("lora.dropout=1", "at most 0.99"),
        ("lora.r=0", "at least 1"),
        ("lora.enabled=perhaps", "true or false"),
        ("lora.targets=q_proj", "a list"),
        ("eval.decoding=foo", "greedy, sample"),
        ("task.source=web", "hub, raw, generated"),
        ("task.limit.eval=0", "at least 1"),
        ("method.learning_rate=nan", "finite"),
        ("method.kl_target=inf", "finite"),
        ("reward.correct=nan", "finite"),
        ("model.layout=tree", "plain, chat"),
        ("method.batch_size=10", "method.minibatch_size=16"),
        ("task.source=raw", "task.data_dir=DIR"),
        ("model.learning_rate=null", "model.learning_rate"),
        ("model.path=some/folder", "say model=local model.path=some/folder"),
        ("task.record=3", "task.record"),
        ("eval.also=mr", "a list"),
        ("eval.source=web", "hub, raw"),
        ("eval.limit=0", "at least 1"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(override, says):
    message = mistake(override)
    assert override.partition("=")[0] in message
    assert says in message


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["method.max_stpes=3"], "Did you mean method.max_steps?"),
        (["max_steps=3"], "Did you mean method.max_steps?"),
        (["tsk=rte"], "Did you mean task?"),
        (["task.limit.trian=3"], "Did you mean task.limit.train?"),
        (["method=sft", "method.kl_coef=0.1"], "kl_coef belongs to method=ppo"),
        (["method=ppo", "method.k=3"], "k belongs to method=few_shot"),
        (["task=rtee"], "Did you mean task=rte?"),
        (["method=dpo"], "few_shot, grpo, ppo, ppo_text, reward_model, rloo, sft, sft_code, zero_shot"),
        (["sweeps=demo"], "+group=choice"),
        (["~seed"], "seed can't be left out"),
        (["task"], "group=choice or key=value"),
        (["seed=[1"], "seed=[1"),
        (["seed=1,2"], "-m"),
    ],
)
def test_a_wrong_name_is_told_with_what_there_is(overrides, says):
    assert says in mistake(*overrides)


def test_a_mandatory_value_is_asked_for():
    assert "model.path" in mistake("model=local")
    assert "model.name" not in mistake("model=local")  # it is made of the path


def test_programming_errors_are_not_taken_for_mistakes():
    assert explain(KeyError("x")) is None
    assert explain(ConfigError("seed=-1")) == "seed=-1"


def test_an_error_of_our_own_inside_a_resolver_is_no_mistake_of_the_user(monkeypatch):
    def broken(config):
        raise ZeroDivisionError

    monkeypatch.setattr("nlu_ppo.cli.run_key", broken)
    tree = tree_of("task=rte", hydra=True)
    with pytest.raises(Exception, match="ZeroDivisionError") as caught:
        _ = tree.hydra.run.dir
    assert explain(caught.value) is None


# -- the schema ----------------------------------------------------------------------------------------------


def test_every_key_has_help_and_a_type_in_words():
    for key, item, _ in all_fields():
        assert item.metadata["help"], key
        assert wanted(item).split(" or null")[0] in WANTED.values(), key


def test_defaults_lie_within_their_own_ranges():
    config = config_of()
    for name, schema in METHOD_SCHEMAS.items():
        method = schema()
        for _, item, value in walk(method):
            if value == "???":
                setattr(method, item.name, name if item.name == "name" else 1.0)
        config.method = method
        check(config)


def test_checks_look_below_the_groups():
    config = to_config(tree_of())
    config.task.limit.train = -3
    with pytest.raises(ConfigError, match=r"task\.limit\.train=-3"):
        check(config)


def test_conf_is_found_from_anywhere(monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    register_schemas()
    assert config_of("task=rte").task.name == "rte"
