"""Is a method better than another on the same examples, or was it luck?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from nlu_ppo.statistics import PairedTest, holm, paired_test
from nlu_ppo.tables.answers import Answers, read_answers
from nlu_ppo.tables.collect import Cell, Run, Study
from nlu_ppo.tables.order import BASELINE, cell_order, method_order, task_order

# What the papers compare with: the model as it is, and supervised fine-tuning.
BASELINES = (BASELINE, "sft")

AnswersOf = Mapping[Path, Mapping[str | None, Answers]]
Place = tuple[Cell, str | None, str]  # the cell, the set of examples, the method that it is compared with


@dataclass(frozen=True)
class Comparison:
    """A cell against another method, on the examples that both answered.

    Attributes:
        cell: the cell compared.
        on: the set of examples, as `Reading.on` names it.
        baseline: the method that it is compared with.
        test: its difference is a share of correct answers, as a fraction; positive if `cell` is ahead.
        seeds: how many runs of the cell are pooled.
        corrected: the test's p-value, corrected for the number of tests of the whole study (Holm).
    """

    cell: Cell
    on: str | None
    baseline: str
    test: PairedTest
    seeds: int
    corrected: float = 1.0


def compare(study: Study, answers: AnswersOf | None = None) -> tuple[dict[Place, Comparison], list[str]]:
    """Tests every cell against zero-shot, and methods that come after SFT against SFT, of the same task and model.

    By `nlu_ppo.statistics.paired_test`. Each run is paired with the baseline's run of its seed; where that
    seed has none, with that of the lowest seed, and a note says so. Over seeds, the correctness of an example
    is averaged first, on both sides, so that the unit of the test stays the example: three seeds on a hundred
    examples are a hundred observations, not three hundred. The p-value thus speaks of new examples for these
    very runs, not of new seeds.

    Args:
        answers: of the runs, by folder and set; read where they aren't given.

    Returns:
        Comparisons by place, and notes on those that could not be made as described. Cells without a partner
        and runs without graded answers have no comparison.
    """
    if answers is None:
        answers = {run.folder: read_answers(run) for run in study.runs}
    cells: dict[Cell, list[Run]] = {}
    for run in study.runs:
        cells.setdefault(run.cell, []).append(run)
    comparisons: dict[Place, Comparison] = {}
    notes: list[str] = []
    for baseline in BASELINES:
        alone: list[Run] = []
        for cell in sorted(cells, key=cell_order):
            partners = _partners(cell, cells, baseline)
            if not partners:
                continue
            pairs = [(run, partners.get(run.seed) or partners[min(partners)]) for run in cells[cell]]
            alone += [run for run in cells[cell] if run.seed not in partners]
            for on in answers.get(cells[cell][0].folder, {}):
                test, differing = _pooled_test(
                    [tuple(answers[r.folder].get(on) for r in pair) for pair in pairs]
                )
                if differing:
                    notes.append(
                        f"{', '.join(cell[:3])}{f', {on}' if on else ''}: {differing} examples have another "
                        f"reference than in the {baseline} run and are left out of the test; the data differ."
                    )
                if test is not None:
                    comparisons[cell, on, baseline] = Comparison(cell, on, baseline, test, len(pairs))
        if alone:
            seeds = ", ".join(map(str, sorted({run.seed for run in alone})))
            tasks = ", ".join(sorted({run.cell.task for run in alone}, key=task_order))
            notes.append(
                f"{len(alone)} runs (seeds {seeds} of {tasks}) have no {baseline} run of the same seed and are "
                "tested against the one of the lowest seed."
            )
    corrected = holm([comparison.test.p_value for comparison in comparisons.values()])
    return {
        place: replace(comparison, corrected=p)
        for (place, comparison), p in zip(comparisons.items(), corrected, strict=True)
    }, notes


def _partners(cell: Cell, cells: dict[Cell, list[Run]], baseline: str) -> dict[int, Run]:
    """The baseline's runs on the cell's task and model, by seed.

    Of several such cells, the one that shares most settings with `cell`; then the first in order.
    """
    if method_order(cell.method) <= method_order(baseline):
        return {}
    fitting = [c for c in cells if (c.task, c.model, c.method) == (cell.task, cell.model, baseline)]
    if not fitting:
        return {}
    fitting.sort(key=lambda c: (-len(set(c.settings) & set(cell.settings)), cell_order(c)))
    return {run.seed: run for run in cells[fitting[0]]}


def _pooled_test(
    pairs: Sequence[tuple[Answers | None, ...]],
) -> tuple[PairedTest | None, int]:
    """The test over examples, correctness averaged over seeds; and how many ids had differing references."""
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    groups: dict[str, str | None] = {}
    differing: set[str] = set()
    for answers, baseline in pairs:
        if answers is None or baseline is None:
            continue
        known = {name: place for place, name in enumerate(baseline.ids)}
        for place, name in enumerate(answers.ids):
            there = known.get(name)
            if there is None:
                continue
            if answers.references[place] != baseline.references[there]:
                differing.add(name)
                continue
            ours.setdefault(name, []).append(float(answers.correct[place]))
            theirs.setdefault(name, []).append(float(baseline.correct[there]))
            groups[name] = answers.groups[place] if answers.groups else None
    names = sorted(ours.keys() - differing)
    if not names:
        return None, len(differing)
    grouped = any(groups[name] is not None for name in names)
    test = paired_test(
        [fmean(ours[name]) for name in names],
        [fmean(theirs[name]) for name in names],
        [groups[name] for name in names] if grouped else None,
    )
    return test, len(differing)
