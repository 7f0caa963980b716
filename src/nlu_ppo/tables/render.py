"""Rows as text: for the terminal, as Markdown, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import rich.box
import rich.table
from rich.text import Text

from nlu_ppo.tables.collect import Cell, Study
from nlu_ppo.tables.compare import Comparison, compare
from nlu_ppo.tables.order import BASELINE
from nlu_ppo.tables.summarize import MAJORITY, Row, summarize, varying_fields

MISSING = "-"
_CSV_COLUMNS = (
    *Cell._fields,
    *("score", "deviation", "ci_low", "ci_high", "seeds", "expected_seeds", "n", "unparsable_percent"),
    *("likelihood_score", "majority", "seconds", "samples_per_second"),
    *("difference", "p_value", "n_compared"),
)


@dataclass(frozen=True)
class Table:
    """A study's table, ready to be written.

    Attributes:
        title: of the study.
        fields: which of model, reward and lora have a column, since they tell rows apart.
        rows: in the order they are shown.
        comparisons: the paired tests, by cell.
        notes: what stands below the table.
        problems: run folders without a usable result, one line each.
    """

    title: str
    fields: tuple[str, ...]
    rows: tuple[Row, ...]
    comparisons: dict[Cell, Comparison]
    notes: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Column:
    header: str
    text: Callable[[Row], str]
    number: bool = True


def build_table(study: Study, expect_seeds: int | None = None) -> Table:
    """Summarizes and tests the runs of a study; `expect_seeds` as in `summarize`."""
    rows, notes = summarize(study, expect_seeds)
    comparisons, test_notes = compare(study)
    problems = [f"{p.status}: {p.folder}: {p.error}" for p in study.problems]
    return Table(
        title=study.name,
        fields=varying_fields(rows),
        rows=tuple(rows),
        comparisons=comparisons,
        notes=(*_legend(rows, comparisons), *study.notes, *notes, *test_notes),
        problems=tuple(problems),
    )


def to_rich(table: Table) -> rich.table.Table:
    """The table for a terminal; lines between tasks."""
    columns = _columns(table)
    drawn = rich.table.Table(
        title=Text(table.title),
        title_justify="left",
        box=rich.box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for column in columns:
        header = Text(column.header.replace(" ", "\n"))  # columns no wider than their numbers
        drawn.add_column(header, justify="right" if column.number else "left", no_wrap=True)
    for row, following in zip(table.rows, [*table.rows[1:], None], strict=True):
        last = following is None or following.cell.task != row.cell.task
        # Text, not str: a name with brackets is not to be taken for markup.
        style = "dim" if row.cell.method == MAJORITY else None
        drawn.add_row(*(Text(c.text(row)) for c in columns), end_section=last, style=style)
    return drawn


def to_markdown(table: Table) -> str:
    """The table with its notes and the list of runs without a result, as a Markdown page."""
    columns = _columns(table)
    lines = [
        f"# {table.title}",
        "",
        _markdown_line([c.header for c in columns]),
        _markdown_line(["---:" if c.number else ":---" for c in columns]),
        *(_markdown_line([c.text(row) for c in columns]) for row in table.rows),
        "",
        *(f"- {note}" for note in table.notes),
    ]
    if table.problems:
        lines += ["", "## Runs without a result", "", *(f"- {problem}" for problem in table.problems)]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """The rows with one number a column, for programs; missing is `-` (pandas: `na_values="-"`).

    All columns are there whatever the study, so that files of several studies can be laid under each other.
    Scores are of 0 to 100, `difference` in points of correct answers, `p_value` as it came out.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for row in table.rows:
        test = table.comparisons[row.cell].test if row.cell in table.comparisons else None
        low, high = row.ci95 or (None, None)
        baseline = row.cell.method == MAJORITY
        values = [
            *(part or None for part in row.cell),
            *(row.score, row.deviation, low, high),
            *((None, None) if baseline else (row.seeds, row.expected)),
            *(row.n, row.unparsable, row.likelihood_score, row.majority, row.seconds, row.samples_per_second),
            *((100 * test.difference, test.p_value, test.n) if test else (None, None, None)),
        ]
        writer.writerow([_plain(value) for value in values])
    return out.getvalue()


def _columns(table: Table) -> list[_Column]:
    names = [field for field in Cell._fields if field in ("task", "method", *table.fields)]
    columns = [_Column(name, partial(_name, name), number=False) for name in names]
    columns += [
        _Column("score", _score),
        _Column("95% interval", _interval),
        _Column("seeds", _seeds),
        _Column("unparsable %", lambda row: _decimal(row.unparsable)),
        _Column("by likelihood", lambda row: _decimal(row.likelihood_score)),
        _Column("majority", lambda row: _decimal(row.majority)),
    ]
    if table.comparisons:
        columns.append(_Column(f"vs {BASELINE}", lambda row: _against(table.comparisons.get(row.cell))))
    columns += [
        _Column("seconds", lambda row: _decimal(row.seconds)),
        _Column("samples/s", lambda row: _decimal(row.samples_per_second)),
    ]
    return columns


def _legend(rows: Sequence[Row], comparisons: dict[Cell, Comparison]) -> list[str]:
    notes = [
        "score: 0 to 100, by generation, mean ± sample deviation over seeds. by likelihood: the same score "
        "when the most likely legal answer is taken, so that format plays no part.",
        "95% interval: bootstrap over examples, averaged over seeds. unparsable: no legal answer, so wrong.",
        "majority: always the most frequent label of train. seconds: to fit and evaluate, mean over seeds.",
    ]
    if any(row.seeds < row.expected for row in rows):
        notes.append("n=2/3: of three expected runs two are finished, and the row is of these two.")
    if comparisons:
        count = len(comparisons)
        tests = "one test" if count == 1 else f"{count} tests, not corrected for their number"
        notes.append(
            f"vs {BASELINE}: difference in points of correct answers on common examples (not in the score, "
            "where that is no accuracy), and the two-sided p of a paired test: McNemar's exact test for one "
            "seed, its extension, the sign-flip permutation test, for means over seeds and grouped examples; "
            f"{tests}."
        )
    return notes


def _name(field: str, row: Row) -> str:
    return getattr(row.cell, field) or MISSING


def _score(row: Row) -> str:
    return _decimal(row.score) + ("" if row.deviation is None else f" ± {row.deviation:.1f}")


def _interval(row: Row) -> str:
    return MISSING if row.ci95 is None else f"{row.ci95[0]:.1f} to {row.ci95[1]:.1f}"


def _seeds(row: Row) -> str:
    if row.cell.method == MAJORITY:
        return MISSING
    return f"n={row.seeds}" if row.seeds == row.expected else f"n={row.seeds}/{row.expected}"


def _against(comparison: Comparison | None) -> str:
    if comparison is None:
        return MISSING
    p = comparison.test.p_value
    return f"{100 * comparison.test.difference:+.1f} (p{'<0.001' if p < 0.001 else f'={p:.3f}'})"


def _decimal(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f}"


def _plain(value: str | float | None) -> str:
    if value is None:
        return MISSING
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
