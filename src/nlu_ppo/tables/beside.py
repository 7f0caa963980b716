"""Every metric of a study, and the papers' numbers beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from nlu_ppo.tables.answers import known_task
from nlu_ppo.tables.collect import Cell
from nlu_ppo.tables.expected import Expected
from nlu_ppo.tables.order import SortKey, cell_order
from nlu_ppo.tables.printed import Printed, PrintedCell, PrintedRow
from nlu_ppo.tables.summarize import MAJORITY, Metric, Row

PERPLEXITY = "perplexity/"
AVERAGE = "average"


@dataclass(frozen=True)
class Line:
    """One metric of one cell: ours, and what a paper prints for it.

    Attributes:
        metric: its name in `result.json`.
        ours: `None` where no run has it.
        seeds: finished runs that have it, and `expected` ones.
        printed: the paper's number, if there is one, and `source` the table that it stands in.
        comparable: whether the paper's number is of the same model and the same split, so that a difference
            says something of a reproduction.
    """

    cell: Cell
    metric: str
    ours: Metric | None
    expected: int
    printed: PrintedCell | None = None
    source: Printed | None = None
    comparable: bool = False

    @property
    def difference(self) -> float | None:
        """Ours minus theirs, where they are comparable; in points, or in perplexity."""
        if self.ours is None or self.printed is None or not self.comparable:
            return None
        return self.ours.value - self.printed.value

    @property
    def inside(self) -> bool | None:
        """Whether their number lies within our 95% interval."""
        if self.difference is None or self.ours is None or self.ours.ci95 is None or self.printed is None:
            return None
        return self.ours.ci95[0] <= self.printed.value <= self.ours.ci95[1]


@dataclass(frozen=True)
class Average:
    """The mean over a printed table's columns, of our runs and of the paper's row by the same rule.

    Attributes:
        cell: without a task.
        ours: `None` if any column is missing; `missing` says which.
        theirs: recomputed from the row's own numbers; `as_printed` is what the paper has for it.
    """

    cell: Cell
    source: Printed
    ours: float | None
    theirs: float | None
    as_printed: float | None
    comparable: bool
    columns: int
    missing: tuple[str, ...]

    @property
    def difference(self) -> float | None:
        if self.ours is None or self.theirs is None or not self.comparable:
            return None
        return self.ours - self.theirs


def metric_lines(rows: Sequence[Row], expected: Expected) -> list[Line]:
    """A line for each metric of each cell, in the table's order; with each printed table of `expected` beside.

    A number that a paper prints and no run of ours has is a line, too, if the study has its model and method.
    """
    found = {
        (row.cell, name): Line(row.cell, name, metric, row.expected)
        for row in rows
        if row.cell.method != MAJORITY
        for name, metric in row.metrics
    }
    cells = list(dict.fromkeys(row.cell for row in rows if row.cell.method != MAJORITY))
    lines: list[Line] = []
    taken: set[tuple[Cell, str]] = set()
    for source in expected.printed:
        for line in _printed_lines(source, expected, cells, found):
            lines.append(line)
            taken.add((line.cell, line.metric))
    lines += [line for place, line in found.items() if place not in taken]
    # metrics of a task as its benchmark lists them, then those of further sets
    ranks: dict[tuple[str, str], int] = {}
    for line in found.values():
        ranks.setdefault((line.cell.task, line.metric), len(ranks))

    def order(line: Line) -> tuple[SortKey, int, str, tuple[SortKey, ...]]:
        place = cell_order(line.cell)
        return place[0], ranks.get((line.cell.task, line.metric), len(ranks)), line.metric, place

    return sorted(lines, key=order)


def _printed_lines(
    source: Printed, expected: Expected, cells: Sequence[Cell], found: dict[tuple[Cell, str], Line]
) -> Iterator[Line]:
    for row, ours in _rows_of(source, expected, cells):
        for printed in row.cells:
            task = expected.tasks.get(printed.task, printed.task)
            place = next(_places(task, printed.metric, ours, found, is_plain=row.row is None), None)
            for cell, metric in place or []:
                line = found.get((cell, metric)) or Line(cell, metric, None, 0)
                yield replace(line, printed=printed, source=source, comparable=_comparable(cell, printed))


def _rows_of(
    source: Printed, expected: Expected, cells: Sequence[Cell]
) -> Iterator[tuple[PrintedRow, list[Cell]]]:
    """The printed rows that belong to runs of ours, each with those cells (of any task)."""
    own = {row.model for row in source.rows if row.row is None}
    named = expected.model if expected.model in own else min(own) if len(own) == 1 else None
    # what a labelled row stands beside isn't beside the plain row of its method, too
    labels = {row.row for row in source.rows if row.row is not None}
    claimed = [wanted for label, wanted in expected.rows.items() if label in labels]
    for row in source.rows:
        if row.row is not None:
            wanted = expected.rows.get(row.row)
            ours = [cell for cell in cells if wanted and _is(cell, wanted)]
        else:
            ours = [
                cell
                for cell in cells
                if cell.method == row.method
                and row.model == (cell.model if cell.model in own else named)
                and not any(_is(cell, wanted) for wanted in claimed)
            ]
        if ours:
            yield row, ours


def _is(cell: Cell, names: Mapping[str, str]) -> bool:
    return all(getattr(cell, key) == name for key, name in names.items())


def _places(
    task: str, printed: str, cells: Sequence[Cell], found: Iterable[tuple[Cell, str]], is_plain: bool
) -> Iterator[list[tuple[Cell, str]]]:
    """Where the printed metric of a task belongs among ours; the first that there is counts.

    Its own task; the task as a member of a group, or as a further set of a run on the task that it is trained
    on; or, if none of them ran, the place where it would be (unless the row isn't one of single-task runs).
    """
    known = set(found)
    metric = printed.replace("test_", "validation_", 1)
    here = [(cell, metric) for cell in cells if cell.task == task]
    there = [(cell, f"{task}/{metric}") for cell in cells]
    there = [place for place in there if place in known]
    if any(place in known for place in here) or (here and is_plain and not there):
        yield here
    if there:
        yield there
    if is_plain and not here:
        yield [(cell, metric) for cell in dict.fromkeys(cell._replace(task=task) for cell in cells)]


def _comparable(cell: Cell, printed: PrintedCell) -> bool:
    """Of the same model, and of a split that we score, too; where the paper doesn't say which, it may be."""
    if cell.model != printed.model:
        return False
    if printed.split is None:
        return True
    task = known_task(printed.task)
    return task is not None and task.eval_splits[0].partition("_")[0] == printed.split


def averages(lines: Sequence[Line], expected: Expected) -> list[Average]:
    """The averages of the printed tables, of ours and of theirs alike; no average without all of its columns."""
    found = []
    for source in expected.printed:
        own = [line for line in lines if line.source is source and line.printed is not None]
        groups: dict[tuple[Cell, tuple[str | None, str, str]], list[Line]] = {}
        for line in own:
            assert line.printed is not None
            name = line.printed.row, line.printed.model, line.printed.method
            groups.setdefault((line.cell._replace(task=""), name), []).append(line)
        rows = {(row.row, row.model, row.method): row for row in source.rows}
        for (cell, name), group in groups.items():
            if source.average_over:
                found.append(_average(cell, rows[name], source, group))
    return found


def _average(cell: Cell, row: PrintedRow, source: Printed, group: Sequence[Line]) -> Average:
    columns = [column for means in source.average_over for column in means]
    ours: dict[tuple[str, str], float] = {}
    comparable = True
    for line in group:
        if line.printed is not None and (line.printed.task, line.printed.metric) in columns:
            comparable &= line.comparable
            if line.ours is not None:
                ours[line.printed.task, line.printed.metric] = line.ours.value
    theirs = {(c.task, c.metric): c.value for c in row.cells}
    return Average(
        cell,
        source,
        _nested_mean(source.average_over, ours),
        _nested_mean(source.average_over, theirs),
        row.average,
        comparable,
        len(columns),
        tuple(f"{task} {metric}" for task, metric in columns if (task, metric) not in ours),
    )


def _nested_mean(
    over: Sequence[Sequence[tuple[str, str]]], values: dict[tuple[str, str], float]
) -> float | None:
    if any(column not in values for means in over for column in means):
        return None
    return fmean(fmean(values[column] for column in means) for means in over)


def notes_on(expected: Expected, lines: Sequence[Line]) -> list[str]:
    """Sources and known faults of the printed numbers, and what of them stands beside no run."""
    notes = []
    for source in expected.printed:
        notes.append(f"{_capital(source.source)}: {source.title}.")
        notes += [f"Table {source.table}: {note}" for note in source.notes]
        shown = {line.printed for line in lines if line.source is source}
        left = [r for r in source.rows if r.cells and not shown.intersection(r.cells)]
        if left:
            names = ", ".join(row.row or f"{row.method} of {row.model}" for row in left)
            notes.append(f"Table {source.table}: printed, and without a run here: {names}.")
        for d in source.differences:
            notes.append(f"{_capital(source.table)}: {d.method} is {d.value:+.2f} over {d.minus} ({d.over}).")
    if any(line.printed and line.cell.model != line.printed.model for line in lines):
        notes.append(
            "The paper's number is of another model than ours and shows what its methods reached there; "
            "a difference would be no reproduction, so there is none."
        )
    if any(line.printed and line.cell.model == line.printed.model and not line.comparable for line in lines):
        notes.append(
            "Ours are of the validation split, the paper's marked (test) of the test split, whose labels only "
            "the benchmark's server has; they are not the same number, so there is no difference."
        )
    return notes


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
