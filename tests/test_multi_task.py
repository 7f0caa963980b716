"""Several tasks in one model: how their examples are mixed, and how each is scored."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from composing import config_of, run_of
from hypothesis import given
from hypothesis import strategies as st

from nlu_ppo.errors import ConfigError
from nlu_ppo.evaluation import Evaluation
from nlu_ppo.identity import run_key
from nlu_ppo.methods.mixing import epoch, quotas, shares
from nlu_ppo.results import Outcome, summarize
from nlu_ppo.run import execute
from nlu_ppo.tasks import get_task
from nlu_ppo.tasks.record import Example

MIXINGS = ("proportional", "equal", "temperature")
SHORT = (
    "tracking=none", "task.limit.train=40", "task.limit.eval=12", "task.selection=4",
    "eval.bootstrap_samples=50",
)  # fmt: skip
FEW = ("method.max_steps=3", "method.select_every=2")


def examples(task: str, count: int) -> list[Example]:
    return [Example(f"train-{i}", {}, 0, task=task) for i in range(count)]


# -- mixing --------------------------------------------------------------------------------------------------


def test_shares_by_hand():
    sizes = {"a": 900, "b": 100}
    assert shares(sizes, "proportional", 2.0) == {"a": 0.9, "b": 0.1}
    assert shares(sizes, "equal", 2.0) == {"a": 0.5, "b": 0.5}
    assert shares(sizes, "temperature", 2.0) == {"a": 0.75, "b": 0.25}  # square roots: 30 to 10
    assert shares(sizes, "temperature", 1.0) == shares(sizes, "proportional", 1.0)


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    mixing=st.sampled_from(MIXINGS),
    temperature=st.floats(1, 10),
    seed=st.integers(0, 3),
)
def test_an_epoch_holds_what_the_quotas_say(sizes, mixing, temperature, seed):
    parts = [examples(f"t{i}", size) for i, size in enumerate(sizes)]
    wanted = quotas({p[0].task: len(p) for p in parts}, mixing, temperature)
    assert sum(wanted.values()) == sum(sizes)
    found = epoch(parts, mixing, temperature, seed, 0)
    assert Counter(e.task for e in found) == Counter({k: v for k, v in wanted.items() if v})
    for part in parts:  # nothing is repeated before everything was there
        counts = Counter(e.id for e in found if e.task == part[0].task)
        if len(counts) == len(part):
            assert max(counts.values()) - min(counts.values()) <= 1
        elif counts:
            assert max(counts.values()) == 1
    if mixing == "proportional":
        assert sorted((e.task, e.id) for e in found) == sorted((e.task, e.id) for p in parts for e in p)


def test_epochs_go_on_where_the_last_one_ended():
    parts = [examples("big", 90), examples("small", 10)]
    seen = [e.id for n in range(9) for e in epoch(parts, "equal", 2.0, 0, n) if e.task == "big"]
    assert Counter(Counter(seen).values()) == {5: 90}  # nine epochs of 50 are five passes over 90


def test_the_order_follows_from_the_seed():
    parts = [examples("a", 30), examples("b", 20)]
    assert epoch(parts, "equal", 2.0, 1, 0) == epoch(parts, "equal", 2.0, 1, 0)
    assert epoch(parts, "equal", 2.0, 1, 0) != epoch(parts, "equal", 2.0, 2, 0)
    assert epoch(parts, "equal", 2.0, 1, 0) != epoch(parts, "equal", 2.0, 1, 1)


# -- the score of several tasks ------------------------------------------------------------------------------


def outcome(task: str, score: float, split: str = "validation", **more: Any) -> Outcome:
    metrics = {"score": score, **dict.fromkeys(get_task(task).metrics, score)}
    found = Evaluation(metrics, 100 * score, (100 * score - 4, 100 * score + 4), 50.0, 1, 0, [{}] * 10)
    return Outcome(get_task(task), split, found, more.get("majority", 40.0))


def test_glue_is_averaged_as_the_leaderboard_does():
    values = {"cola": 0.6, "sst2": 0.9, "mrpc": 0.8, "stsb": 0.85, "qqp": 0.7, "qnli": 0.9, "rte": 0.65,
              "wnli": 0.5}  # fmt: skip
    mnli = [outcome("mnli", 0.84), outcome("mnli", 0.80, "validation_mismatched")]
    found = summarize([*(outcome(t, v) for t, v in values.items()), *mnli])
    # MNLI's two sets are one task: (5.9 + 0.82) / 9; in BERT's table two, and WNLI is none: (5.4 + 1.64) / 9
    assert found["score"] == pytest.approx(100 * 6.72 / 9)
    assert found["metrics"]["glue_average"] == pytest.approx(6.72 / 9)
    assert found["metrics"]["bert_paper_average"] == pytest.approx(7.04 / 9)
    assert found["metrics"]["mnli/accuracy"] == 0.84
    assert found["metrics"]["mnli/validation_mismatched/accuracy"] == 0.80
    # Ten independent intervals of half width 4; MNLI's two count half each.
    half = (8 * 4**2 + 2 * 2**2) ** 0.5 / 9
    assert found["ci95"] == pytest.approx([100 * 6.72 / 9 - half, 100 * 6.72 / 9 + half])
    assert (found["n"], found["unparsable"]) == (100, 10)


def test_a_part_of_a_benchmark_has_no_benchmark_average():
    found = summarize([outcome("cola", 0.5), outcome("rte", 0.7)])
    assert found["score"] == pytest.approx(60)
    assert "glue_average" not in found["metrics"]


def test_what_one_task_lacks_the_mean_lacks_too():
    found = summarize([outcome("cb", 0.5), outcome("record", 0.7, majority=None)])
    assert found["majority"] is None


# -- choosing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("task=rte", "task.members=[rte]"), "task=rte is a single one"),
        (("task=glue", "task.members=[rte,boolq]"), "boolq isn't in it"),
        (("task=glue", "task.members=[]"), "at least one"),
        (("task=glue", "task.members=[rte,rte]"), "each once"),
    ],
)
def test_members_must_be_members(tmp_path: Path, overrides: tuple[str, ...], said: str):
    with pytest.raises(ConfigError, match=said):
        run_of(tmp_path, *overrides)


def test_mixing_counts_only_where_several_tasks_are_learned():
    def key(*overrides: str) -> str:
        return run_key(config_of("task.source=raw", "task.data_dir=nowhere", *overrides))

    for changed in ("task.mixing=equal", "task.mixing_temperature=3"):
        assert key("task=rte", "method=sft") == key("task=rte", "method=sft", changed)
        assert key("task=glue", "method=zero_shot") == key("task=glue", "method=zero_shot", changed)
    assert key("task=glue", "method=sft") != key("task=glue", "method=sft", "task.mixing=equal")
    members = "task.members=[cola,sst2,mrpc,stsb,qqp,mnli,qnli,rte,wnli]"
    assert key("task=glue", "method=sft") == key("task=glue", "method=sft", members)  # all is all


# -- runs ----------------------------------------------------------------------------------------------------


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("method", ["zero_shot", "few_shot"])
def test_every_task_is_scored_as_on_its_own(tmp_path: Path, method: str):
    """Without training, a model that knows two tasks answers each as if there were no other."""
    short = (f"method={method}", *SHORT)
    both = execute(run_of(tmp_path / "both", "task=toys", *short))
    single = {
        task: execute(run_of(tmp_path / task, f"task={task}", *short))
        for task in ("toy_sentiment", "toy_nli")
    }
    for task, result in single.items():
        assert {k: both["metrics"][f"{task}/{k}"] for k in result["metrics"]} == result["metrics"]
    assert both["score"] == pytest.approx(sum(r["score"] for r in single.values()) / 2)
    assert both["likelihood_score"] == pytest.approx(sum(r["likelihood_score"] for r in single.values()) / 2)
    predictions = read(tmp_path / "both" / "predictions.jsonl")
    assert Counter(p["task"] for p in predictions) == {"toy_sentiment": 12, "toy_nli": 12}


@pytest.mark.parametrize("method", ["sft", "ppo"])
@pytest.mark.parametrize("mixing", MIXINGS)
def test_one_model_learns_both(tmp_path: Path, method: str, mixing: str):
    chosen = ("task=toys", f"method={method}", f"task.mixing={mixing}", *SHORT, *FEW)
    result = execute(run_of(tmp_path / "run", *chosen))
    assert result["task"] == "toys"
    assert {"toy_sentiment/accuracy", "toy_nli/accuracy"} <= result["metrics"].keys()
    logged = read(tmp_path / "run" / "metrics.jsonl")
    selected = [line for line in logged if "select/score" in line]
    assert [line["step"] for line in selected] == [0, 2, 3]
    for line in selected:
        mean = (line["select/toy_sentiment/score"] + line["select/toy_nli/score"]) / 2
        assert line["select/score"] == pytest.approx(mean)
    if method == "ppo":
        assert all(line["ppo/first_ratio_error"] < 1e-3 for line in logged if "ppo/loss" in line)
        assert any("train/toy_nli/accuracy" in line for line in logged)


def test_benchmark_files_of_every_kind_in_one_run(tmp_path: Path, shared: Path):
    """Classes, numbers and two evaluation sets, from the raw files, under one PPO run."""
    chosen = (
        "task=glue", "task.members=[cola,stsb,mnli]", "task.source=raw", f"task.data_dir={shared / 'data'}",
        "method=ppo", "task.mixing=equal", *SHORT, *FEW,
    )  # fmt: skip
    result = execute(run_of(tmp_path / "run", *chosen))
    assert result["task"] == "cola+stsb+mnli"
    names = {"cola/matthews", "stsb/pearson", "mnli/accuracy", "mnli/validation_mismatched/accuracy"}
    assert names <= result["metrics"].keys()
    assert result["n"] == 48
