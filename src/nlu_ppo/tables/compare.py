"""Is a method better than zero-shot on the same examples, or was it luck?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nlu_ppo.statistics import PairedTest, mean_std, paired_test
from nlu_ppo.tables.collect import Cell, Run, Study, read_jsonl
from nlu_ppo.tables.order import BASELINE, cell_order, task_order


@dataclass(frozen=True)
class Comparison:
    """A cell against zero-shot, on the examples that both answered.

    Attributes:
        cell: the cell compared.
        test: its difference is a share of correct answers, as a fraction; positive if `cell` is ahead.
        seeds: how many runs of the cell are pooled.
    """

    cell: Cell
    test: PairedTest
    seeds: int


@dataclass(frozen=True)
class _Answer:
    correct: float
    group: str | None
    reference: str


def compare(study: Study) -> tuple[dict[Cell, Comparison], list[str]]:
    """Tests every cell against zero-shot of the same task and model, by `nlu_ppo.statistics.paired_test`.

    Each run is paired with the zero-shot run of its seed; where that seed has none, with that of the lowest
    seed, and a note says so. Over seeds, the correctness of an example is averaged first, on both sides, so
    that the unit of the test stays the example: three seeds on a hundred examples are a hundred observations,
    not three hundred. The p-value thus speaks of new examples for these very runs, not of new seeds.

    Returns:
        Comparisons by cell, and notes on those that could not be made as described. Cells without a zero-shot
        partner, and tasks without right and wrong (regression), have no comparison.
    """
    cells: dict[Cell, list[Run]] = {}
    for run in study.runs:
        cells.setdefault(run.cell, []).append(run)
    comparisons: dict[Cell, Comparison] = {}
    notes: list[str] = []
    alone: list[Run] = []
    baselines: dict[Run, dict[str, _Answer]] = {}
    for cell in sorted(cells, key=cell_order):
        partners = _partners(cell, cells)
        if not partners:
            continue
        pairs = []
        for run in cells[cell]:
            partner = partners.get(run.seed) or partners[min(partners)]
            if partner not in baselines:
                baselines[partner] = _answers(partner)
            pairs.append((_answers(run), baselines[partner]))
        alone += [run for run in cells[cell] if run.seed not in partners]
        test, differing = _pooled_test(pairs)
        if differing:
            notes.append(
                f"{cell.task}, {cell.model}, {cell.method}: {differing} examples have another reference than "
                f"in the {BASELINE} run and are left out of the test; the data differ."
            )
        if test is not None:
            comparisons[cell] = Comparison(cell, test, len(pairs))
    if alone:
        seeds = ", ".join(map(str, sorted({run.seed for run in alone})))
        tasks = ", ".join(sorted({run.cell.task for run in alone}, key=task_order))
        notes.append(
            f"{len(alone)} runs (seeds {seeds} of {tasks}) have no {BASELINE} run of the same seed and are "
            "tested against the one of the lowest seed."
        )
    return comparisons, notes


def _partners(cell: Cell, cells: dict[Cell, list[Run]]) -> dict[int, Run]:
    """Zero-shot runs of the cell's task and model, by seed; of several such cells, the first in order."""
    if cell.method == BASELINE:
        return {}
    fitting = [c for c in cells if (c.task, c.model, c.method) == (cell.task, cell.model, BASELINE)]
    return {run.seed: run for run in cells[min(fitting, key=cell_order)]} if fitting else {}


def _answers(run: Run) -> dict[str, _Answer]:
    """Graded answers by example id; examples without a grade (regression) are left out."""
    answers = {}
    for row in read_jsonl(run.folder / "predictions.jsonl"):
        if row.get("also"):  # of a set beyond the run's own, whose ids may be the same
            continue
        correct = row.get("correct")
        if "id" in row and isinstance(correct, (bool, int, float)):
            group = row.get("group")
            # tasks of a group number their examples alike
            answers[f"{row.get('task', '')}/{row['id']}"] = _Answer(
                float(correct), None if group is None else _canonical(group), _canonical(row.get("reference"))
            )
    return answers


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _pooled_test(
    pairs: Sequence[tuple[dict[str, _Answer], dict[str, _Answer]]],
) -> tuple[PairedTest | None, int]:
    """The test over examples, correctness averaged over seeds; and how many ids had differing references."""
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    groups: dict[str, str | None] = {}
    differing: set[str] = set()
    for answers, baseline in pairs:
        for key in answers.keys() & baseline.keys():
            if answers[key].reference != baseline[key].reference:
                differing.add(key)
                continue
            ours.setdefault(key, []).append(answers[key].correct)
            theirs.setdefault(key, []).append(baseline[key].correct)
            groups[key] = answers[key].group
    keys = sorted(ours.keys() - differing)
    if not keys:
        return None, len(differing)
    grouped = any(groups[key] is not None for key in keys)
    test = paired_test(
        [mean_std(ours[key])[0] for key in keys],
        [mean_std(theirs[key])[0] for key in keys],
        [groups[key] for key in keys] if grouped else None,
    )
    return test, len(differing)
