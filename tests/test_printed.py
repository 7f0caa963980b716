"""The papers' numbers as data: held to sums that were worked out apart from the files, and strictly read."""

from __future__ import annotations

from statistics import fmean

import pytest

from nlu_ppo.errors import ConfigError
from nlu_ppo.tables import printed
from nlu_ppo.tasks.averages import bert_paper_average, superglue_average
from nlu_ppo.tasks.registry import get_task

TABLES = [f"a_table_{n}" for n in (1, 10, 11, 12, 2, 3, 4, 5, 6, 7, 9)]
LLAMA = "llama2_7b_chat"


def row_of(name, method, row=None, model=LLAMA):
    (found,) = [r for r in printed.load(name).rows if (r.method, r.row, r.model) == (method, row, model)]
    return found


def values(name, method, row=None, model=LLAMA):
    return {(c.task, c.metric): c.value for c in row_of(name, method, row, model).cells}


def test_every_table_is_there():
    assert printed.names() == [*TABLES, "b_rllr"]


# The averages that follow from the printed rows, summed by hand apart from the files.
@pytest.mark.parametrize(
    ("method", "row", "model", "mean"),
    [
        ("fine_tuned", "bert_base", "bert_base", 79.60),
        ("fine_tuned", "bert_large", "bert_large", 82.08),
        ("zero_shot", None, LLAMA, 46.13),
        ("few_shot", None, LLAMA, 58.68),
        ("ppo", None, LLAMA, 84.81),
        ("sft", None, LLAMA, 78.48),
        ("ppo", "ppo, multi-task", LLAMA, 82.79),
        ("sft", "sft, multi-task", LLAMA, 76.22),
    ],
)
def test_table_1_gives_its_averages_by_the_rule_of_berts_paper(method, row, model, mean):
    found = values("a_table_1", method, row, model)
    by_task = {task: value for (task, metric), value in found.items() if "mismatched" not in metric}
    by_task["mnli"] = [by_task["mnli"], found["mnli", "test_mismatched/accuracy"]]
    assert bert_paper_average(by_task) == pytest.approx(mean, abs=0.0051)


@pytest.mark.parametrize(
    ("method", "row", "mean"),
    [
        ("fine_tuned", "bert_large", 68.96),
        ("fine_tuned", "bert_large_plus", 71.48),
        ("zero_shot", None, 49.52),
        ("few_shot", None, 58.49),  # 54.9 is printed
        ("ppo", None, 78.36),
    ],
)
def test_table_10_gives_its_averages_by_the_leaderboards_rule(method, row, mean):
    by_task: dict[str, list[float]] = {}
    for (task, _), value in values("a_table_10", method, row, row or LLAMA).items():
        by_task.setdefault(task, []).append(value)
    assert superglue_average(by_task) == pytest.approx(mean, abs=0.0051)


@pytest.mark.parametrize(
    ("name", "method", "model", "count", "total"),
    [
        ("a_table_9", "ppo", LLAMA, 10, 851.26),
        ("a_table_9", "sft", LLAMA, 10, 823.37),
        ("a_table_12", "ppo", "llama2_7b", 10, 825.08),
        ("a_table_3", "sft", LLAMA, 5, 384.3),
        ("a_table_3", "ppo", LLAMA, 5, 423.2),
        ("a_table_3", "grpo", LLAMA, 5, 424.7),
        ("a_table_4", "ppo", LLAMA, 6, 427.1),
        ("a_table_4", "ppo", "llama2_13b_chat", 6, 428.7),
        ("a_table_2", "ppo", "qwen2_5_7b_instruct", 2, 189.2),
        ("a_table_2", "zero_shot", "mpt_7b_chat", 2, 77.1),
        ("a_table_11", "ppo", LLAMA, 2, 147.56),
    ],
)
def test_rows_sum_to_what_the_page_sums_to(name, method, model, count, total):
    found = values(name, method, model=model)
    assert len(found) == count
    assert sum(found.values()) == pytest.approx(total, abs=1e-9)


