"""One row per cell and set of examples: the mean over its seeds, and how many seeds that is a mean of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from nlu_ppo.statistics import mean_std
from nlu_ppo.tables.answers import Answers, Interval
from nlu_ppo.tables.collect import Cell, Problem, Run, Study
from nlu_ppo.tables.order import cell_order, task_order, varying
from nlu_ppo.tables.readings import Reading

MAJORITY = "majority"

T = TypeVar("T")

AnswersOf = Mapping[Path, Mapping[str | None, Answers]]  # by run folder, then by set


@dataclass(frozen=True)
class Metric:
    """One of a row's official metrics, or a perplexity: mean over seeds, deviation, interval, seeds."""

    value: float
    deviation: float | None
    ci95: Interval | None
    seeds: int


@dataclass(frozen=True)
class Row:
    """A line of the table; what is missing is `None`.

    Attributes:
        on: the set that it is about: `None` for the cell's own, else as `Reading.on` names it.
        score: mean over seeds, 0 to 100; so are `majority` and `likelihood`.
        deviation: sample deviation of the score over seeds; `None` with fewer than two.
        ci95: ends of the 95% interval over examples, averaged over seeds. All seeds answer the same examples,
            so the interval of their mean is at most as wide as this one; what the seeds themselves add is
            `deviation`.
        seeds: finished runs.
        expected: runs there should be.
        n: evaluated examples of a run (the fewest, where runs differ).
        unparsable: percent of examples without a legal answer.
        metrics: by the name that they have in `result.json`, percent; perplexities as they are.
        seconds: of fitting and evaluating, mean over seeds; so is `samples_per_second`.
        device_hours: of all seeds together, loading included.
        peak_memory: bytes, the most of any seed.
    """

    cell: Cell
    on: str | None = None
    score: float | None = None
    deviation: float | None = None
    ci95: Interval | None = None
    seeds: int = 0
    expected: int = 0
    n: int | None = None
    unparsable: float | None = None
    likelihood: float | None = None
    majority: float | None = None
    metrics: tuple[tuple[str, Metric], ...] = ()
    seconds: float | None = None
    device_hours: float | None = None
    peak_memory: float | None = None
    samples_per_second: float | None = None

    @property
    def place(self) -> tuple[Cell, str | None]:
        """What no two rows share."""
        return self.cell, self.on


def summarize(
    study: Study,
    expect_seeds: int | None = None,
    answers: AnswersOf | None = None,
    required: Iterable[Cell] = (),
) -> tuple[list[Row], list[str]]:
    """Rows of all cells in the table's order, each task led by its majority baseline, and notes on them.

    Args:
        study: what `collect` read.
        expect_seeds: seeds every cell should have. Then a method that ran on one task of a model is expected
            on all tasks of that model, and its absence is a row. Without it, a cell expects the seeds that
            have a run folder, finished or not.
        answers: of the runs, for what their `result.json` leaves open.
        required: cells that have a row even if nothing of them ever ran. Where there are any, a method isn't
            expected on other tasks because it ran on one.
    """
    runs: dict[Cell, list[Run]] = {}
    for run in study.runs:
        runs.setdefault(run.cell, []).append(run)
    seen = {cell: {run.seed for run in group} for cell, group in runs.items()}
    _add_problems(seen, study.problems)
    required = list(required)
    for cell in required:
        if not any(fits(cell, other) for other in seen):
            seen[_as_its_siblings(cell, runs)] = set()
    if expect_seeds is not None and not required:
        _complete_grid(seen)
    rows: dict[str, list[Row]] = {}
    for cell in sorted(seen, key=cell_order):
        group = runs.get(cell, [])
        expected = len(seen[cell]) if expect_seeds is None else max(expect_seeds, len(group))
        rows.setdefault(cell.task, []).extend(_rows(cell, group, expected, answers or {}))
    ordered = [
        row for task in sorted(rows, key=task_order) for row in _with_baselines(task, rows[task], study.runs)
    ]
    return ordered, _notes_on_sizes(study.runs)


def varying_fields(rows: Iterable[Row]) -> tuple[str, ...]:
    """Of model, reward and lora those that tell rows apart."""
    return varying([row.cell for row in rows if row.cell.method != MAJORITY])


def varying_settings(rows: Iterable[Row]) -> tuple[str, ...]:
    """The settings that tell rows apart, in alphabetical order."""
    return tuple(sorted({key for row in rows for key, _ in row.cell.settings}))


def _rows(cell: Cell, runs: Sequence[Run], expected: int, answers: AnswersOf) -> Iterator[Row]:
    """The cell's own row, then one for each further set."""
    if not runs:
        yield Row(cell, expected=expected)
        return
    for on in dict.fromkeys(reading.on for run in runs for reading in run.readings):
        pairs = [(run, reading) for run in runs for reading in run.readings if reading.on == on]
        yield _row(cell, on, pairs, expected, answers)


