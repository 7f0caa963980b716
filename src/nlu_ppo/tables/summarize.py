"""One row per cell: the mean over its seeds, and how many seeds that is a mean of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nlu_ppo.statistics import mean_std
from nlu_ppo.tables.collect import Cell, Problem, Run, Study
from nlu_ppo.tables.order import cell_order, task_order, varying

MAJORITY = "majority"


@dataclass(frozen=True)
class Row:
    """A line of the table; what is missing is `None`.

    Attributes:
        score: mean over seeds, 0 to 100; so are `majority` and `likelihood_score`.
        deviation: sample deviation of the score over seeds; `None` with fewer than two.
        ci95: ends of the 95% interval over examples, averaged over seeds. All seeds answer the same examples,
            so the interval of their mean is at most as wide as this one; what the seeds themselves add is
            `deviation`.
        seeds: finished runs.
        expected: runs there should be.
        n: evaluated examples of a run (the fewest, where runs differ).
        unparsable: percent of examples without a legal answer.
        seconds: of fitting and evaluating, mean over seeds; so is `samples_per_second`.
    """

    cell: Cell
    score: float | None = None
    deviation: float | None = None
    ci95: tuple[float, float] | None = None
    seeds: int = 0
    expected: int = 0
    n: int | None = None
    unparsable: float | None = None
    likelihood_score: float | None = None
    majority: float | None = None
    seconds: float | None = None
    samples_per_second: float | None = None


def summarize(study: Study, expect_seeds: int | None = None) -> tuple[list[Row], list[str]]:
    """Rows of all cells in the table's order, each task led by its majority baseline, and notes on them.

    Args:
        study: what `collect` read.
        expect_seeds: seeds every cell should have. Then a method that ran on one task of a model is expected
            on all tasks of that model, and its absence is a row. Without it, a cell expects the seeds that
            have a run folder, finished or not.
    """
    runs: dict[Cell, list[Run]] = {}
    for run in study.runs:
        runs.setdefault(run.cell, []).append(run)
    seen = {cell: {run.seed for run in group} for cell, group in runs.items()}
    _add_problems(seen, study.problems)
    if expect_seeds is not None:
        _complete_grid(seen)
    rows = []
    for cell in sorted(seen, key=cell_order):
        group = runs.get(cell, [])
        expected = len(seen[cell]) if expect_seeds is None else max(expect_seeds, len(group))
        rows.append(_row(cell, group, expected))
    notes = _notes_on_sizes(study.runs)
    tasks = sorted({cell.task for cell in seen}, key=task_order)
    leads = {task: _majority_row(task, study.runs) for task in tasks}
    return [row for task in tasks for row in (leads[task], *(r for r in rows if r.cell.task == task))], notes


def varying_fields(rows: Iterable[Row]) -> tuple[str, ...]:
    """Of model, reward and lora those that tell rows apart."""
    return varying([row.cell for row in rows if row.cell.method != MAJORITY])


def _row(cell: Cell, runs: list[Run], expected: int) -> Row:
    if not runs:
        return Row(cell, expected=expected)
    score, deviation = mean_std([run.score for run in runs])
    ends = [run.ci95 for run in runs if run.ci95 is not None]
    return Row(
        cell,
        score=score,
        deviation=deviation,
        # An interval of some seeds beside the mean of all would look like that of the mean.
        ci95=(mean_std([e[0] for e in ends])[0], mean_std([e[1] for e in ends])[0])
        if len(ends) == len(runs)
        else None,
        seeds=len(runs),
        expected=expected,
        n=min((run.n for run in runs if run.n is not None), default=None),
        unparsable=_mean(
            100 * run.unparsable / run.n if run.unparsable is not None and run.n else None for run in runs
        ),
        likelihood_score=_mean(run.likelihood_score for run in runs),
        majority=_mean(run.majority for run in runs),
        seconds=_mean(run.seconds for run in runs),
        samples_per_second=_mean(run.samples_per_second for run in runs),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values there are; `None` if there are none."""
    present = [value for value in values if value is not None]
    return mean_std(present)[0] if present else None


def _majority_row(task: str, runs: Iterable[Run]) -> Row:
    """The baseline of the runs that evaluated the most examples: shortened runs have another majority."""
    known = [run for run in runs if run.cell.task == task and run.majority is not None]
    cell = Cell(task, "", MAJORITY)
    if not known:
        return Row(cell)
    largest = max(run.n or 0 for run in known)
    majority = _mean(run.majority for run in known if (run.n or 0) == largest)
    return Row(cell, score=majority, n=largest or None, majority=majority)


def _notes_on_sizes(runs: Iterable[Run]) -> list[str]:
    sizes: dict[str, set[int]] = {}
    for run in runs:
        if run.n is not None:
            sizes.setdefault(run.cell.task, set()).add(run.n)
    return [
        f"{task}: runs were evaluated on {' or '.join(map(str, sorted(found)))} examples, so their scores "
        "are not of the same examples."
        for task, found in sorted(sizes.items(), key=lambda item: task_order(item[0]))
        if len(found) > 1
    ]


def _add_problems(seen: dict[Cell, set[int]], problems: Iterable[Problem]) -> None:
    """Counts runs without a result among the seeds of their cell.

    A folder's path doesn't tell reward and lora. Such a run goes to the one cell that it can belong to; if
    there are several, to none (it still is listed below the table); if there is none, it makes one.
    """
    for problem in sorted(problems, key=lambda p: not p.known):
        cell = problem.cell
        if not problem.known:
            fitting = [c for c in seen if c[:3] == cell[:3]]
            if len(fitting) > 1:
                continue
            cell = fitting[0] if fitting else cell
        seeds = seen.setdefault(cell, set())
        if problem.seed is not None:
            seeds.add(problem.seed)


def _complete_grid(seen: dict[Cell, set[int]]) -> None:
    tasks = {cell.task for cell in seen}
    for cell in list(seen):
        for task in tasks:
            seen.setdefault(cell._replace(task=task), set())