def test_the_gap_without_wnli_is_what_it_was_worked_out_to_be():
    without = {m: [v for (t, _), v in values("a_table_9", m).items() if t != "wnli"] for m in ("ppo", "sft")}
    assert fmean(without["ppo"]) == pytest.approx(86.29, abs=0.0051)
    assert fmean(without["sft"]) == pytest.approx(84.13, abs=0.0051)


def test_intervals_splits_and_units_are_read():
    (cola,) = [c for c in row_of("a_table_9", "ppo").cells if c.task == "cola"]
    assert (cola.value, cola.ci95, cola.split) == (64.54, (59.24, 70.08), "validation")
    assert {cell.split for cell in printed.load("a_table_1").cells} == {"test"}
    assert {cell.unit for cell in printed.load("a_table_6").cells} == {"perplexity"}
    assert row_of("a_table_3", "grpo").cost == {"seconds_per_step": 5.155}
    assert row_of("a_table_10", "few_shot").average == 54.9
    assert "2410.11020" in printed.load("a_table_9").source
    assert "table 9" in printed.load("a_table_9").source


def test_of_paper_b_only_two_differences_are_known():
    rllr = printed.load("b_rllr")
    assert rllr.cells == ()
    assert [(d.method, d.minus, d.value) for d in rllr.differences] == [
        ("rllr", "sft", 1.54),
        ("rllr", "rlhf", 0.69),
    ]


@pytest.mark.parametrize("name", TABLES)
def test_cells_name_tasks_and_metrics_as_runs_do(name):
    for cell in printed.load(name).cells:
        task = get_task(cell.task)
        place, _, metric = cell.metric.rpartition("/")
        if cell.unit != "percent":  # a perplexity, or what another model judged
            assert cell.metric in ("perplexity/wikitext", "gpt_4o_analysis")
        elif place in ("validation_mismatched", "test_mismatched"):
            assert task.name == "mnli"
            assert metric in task.metrics
        elif place:  # another set, asked of a model trained on the task
            assert get_task(place).train_on == task.name
            assert metric in get_task(place).metrics
        else:
            assert metric in task.metrics


# -- files that are wrong ------------------------------------------------------------------------------------

GOOD = """
paper: A
arxiv: "1"
published: here
table: "1"
title: t
model: m
columns:
  a: {task: cola, metric: matthews}
  b: {task: sst2, metric: accuracy}
average_over: [a, b]
rows:
  - {method: ppo, values: {a: 10, b: 20}, recomputed: 15}
"""


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("title: t\n", "", "no title"),
        ("title: t", "titel: t", "unknown key titel"),
        ("a: 10,", "a: x,", "rows[0].values.a"),
        ("a: 10,", "c: 10,", "'c' is no column"),
        ("a: 10,", "a: [10, 11, 12],", "outside its interval"),
        ("a: 10,", "a: [10, 11],", "neither a number"),
        ("a: 10,", "a: 1000,", "no percentage"),
        ("a: 10,", "", "no mean without a"),
        ("recomputed: 15", "recomputed: 16", "15.000"),
        ("metric: accuracy", "metric: accuracy, split: dev", "columns.b.split"),
        ("metric: accuracy", "metric: accuracy, unit: euro", "columns.b.unit"),
        ("model: m\n", "", "rows[0].model"),
        ("title: t", "title: t\ntitle: u", "title"),
        ("a: 10,", "a: null,", "no number"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path, old, new, says):
    assert old in GOOD
    (tmp_path / "x.yaml").write_text(GOOD, encoding="utf-8")
    assert len(printed.load("x", tmp_path).cells) == 2
    (tmp_path / "x.yaml").write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        printed.load("x", tmp_path)
    assert "x.yaml" in str(caught.value)
    assert says in str(caught.value)


def test_an_unknown_table_is_told_with_those_there_are():
    with pytest.raises(ConfigError, match="a_table_9"):
        printed.load("a_table_8")
