"""Averages over tasks, each by its own rule. Values are per cent or fractions, as long as all are the same.

A row's value is a number (the task's mean, or its one metric), a list of numbers in the leaderboard's metric
order, or a mapping from metric name to number as `score` gives it. MNLI has two values, matched and
mismatched: a list of the two, or a second row `mnli_mismatched`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Value = float | Sequence[float] | Mapping[str, float] | None

GLUE_TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
BERT_PAPER_TASKS = ("mnli", "qqp", "qnli", "sst2", "cola", "stsb", "mrpc", "rte")
SUPERGLUE_TASKS = ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc")

# The column that stands for the task in BERT's table: name, place in the leaderboard's order.
_BERT_COLUMN = {"qqp": ("f1", 0), "mrpc": ("f1", 0), "stsb": ("spearman", 1)}


def glue_average(rows: Mapping[str, Value]) -> float:
    """The GLUE leaderboard's: mean over nine task means; MNLI is one task, WNLI counts, AX doesn't.

    Raises:
        ValueError: names the tasks that are missing.
    """
    _refuse_missing("glue_average", rows, GLUE_TASKS)
    return _mean([_mean(_mnli(rows)) if task == "mnli" else _task_mean(rows[task]) for task in GLUE_TASKS])


def bert_paper_average(rows: Mapping[str, Value]) -> float:
    """Table 1 of Devlin et al. (2019): mean of nine columns, MNLI's two apart, without WNLI and AX.

    QQP and MRPC count with F1, STS-B with Spearman's correlation.

    Raises:
        ValueError: names the tasks that are missing.
    """
    _refuse_missing("bert_paper_average", rows, BERT_PAPER_TASKS)
    mnli = _mnli(rows)
    if len(mnli) != 2:
        raise ValueError("bert_paper_average: mnli needs two values, matched and mismatched")
    return _mean(mnli + [_column(task, rows[task]) for task in BERT_PAPER_TASKS if task != "mnli"])


def superglue_average(rows: Mapping[str, Value]) -> float:
    """The SuperGLUE leaderboard's: mean over eight task means; AX-b and AX-g don't count.

    Raises:
        ValueError: names the tasks that are missing.
    """
    _refuse_missing("superglue_average", rows, SUPERGLUE_TASKS)
    return _mean([_task_mean(rows[task]) for task in SUPERGLUE_TASKS])


def _refuse_missing(name: str, rows: Mapping[str, Value], tasks: Sequence[str]) -> None:
    missing = [task for task in tasks if _is_missing(rows.get(task))]
    # The scores of one MNLI set are half of the task.
    if isinstance(rows.get("mnli"), Mapping) and _is_missing(rows.get("mnli_mismatched")):
        missing.append("mnli_mismatched")
    if missing:
        raise ValueError(f"{name}: no average without all of its tasks; missing: {', '.join(missing)}")


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))


def _task_mean(value: Any) -> float:
    if isinstance(value, Mapping):
        return float(value["score"]) if "score" in value else _mean(list(value.values()))
    if isinstance(value, Sequence):
        return _mean(value)
    return float(value)


def _mnli(rows: Mapping[str, Any]) -> list[float]:
    value, second = rows["mnli"], rows.get("mnli_mismatched")
    if isinstance(value, Sequence):
        return [float(v) for v in value]
    return [_task_mean(v) for v in (value, second) if v is not None]


def _column(task: str, value: Any) -> float:
    if task not in _BERT_COLUMN:
        return _task_mean(value)
    name, place = _BERT_COLUMN[task]
    if isinstance(value, Mapping):
        return float(value[name])
    return float(value[place]) if isinstance(value, Sequence) else float(value)
