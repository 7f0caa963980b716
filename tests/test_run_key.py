"""The key stands for all that changes a result, and for nothing else."""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from composing import ROOT, config_of

from nlu_ppo.config import METHOD_SCHEMAS, Config, walk
from nlu_ppo.identity import identity, reward_model_config, run_key
from nlu_ppo.run import build_run

METHODS = sorted(METHOD_SCHEMAS)
CHOSEN = ["task=rte", "model=qwen2_5_1_5b_instruct"]
UNUSED = {  # what a method doesn't use, beyond the groups below
    "zero_shot": ["task.limit.train=7", "task.selection=3", "method.max_steps=3"],
    "few_shot": ["method.max_steps=3"],
    "sft": [],
    "ppo": [],
    "grpo": [],
    "rloo": [],
    "reward_model": ["eval.decoding=sample", "eval.likelihood=false", "task.mixing=equal"],
}
# What no run's result depends on.
NEVER = [
    "tracking=none", "tracking.uri=http://host:5000", "tracking.experiment=other", "outputs=elsewhere",
    "study=other", "device=cpu", "overwrite=true", "eval.batch_size=3", "model.attention=eager",
    "model.name=renamed", "lora.name=renamed",
]  # fmt: skip
NEVER_IN_TRAINING = ["method.micro_batch_size=2", "method.checkpoint_every=7"]
REWARDS = ["reward=label_agreement_text", "reward=graded", "reward.correct=5"]
ADAPTERS = ["lora=none", "lora=all_linear", "lora.r=4", "lora.dropout=0.2"]


@functools.cache
def base(method: str, *more: str) -> Config:
    """Composed once for all tests: nothing may change it."""
    return config_of(*CHOSEN, f"method={method}", *more)


def key(method: str, *more: str) -> str:
    return run_key(base(method, *more))


# -- what counts ---------------------------------------------------------------------------------------------

# Keys that count only beside another one.
READING = [f"eval.perplexity={ROOT / 'LICENSE'}"]
ONLY_WITH = {
    "eval.temperature": ["eval.decoding=sample"],
    "eval.perplexity_window": READING,
    "eval.perplexity_stride": READING,
    "method.held_out": [f"method.pairs={ROOT / 'LICENSE'}"],
    "task.members": ["task=glue"],
    "task.mixing": ["task=glue"],
    "task.mixing_temperature": ["task=glue", "task.mixing=temperature"],
}
GROUPS = {  # which groups a method's result depends on
    "zero_shot": {"task", "model", "method", "eval"},
    "few_shot": {"task", "model", "method", "eval"},
    "sft": {"task", "model", "method", "eval", "lora"},
    "reward_model": {"task", "model", "method", "lora"},
    **{m: {"task", "model", "method", "eval", "lora", "reward"} for m in ("ppo", "grpo", "rloo")},
}


def counted_fields() -> list[tuple[str, str]]:
    """(method, key) for every schema field marked `key=True` that the method uses."""
    found = []
    for method in METHODS:
        for name, item, _ in walk(base(method)):
            group = name.partition(".")[0]
            skipped = method == "zero_shot" and name in ("task.limit.train", "task.selection")
            skipped |= method in ("zero_shot", "few_shot", "reward_model") and name.startswith("task.mixing")
            used = group in GROUPS[method] or name == "seed"
            if item.metadata["key"] and used and not skipped:
                found.append((method, name))
    return found


def changed(config: Config, name: str) -> Config:
    """The config with another value at `name`; of the right type, whatever its range."""
    config = copy.deepcopy(config)
    *path, leaf = name.split(".")
    node: Any = config
    for step in path:
        node = getattr(node, step)
    item = next(field for key, field, _ in walk(config) if key == name)
    value = getattr(node, leaf)
    if name == "task.name":
        new: Any = "cb"
    elif name == "reward.name":
        new = "graded"
    elif name == "task.members":
        new = ["rte", "cola"]
    elif name == "task.source":
        new = "raw"
    elif item.metadata["choices"]:
        new = next(choice for choice in item.metadata["choices"] if choice != value)
    elif isinstance(value, bool):
        new = not value
    elif isinstance(value, (int, float)):
        new = value + 1
    elif value is None:
        new = {"int": 1000, "float": 0.5, "str": "other", "list[str]": ["q_proj"]}[
            str(item.type).split(" |")[0]
        ]
    else:
        new = f"{value}x"
    setattr(node, leaf, new)
    if name == "task.source":
        config.task.data_dir = "no/such/folder"
    return config


