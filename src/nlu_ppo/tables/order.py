"""The order in which tasks, models and methods stand in every table and plot."""

from __future__ import annotations

import re

from nlu_ppo.tables.collect import Cell

BASELINE = "zero_shot"

# As the benchmarks' own leaderboards list them.
_TASKS = (
    *("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax"),
    *("boolq", "cb", "copa", "multirc", "record", "record_yesno", "wic", "wsc", "axb", "axg"),
    *("squad", "glue", "superglue", "toy_sentiment", "toy_nli"),
)
# From no training to the most.
_METHODS = (BASELINE, "few_shot", "sft", "ppo", "grpo", "rloo")

SortKey = tuple[int, tuple[tuple[int, str], ...]]


def task_order(task: str) -> SortKey:
    """Sort key of a task: the benchmarks' order, unknown ones after them by name."""
    return _known_first(task, _TASKS)


def method_order(method: str) -> SortKey:
    """Sort key of a method: zero_shot, few_shot, sft, ppo, grpo, rloo, then the others by name."""
    return _known_first(method, _METHODS)


def cell_order(cell: Cell) -> tuple[SortKey, ...]:
    """Sort key of a cell: task, model, method, then reward, lora and settings."""
    settings = (text for pair in cell.settings for text in pair)
    rest = (_known_first(value or "", ()) for value in (cell.reward, cell.lora, *settings))
    return (task_order(cell.task), _known_first(cell.model, ()), method_order(cell.method), *rest)


def _known_first(name: str, known: tuple[str, ...]) -> SortKey:
    rank = known.index(name) if name in known else len(known)
    # Numbers within names sort as numbers: llama2_7b before llama2_13b.
    return rank, tuple((int(digits or 0), text) for digits, text in re.findall(r"(\d*)(\D*)", name))


def varying(cells: list[Cell]) -> tuple[str, ...]:
    """Of model, reward and lora those with more than one value; "not used" is no value of its own."""
    return tuple(
        field
        for field in ("model", "reward", "lora")
        if len({getattr(cell, field) for cell in cells} - {None}) > 1
    )


def method_label(cell: Cell, fields: tuple[str, ...]) -> str:
    """The method with what tells it from its siblings, as "ppo (graded, none)" or "ppo (clip_range=0.1)"."""
    told = [getattr(cell, field) for field in fields if field in ("reward", "lora") and getattr(cell, field)]
    told += [f"{key.rpartition('.')[2]}={value}" for key, value in cell.settings]
    return f"{cell.method} ({', '.join(told)})" if told else cell.method
