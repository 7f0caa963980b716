"""Confusion matrices of a study: which gold answer was answered how, per task and method."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nlu_ppo.tables.answers import known_task
from nlu_ppo.tables.collect import Run, Study
from nlu_ppo.tables.order import method_label
from nlu_ppo.tables.sections import Table
from nlu_ppo.tables.summarize import MAJORITY, varying_fields
from nlu_ppo.tasks import Kind

UNPARSABLE = "unparsable"
_MOST = 12  # classes; beyond, answers are names or texts, and a matrix of them shows nothing

Counts = Counter[tuple[Any, Any]]


@dataclass(frozen=True)
class Matrix:
    """One method's answers, summed over its seeds.

    Attributes:
        counts: shape (gold answers, legal answers + 1); the last column counts unparsable ones.
    """

    label: str
    counts: tuple[tuple[int, ...], ...]

    def share(self, row: int, column: int) -> float | None:
        """Of the examples with that gold answer, 0 to 1; `None` if there are none."""
        total = sum(self.counts[row])
        return self.counts[row][column] / total if total else None


@dataclass(frozen=True)
class Matrices:
    """All methods on one set of examples.

    Attributes:
        classes: answers, as rows and columns of every matrix.
        rounded: whether answers are numbers, which were rounded to whole ones.
    """

    title: str
    classes: tuple[str, ...]
    rounded: bool
    matrices: tuple[Matrix, ...]


def confusion_matrices(study: Study, table: Table) -> tuple[list[Matrices], list[str]]:
    """A group for each set of examples with few answers to choose from, in the table's order.

    Also returns the names of the sets that have none: their answers are texts, or there are no predictions.
    """
    runs: dict[Any, list[Run]] = {}
    for run in study.runs:
        runs.setdefault(run.cell, []).append(run)
    fields = varying_fields(table.rows)
    found: dict[tuple[str, str, str | None], list[tuple[str, Counts]]] = {}
    names: dict[tuple[str, str, str | None], str] = {}
    for row in table.rows:
        if row.cell.method == MAJORITY or not row.seeds:
            continue
        counts: Counts = Counter()
        for run in runs.get(row.cell, []):
            answers = table.answers.get(run.folder, {}).get(row.on)
            counts.update(answers.confusion if answers else {})
        place = row.cell.task, row.cell.model, row.on
        reading = next(r for r in runs[row.cell][0].readings if r.on == row.on) if row.on else None
        names[place] = reading.task if reading else row.cell.task
        found.setdefault(place, []).append((method_label(row.cell, fields), counts))
    groups, without = [], []
    for place, methods in found.items():
        task, model, on = place
        title = ", ".join([task, *([model] if "model" in fields else []), *([on] if on else [])])
        group = _group(title, names[place], methods)
        groups.append(group) if group else without.append(title)
    return groups, without


def _group(title: str, task: str, methods: Sequence[tuple[str, Counts]]) -> Matrices | None:
    seen = {gold for _, counts in methods for gold, _ in counts}
    record = known_task(task)
    rounded = any(isinstance(gold, float) and not gold.is_integer() for gold in seen)
    if rounded or (record is not None and record.kind is Kind.REGRESS):
        methods = [(label, _rounded(counts)) for label, counts in methods]
        rounded = True
    classes: list[Any] = sorted({g for _, c in methods for g, _ in c} | _answers(methods), key=_by_type)
    names = [str(name) for name in classes]
    if record is not None and record.kind is Kind.CLASSIFY and record.judged_as is None:
        classes, names = list(range(len(record.verbalizers))), list(record.verbalizers)
    if not seen or len(classes) > _MOST or len(classes) < 2:
        return None
    matrices = tuple(
        Matrix(label, tuple(tuple(counts[gold, answer] for answer in (*classes, None)) for gold in classes))
        for label, counts in methods
    )
    return Matrices(title, tuple(names), rounded, matrices)


def _answers(methods: Iterable[tuple[str, Counts]]) -> set[Any]:
    return {answer for _, counts in methods for _, answer in counts if answer is not None}


def _rounded(counts: Counts) -> Counts:
    found: Counts = Counter()
    for (gold, answer), count in counts.items():
        found[_whole(gold), None if answer is None else _whole(answer)] += count
    return found


def _whole(number: Any) -> int:
    return math.floor(float(number) + 0.5)


def _by_type(answer: Any) -> tuple[str, Any]:
    return type(answer).__name__, answer