@pytest.mark.parametrize(("method", "name"), counted_fields())
def test_every_setting_that_a_method_uses_changes_its_key(method, name):
    config = base(method, *ONLY_WITH.get(name, []))
    assert run_key(changed(config, name)) != run_key(config)


def test_the_walk_sees_the_settings():
    fields = counted_fields()
    assert ("ppo", "method.kl_coef") in fields
    assert ("ppo", "reward.unparsable") in fields
    assert ("sft", "lora.rslora") in fields
    assert ("few_shot", "method.k") in fields
    assert ("zero_shot", "seed") in fields


def test_methods_differ():
    assert len({key(method) for method in METHODS}) == len(METHODS)


def test_demonstrations_come_from_what_the_selection_slice_leaves():
    assert key("few_shot") != key("few_shot", "task.selection=3")


# -- what doesn't --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_what_no_result_depends_on_changes_no_key(method):
    for override in NEVER:
        assert key(method) == key(method, override), override


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_does_not_use_does_not_change_its_key(method):
    unused = list(UNUSED[method])
    unused += [] if "reward" in GROUPS[method] else REWARDS
    unused += ADAPTERS if method in ("zero_shot", "few_shot") else NEVER_IN_TRAINING
    for override in unused:
        assert key(method) == key(method, override), override


def test_settings_without_effect_stay_out():
    assert key("ppo") == key("ppo", "eval.temperature=0.5")
    assert key("ppo", "lora=none") == key("ppo", "lora=none", "lora.r=4")
    fixed = ["method.kl_controller=fixed"]
    assert key("ppo", *fixed) == key("ppo", *fixed, "method.kl_target=1", "method.kl_horizon=5")
    assert key("ppo", "method.share_prefix=false", "method.micro_batch_tokens=512") == key("ppo")


def test_a_rate_counts_where_a_method_takes_it():
    assert key("sft") != key("sft", "model.learning_rate.sft=1e-3")
    assert key("sft") == key("sft", "model.learning_rate.ppo=1e-3")
    assert key("zero_shot") == key("zero_shot", "model.learning_rate.sft=1e-3")
    assert key("sft", "method.learning_rate=1e-3") == key("sft", "model.learning_rate.sft=1e-3")


def test_modules_count_where_an_adapter_takes_them():
    assert base("sft").lora.targets == ["q_proj", "v_proj"]
    assert key("sft") != key("sft", "model.lora_targets=[k_proj]") == key("sft", "lora.targets=[k_proj]")
    assert key("sft", "lora=all_linear") == key("sft", "lora=all_linear", "model.lora_targets=[k_proj]")
    assert key("zero_shot") == key("zero_shot", "model.lora_targets=[k_proj]")


def test_keys_from_before_models_named_their_modules_are_the_same():
    """Of the embedded model, whose modules PEFT chooses; noted down before there was `model.lora_targets`."""
    keys = {"ppo": "fe1ce6da", "sft": "48d41cbf"}
    for method, known in keys.items():
        assert identity(config_of(f"method={method}"))["lora"]["targets"] is None
        assert run_key(config_of(f"method={method}")).startswith(known)


def test_a_reward_model_of_another_architecture_has_its_own_modules():
    chosen = [
        "task=rte",
        "model=qwen2_5_1_5b_instruct",
        "reward=label_sensitive",
        "+model@reward.model=bloom_3b",
    ]
    found = reward_model_config(config_of(*chosen), "label_model")
    assert (found.model.name, found.lora.targets) == ("bloom_3b", ["query_key_value"])
    said = reward_model_config(config_of(*chosen, "lora.targets=[k_proj]"), "label_model")
    assert said.lora.targets == ["k_proj"]