def _row(
    cell: Cell, on: str | None, pairs: Sequence[tuple[Run, Reading]], expected: int, answers: AnswersOf
) -> Row:
    readings = [reading for _, reading in pairs]
    given = [answers.get(run.folder, {}).get(on) for run, _ in pairs]
    # a headline's numbers are those of its result.json, and what that lacks is missing
    counted = [None] * len(given) if on is None else given
    scores = [reading.score for reading in readings if reading.score is not None]
    score, deviation = mean_std(scores) if scores else (None, None)
    sizes = [_or(r.n, a.n if a else None) for r, a in zip(readings, counted, strict=True)]
    wrong = [_or(r.unparsable, a.unparsable if a else None) for r, a in zip(readings, counted, strict=True)]
    ends = [
        _or(r.ci95, a.intervals.get("score") if a else None) for r, a in zip(readings, counted, strict=True)
    ]
    row = Row(
        cell,
        on,
        score=score,
        deviation=deviation,
        ci95=_mean_interval(ends),
        seeds=len(pairs),
        expected=expected,
        n=min((n for n in sizes if n is not None), default=None),
        unparsable=_mean(
            100 * w / n if w is not None and n else None for w, n in zip(wrong, sizes, strict=True)
        ),
        likelihood=_mean(reading.likelihood for reading in readings),
        majority=_mean(reading.majority for reading in readings),
        metrics=tuple(_metrics(on, pairs, given)),
    )
    if on is not None:  # what a run costs is said once
        return row
    runs = [run for run, _ in pairs]
    hours = [run.device_hours for run in runs if run.device_hours is not None]
    return replace(
        row,
        seconds=_mean(run.fit_and_evaluate for run in runs),
        samples_per_second=_mean(run.samples_per_second for run in runs),
        device_hours=sum(hours) if hours else None,
        peak_memory=max((run.peak_memory for run in runs if run.peak_memory is not None), default=None),
    )


def _metrics(
    on: str | None, pairs: Sequence[tuple[Run, Reading]], given: Sequence[Answers | None]
) -> Iterator[tuple[str, Metric]]:
    for name in dict.fromkeys(name for _, reading in pairs for name in reading.metrics):
        found = [
            (reading.metrics[name], a.intervals.get(name) if a else _only(reading))
            for (_, reading), a in zip(pairs, given, strict=True)
            if name in reading.metrics
        ]
        mean, deviation = mean_std([value for value, _ in found])
        interval = _mean_interval([ends for _, ends in found])
        yield f"{on}/{name}" if on else name, Metric(mean, deviation, interval, len(found))
    if on is None:
        for name in dict.fromkeys(name for run, _ in pairs for name in run.others):
            values = [run.others[name] for run, _ in pairs if name in run.others]
            yield name, Metric(*mean_std(values), None, len(values))


def _only(reading: Reading) -> Interval | None:
    """The score's interval, where the task has one metric, which then is the score."""
    return reading.ci95 if len(reading.metrics) == 1 else None


def _or(value: T | None, other: T | None) -> T | None:
    return other if value is None else value


def _mean_interval(ends: Sequence[Interval | None]) -> Interval | None:
    """Mean of the ends; `None` where a seed has none, since it would look like that of the mean over all."""
    present = [pair for pair in ends if pair is not None]
    if not present or len(present) < len(ends):
        return None
    return mean_std([low for low, _ in present])[0], mean_std([high for _, high in present])[0]


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values there are; `None` if there are none."""
    present = [value for value in values if value is not None]
    return mean_std(present)[0] if present else None


def _with_baselines(task: str, rows: Sequence[Row], runs: Sequence[Run]) -> Iterator[Row]:
    """Rows by set, each set led by its majority baseline."""
    for on in dict.fromkeys(row.on for row in sorted(rows, key=lambda row: row.on is not None)):
        baseline = _majority_row(task, on, runs)
        if on is None or baseline.score is not None:
            yield baseline
        yield from (row for row in rows if row.on == on)


def _majority_row(task: str, on: str | None, runs: Iterable[Run]) -> Row:
    """The baseline of the runs that evaluated the most examples: shortened runs have another majority."""
    known = [
        reading
        for run in runs
        if run.cell.task == task
        for reading in run.readings
        if reading.on == on and reading.majority is not None
    ]
    cell = Cell(task, "", MAJORITY)
    if not known:
        return Row(cell, on)
    largest = max(reading.n or 0 for reading in known)
    majority = _mean(reading.majority for reading in known if (reading.n or 0) == largest)
    return Row(cell, on, score=majority, n=largest or None, majority=majority)


def _notes_on_sizes(runs: Iterable[Run]) -> list[str]:
    sizes: dict[tuple[str, str], set[int]] = {}
    for run in runs:
        for reading in run.readings:
            if reading.n is not None:
                sizes.setdefault((run.cell.task, reading.on or ""), set()).add(reading.n)
    return [
        f"{task}{f', {on}' if on else ''}: runs were evaluated on {' or '.join(map(str, sorted(found)))} "
        "examples, so their scores are not of the same examples."
        for (task, on), found in sorted(sizes.items(), key=lambda item: (task_order(item[0][0]), item[0][1]))
        if len(found) > 1
    ]


def fits(wanted: Cell, cell: Cell) -> bool:
    """Whether `cell` is what is wanted, as far as that says (`None`, no settings: says nothing)."""
    names = all(w is None or w == c for w, c in zip(wanted[:5], cell[:5], strict=True))
    return names and set(wanted.settings) <= set(cell.settings)


def _as_its_siblings(cell: Cell, cells: Iterable[Cell]) -> Cell:
    """A cell that never ran, with the reward, lora and settings that its method has on all other tasks."""
    known = {c._replace(task=cell.task) for c in cells if (c.model, c.method) == (cell.model, cell.method)}
    fitting = [c for c in known if fits(cell, c)]
    return fitting[0] if len(fitting) == 1 else cell


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
    """Expects a cell on every task, but for one with a setting of its task, which means nothing on another."""
    tasks = {cell.task for cell in seen}
    for cell in list(seen):
        if not any(key.startswith("task.") for key, _ in cell.settings):
            for task in tasks:
                seen.setdefault(cell._replace(task=task), set())
