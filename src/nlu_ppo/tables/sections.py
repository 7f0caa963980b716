"""A study's numbers as sections of text, the same for every format; and the whole of a table."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from nlu_ppo.tables.answers import read_answers
from nlu_ppo.tables.beside import PERPLEXITY, Average, Line, averages, metric_lines, notes_on
from nlu_ppo.tables.collect import Study
from nlu_ppo.tables.compare import BASELINES, Comparison, Place, compare
from nlu_ppo.tables.expected import Expected, Verdict, judge
from nlu_ppo.tables.summarize import (
    MAJORITY,
    AnswersOf,
    Row,
    summarize,
    varying_fields,
    varying_settings,
)

MISSING = "-"
MARKS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))


@dataclass(frozen=True)
class Section:
    """One table of a page.

    Attributes:
        columns: headers, and whether what stands below is a number.
        rows: texts, one per column.
        ends: numbers of the rows that a line is drawn below.
        dim: numbers of the rows that are no result, but what results are held against.
        result: whether it is what the study was made for, and not what it cost or was expected to give.
    """

    title: str
    columns: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[str, ...], ...]
    ends: frozenset[int] = frozenset()
    dim: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()
    result: bool = True


@dataclass(frozen=True)
class Table:
    """A study's table, ready to be written.

    Attributes:
        title: of the study.
        fields: which of model, reward and lora have a column, since they tell rows apart; and `settings`.
        rows: in the order they are shown.
        comparisons: the paired tests, by cell, set and baseline.
        lines: every metric, and the paper's beside it.
        verdicts: what became of the cells that `sweeps/expected/<study>.yaml` names.
        answers: of the runs, for what pictures need.
        notes: what stands below the table, and what is to be known of the printed numbers.
        problems: run folders without a usable result, one line each.
    """

    title: str
    fields: tuple[str, ...]
    settings: tuple[str, ...]
    rows: tuple[Row, ...]
    comparisons: dict[Place, Comparison]
    lines: tuple[Line, ...] = ()
    averages: tuple[Average, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    reason: str = ""
    answers: AnswersOf = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    printed_notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[Verdict, ...]:
        return tuple(verdict for verdict in self.verdicts if verdict.state != "ok")


def build_table(study: Study, expect_seeds: int | None = None, expected: Expected | None = None) -> Table:
    """Summarizes, tests and judges the runs of a study; `expect_seeds` goes before the one that is expected."""
    expected = expected or Expected()
    answers: AnswersOf = {run.folder: read_answers(run) for run in study.runs}
    required = dict.fromkeys(demand.cell for demand in expected.demands)
    rows, notes = summarize(study, expect_seeds or expected.seeds, answers, required)
    comparisons, test_notes = compare(study, answers)
    lines = metric_lines(rows, expected)
    return Table(
        title=study.name,
        fields=varying_fields(rows),
        settings=varying_settings(rows),
        rows=tuple(rows),
        comparisons=comparisons,
        lines=tuple(lines),
        averages=tuple(averages(lines, expected)),
        verdicts=tuple(judge(expected, rows)),
        reason=expected.reason,
        answers=answers,
        notes=(*_legend(rows, comparisons, lines), *study.notes, *notes, *test_notes),
        printed_notes=tuple(notes_on(expected, lines)),
        problems=tuple(f"{p.status}: {p.folder}: {p.error}" for p in study.problems),
    )


def sections(table: Table) -> list[Section]:
    """Scores; every metric beside what is printed; averages; cost; what is expected. Only those that there are."""
    found = [_scores(table)]
    several = any(len(row.metrics) > 1 for row in table.rows)
    if several or any(line.printed or line.metric.startswith(PERPLEXITY) for line in table.lines):
        found.append(_metrics(table))
    if table.averages:
        found.append(_averages(table))
    found.append(_cost(table))
    held = _verdicts(table)
    return [*found, held] if held.rows else found


def significance(p: float) -> str:
    """The customary asterisks of a corrected p-value."""
    return next((mark for bound, mark in MARKS if p < bound), "")


# -- the sections --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    """`text` takes what the section has a row for: a `Row`, `Line`, `Average` or `Verdict`."""

    header: str
    text: Callable[[Any], str]
    number: bool = True


def _scores(table: Table) -> Section:
    columns = [*_names(table)]
    if any(row.on for row in table.rows):
        columns.insert(1, _Column("evaluated on", lambda row: row.on or row.cell.task, number=False))
    columns += [
        _Column("score", lambda row: _with_deviation(row.score, row.deviation)),
        _Column("95% interval", lambda row: interval(row.ci95)),
        _Column("seeds", lambda row: _seeds(row.cell.method, row.seeds, row.expected)),
        _Column("unparsable %", lambda row: decimal(row.unparsable)),
        _Column("by likelihood", lambda row: decimal(row.likelihood)),
        _Column("majority", lambda row: decimal(row.majority)),
    ]
    for baseline in BASELINES:
        if any(place[2] == baseline for place in table.comparisons):
            columns.append(_Column(f"vs {baseline}", partial(_against, table, baseline)))
    ends = _last_of_each((row.cell.task, row.on) for row in table.rows)
    dim = [i for i, row in enumerate(table.rows) if row.cell.method == MAJORITY]
    return _section("Scores", columns, table.rows, ends, dim)


def _metrics(table: Table) -> Section:
    beside = any(line.printed for line in table.lines)
    columns = [
        _Column("task", lambda line: line.cell.task, number=False),
        _Column("metric", lambda line: line.metric, number=False),
        *_names(table)[1:],
        _Column("ours", _ours),
        _Column("95% interval", lambda line: interval(line.ours.ci95 if line.ours else None, _digits(line))),
        _Column("seeds", lambda line: _seeds("", line.ours.seeds if line.ours else 0, line.expected)),
    ]
    if beside:
        columns += [
            _Column("paper's", _theirs),
            _Column("its 95% interval", _their_interval),
            _Column("of", _of, number=False),
            _Column("difference", lambda line: signed(line.difference, _digits(line))),
            _Column(
                "inside ours",
                lambda line: {None: MISSING, True: "yes", False: "no"}[line.inside],
                number=False,
            ),
        ]
    ends = _last_of_each((line.cell.task, line.metric) for line in table.lines)
    title = "Metrics, beside the paper's" if beside else "Metrics"
    return _section(title, columns, table.lines, ends)


def _averages(table: Table) -> Section:
    columns = [
        _Column("over the columns of", lambda a: f"table {a.source.table}", number=False),
        *_names(table)[1:],
        _Column("columns", lambda a: f"{a.columns - len(a.missing)} of {a.columns}"),
        _Column("ours", lambda a: decimal(a.ours, 2)),
        _Column("paper's", lambda a: decimal(a.theirs, 2)),
        _Column("as printed", lambda a: decimal(a.as_printed, 2)),
        _Column("difference", lambda a: signed(a.difference, 2)),
    ]
    return _section("Averages, by one rule for both", columns, table.averages)


def _cost(table: Table) -> Section:
    rows = [row for row in table.rows if row.on is None and row.cell.method != MAJORITY]
    columns = [
        *_names(table),
        _Column("runs", lambda row: _seeds("", row.seeds, row.expected)),
        _Column("examples", lambda row: MISSING if row.n is None else str(row.n)),
        _Column("seconds a run", lambda row: decimal(row.seconds)),
        _Column("samples/s", lambda row: decimal(row.samples_per_second)),
        _Column("device hours", lambda row: hours(row.device_hours)),
        _Column("peak memory, GB", lambda row: decimal(row.peak_memory and row.peak_memory / 1e9, 2)),
    ]
    ends = _last_of_each(row.cell.task for row in rows)
    known = [row.device_hours for row in rows if row.device_hours is not None]
    note = (
        "seconds: to fit and evaluate, mean over seeds. samples/s: training examples a second of training, or "
        "evaluated ones. device hours: from start to end, loading included, times devices, of all seeds together"
        + (f"; {hours(sum(known))} in all." if known else ".")
        + " peak memory: of the device; where that is the CPU, of the process, with whatever ran in it before; the "
        "most of any seed."
    )
    return replace(_section("Cost", columns, rows, ends, notes=(note,)), result=False)


def _verdicts(table: Table) -> Section:
    columns = [
        _Column("cell", lambda v: str(v.demand), number=False),
        _Column("expected", lambda v: decimal(v.demand.value)),
        _Column("tolerance", lambda v: decimal(v.demand.tolerance)),
        _Column("ours", lambda v: decimal(v.found)),
        _Column("verdict", lambda v: v.told.rpartition(": ")[2], number=False),
    ]
    shown = [
        verdict for verdict in table.verdicts if verdict.demand.value is not None or verdict.state != "ok"
    ]
    notes = [table.reason] if table.reason else []
    if len(shown) < len(table.verdicts):
        notes.append(f"{len(table.verdicts) - len(shown)} more cells had to be there, and are.")
    return replace(_section("Held to what is expected", columns, shown, notes=tuple(notes)), result=False)


def _section(
    title: str,
    columns: Sequence[_Column],
    rows: Sequence[Any],
    ends: Iterable[int] = (),
    dim: Iterable[int] = (),
    notes: tuple[str, ...] = (),
) -> Section:
    texts = tuple(tuple(column.text(row) for column in columns) for row in rows)
    headers = tuple((column.header, column.number) for column in columns)
    return Section(title, headers, texts, frozenset(ends), frozenset(dim), notes)


def _last_of_each(groups: Iterable[Any]) -> list[int]:
    """Where a run of equal values ends, but for the last."""
    return [i for i, (group, after) in enumerate(itertools.pairwise(groups)) if group != after]


def _names(table: Table) -> list[_Column]:
    """Columns of what tells cells apart: task, model, method, reward, lora, then settings."""
    names = [
        name
        for name in ("task", "model", "method", "reward", "lora")
        if name in ("task", "method", *table.fields)
    ]
    columns = [_Column(name, partial(_name, name), number=False) for name in names]
    return columns + [_Column(key, partial(_setting, key), number=False) for key in table.settings]


def _name(field_: str, row: Any) -> str:
    return getattr(row.cell, field_) or MISSING


def _setting(key: str, row: Any) -> str:
    return dict(row.cell.settings).get(key, MISSING)


# -- numbers as text -----------------------------------------------------------------------------------------


def decimal(value: float | None, digits: int = 1) -> str:
    """A number, or `-`."""
    return MISSING if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 1) -> str:
    return MISSING if value is None else f"{value:+.{digits}f}"


def hours(value: float | None) -> str:
    """With three significant digits below one hour, so that a minute is no 0.0."""
    return MISSING if value is None else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def interval(ends: tuple[float, float] | None, digits: int = 1) -> str:
    return MISSING if ends is None else f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}"


def _with_deviation(value: float | None, deviation: float | None, digits: int = 1) -> str:
    return decimal(value, digits) + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def _seeds(method: str, seeds: int, expected: int) -> str:
    if method == MAJORITY:
        return MISSING
    if expected == 0:  # no run was ever asked for
        return MISSING
    return f"n={seeds}" if seeds == expected else f"n={seeds}/{expected}"


def _against(table: Table, baseline: str, row: Row) -> str:
    comparison = table.comparisons.get((row.cell, row.on, baseline))
    if comparison is None:
        return MISSING
    p = comparison.corrected
    told = "p<0.001" if p < 0.001 else f"p={p:.3f}"
    return f"{100 * comparison.test.difference:+.1f}{significance(p)} ({told})"


def _digits(line: Line) -> int:
    """As a paper prints it: perplexities with three."""
    return 3 if line.metric.startswith(PERPLEXITY) else 1


def _ours(line: Line) -> str:
    return (
        MISSING if line.ours is None else _with_deviation(line.ours.value, line.ours.deviation, _digits(line))
    )


def _theirs(line: Line) -> str:
    return MISSING if line.printed is None else _as_printed(line.printed.value, line)


def _their_interval(line: Line) -> str:
    ends = line.printed.ci95 if line.printed else None
    return MISSING if ends is None else " to ".join(_as_printed(end, line) for end in ends)


def _as_printed(value: float, line: Line) -> str:
    """With the digits that its table has, one or two, and more if this number has more: 60.10, 6.939, 0.00961."""
    cells = line.source.cells if line.source and line.printed else ()
    digits = max([1, *(min(2, _decimals(cell.value)) for cell in cells)])
    return f"{value:g}" if _decimals(value) > digits else f"{value:.{digits}f}"


def _decimals(value: float) -> int:
    return len(f"{value:g}".partition(".")[2])


def _of(line: Line) -> str:
    """Whose number the paper's is: the model, where it isn't ours, and the test split."""
    if line.printed is None or line.source is None:
        return MISSING
    told = [line.printed.row or ""] if line.printed.row else []
    told += [line.printed.model] if line.printed.model != line.cell.model else []
    told += [f"table {line.source.table}"]
    told += ["test"] if line.printed.split == "test" and not line.comparable else []
    return ", ".join(told)


def _legend(rows: Sequence[Row], comparisons: dict[Place, Comparison], lines: Sequence[Line]) -> list[str]:
    notes = [
        "score: 0 to 100, by generation, mean ± sample deviation over seeds. by likelihood: the same score "
        "when the most likely legal answer is taken, so that format plays no part.",
        "95% interval: bootstrap over examples, averaged over seeds. unparsable: no legal answer, so wrong.",
        "majority: always the most frequent label of train.",
    ]
    if any(row.on for row in rows):
        notes.append("evaluated on: sets beside the one that the runs are named after, by the same weights.")
    if any(row.seeds < row.expected for row in rows if row.cell.method != MAJORITY):
        notes.append("n=2/3: of three expected runs two are finished, and the row is of these two.")
    if comparisons:
        against = " and ".join(dict.fromkeys(f"vs {place[2]}" for place in comparisons))
        count = len(comparisons)
        correction = (
            "one test" if count == 1 else f"p is corrected for all {count} tests of this table (Holm)"
        )
        notes.append(
            f"{against}: difference in points of correct answers on common examples (not in the score, "
            "where that is no accuracy; numbers are correct within a tenth of their scale), and the two-sided p of "
            "a paired test: McNemar's exact test for one seed, its extension, the sign-flip permutation test, for "
            "means over seeds and grouped examples; "
            f"{correction}. * p<0.05, ** p<0.01, *** p<0.001."
        )
    if any(line.metric.startswith(PERPLEXITY) for line in lines):
        notes.append("perplexity: of the final weights, and no percentage; the lower the better.")
    if any(line.printed for line in lines):
        notes.append(
            "difference: ours minus the paper's. inside ours: whether the paper's number lies within our 95% interval."
        )
    return notes