def test_data_count_by_content_not_by_place(tmp_path: Path):
    places = [tmp_path / "a", tmp_path / "moved" / "b"]
    for place in places:
        (place / "superglue/RTE").mkdir(parents=True)
        for split in ("train", "val"):
            (place / f"superglue/RTE/{split}.jsonl").write_text(f'{{"idx": 0, "split": "{split}"}}\n')
    raw = [(f"task.source=raw task.data_dir={place}").split() for place in places]
    assert identity(base("sft", *raw[0]))["data"]["rte"].startswith("sha256:")
    assert key("sft", *raw[0]) == key("sft", *raw[1])
    before = key("zero_shot", *raw[1])
    (places[1] / "superglue/RTE/train.jsonl").write_text('{"idx": 1}\n')
    assert key("sft", *raw[0]) != key("sft", *raw[1])
    changed = key("zero_shot", *raw[1])
    assert changed != before  # its majority row is that of the training labels
    (places[1] / "superglue/RTE/val.jsonl").write_text('{"idx": 1}\n')
    assert key("zero_shot", *raw[1]) not in (before, changed)


def test_models_count_by_content_not_by_place(tmp_path: Path):
    first, second = tmp_path / "model", tmp_path / "copy"
    first.mkdir()
    (first / "config.json").write_text("{}")
    (first / "model.safetensors").write_bytes(b"weights")
    shutil.copytree(first, second)

    def at(place: Path) -> str:
        return run_key(config_of("task=rte", "method=sft", "model=local", f"model.path={place}"))

    assert at(first) == at(second)
    (second / "model.safetensors").write_bytes(b"further")
    assert at(first) != at(second)


def test_adapters_count_by_content_not_by_place(tmp_path: Path):
    first, second = tmp_path / "adapter", tmp_path / "copy"
    first.mkdir()
    (first / "adapter_config.json").write_text("{}")
    (first / "adapter_model.safetensors").write_bytes(b"weights")
    shutil.copytree(first, second)
    assert key("sft", f"model.adapter={first}") == key("sft", f"model.adapter={second}") != key("sft")
    (second / "adapter_model.safetensors").write_bytes(b"further")
    assert key("sft", f"model.adapter={first}") != key("sft", f"model.adapter={second}")


def test_a_reward_of_ones_own_counts_by_content_and_name(tmp_path: Path):
    first, second = tmp_path / "mine.py", tmp_path / "moved.py"
    for file in (first, second):
        file.write_text("def f(): ...\ndef g(): ...\n")
    assert key("ppo", f"reward.name={first}:f") == key("ppo", f"reward.name={second}:f")
    assert key("ppo", f"reward.name={first}:f") != key("ppo", f"reward.name={first}:g")
    second.write_text("def f(): return 1\n")
    assert key("ppo", f"reward.name={first}:f") != key("ppo", f"reward.name={second}:f")


# -- as a name -----------------------------------------------------------------------------------------------


def test_the_key_is_the_same_in_every_process():
    script = """
import json
from composing import config_of
from nlu_ppo.identity import run_key
choices = ["task=rte", "model=qwen2_5_1_5b_instruct"]
methods = ("zero_shot", "few_shot", "sft", "ppo")
print(json.dumps([run_key(config_of(*choices, f"method={method}")) for method in methods]))
"""
    told = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", script],
                cwd=ROOT / "tests",
                env={**os.environ, "PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for seed in ("1", "2")
    ]
    here = [key(method) for method in ("zero_shot", "few_shot", "sft", "ppo")]
    assert told == [here, here]


def test_the_identity_is_json():
    for method in METHODS:
        json.dumps(identity(base(method)))


def test_names_leave_out_what_a_method_does_not_use(tmp_path: Path):
    names = {method: build_run(base(method), tmp_path).names for method in METHODS}
    assert names["zero_shot"]["reward"] is None
    assert names["zero_shot"]["lora"] is None
    assert names["sft"]["lora"] == "paper"
    assert names["sft"]["reward"] is None
    assert names["ppo"]["reward"] == "label_agreement"
