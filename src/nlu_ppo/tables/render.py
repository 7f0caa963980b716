"""A table for the terminal, as Markdown, and as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

import rich.box
import rich.table
from rich.text import Text

from nlu_ppo.tables.beside import Line
from nlu_ppo.tables.collect import Cell
from nlu_ppo.tables.compare import BASELINES, Comparison
from nlu_ppo.tables.sections import MISSING, Section, Table, sections
from nlu_ppo.tables.summarize import MAJORITY, Row

_CELL_COLUMNS = ("task", "model", "method", "reward", "lora", "settings")
_CSV_COLUMNS = (
    *_CELL_COLUMNS,
    "evaluated_on",
    *("score", "deviation", "ci_low", "ci_high", "seeds", "expected_seeds", "n", "unparsable_percent"),
    *("likelihood_score", "majority", "seconds", "samples_per_second", "device_hours", "peak_memory_bytes"),
    *(
        f"{name}_vs_{method}"
        for method in BASELINES
        for name in ("difference", "p_value", "p_holm", "n_compared")
    ),
)
_METRIC_COLUMNS = (
    *_CELL_COLUMNS,
    *("metric", "value", "deviation", "ci_low", "ci_high", "seeds", "expected_seeds"),
    *(
        "printed",
        "printed_ci_low",
        "printed_ci_high",
        "printed_in",
        "printed_model",
        "printed_row",
        "printed_split",
    ),
    *("difference", "inside"),
)
# What Markdown would take for markup. An underscore within a word is none.
_MARKUP = re.compile(r"[\\`*\[\]<>|~&!#]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")


def to_rich(section: Section, title: str | None = None) -> rich.table.Table:
    """A section for a terminal; lines between tasks."""
    drawn = rich.table.Table(
        title=Text(title or section.title),
        title_justify="left",
        box=rich.box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for header, number in section.columns:
        # columns no wider than their numbers
        drawn.add_column(Text(header.replace(" ", "\n")), justify="right" if number else "left", no_wrap=True)
    for index, row in enumerate(section.rows):
        # Text, not str: a name with brackets is not to be taken for markup.
        style = "dim" if index in section.dim else None
        drawn.add_row(*map(Text, row), end_section=index in section.ends, style=style)
    return drawn


def to_markdown(table: Table) -> str:
    """All sections with their notes and the list of runs without a result, as a Markdown page."""
    lines = [f"# {markdown_text(table.title)}"]
    for section in sections(table):
        lines += ["", f"## {section.title}", "", *_markdown_table(section)]
        lines += ["", *(f"- {markdown_text(note)}" for note in section.notes)] if section.notes else []
    lines += ["", "## Notes", "", *(f"- {markdown_text(note)}" for note in table.notes)]
    if table.printed_notes:
        lines += [
            "",
            "## On the printed numbers",
            "",
            *(f"- {markdown_text(n)}" for n in table.printed_notes),
        ]
    if table.problems:
        lines += ["", "## Runs without a result", "", *(f"- {markdown_text(p)}" for p in table.problems)]
    return "\n".join(lines) + "\n"


def markdown_text(text: str) -> str:
    """Text that a Markdown reader shows as it is, on one line."""
    return _MARKUP.sub(lambda found: "\\" + found[0], " ".join(text.split()))


def _markdown_table(section: Section) -> list[str]:
    return [
        _markdown_line(header for header, _ in section.columns),
        _markdown_line(("---:" if number else ":---" for _, number in section.columns), plain=True),
        *map(_markdown_line, section.rows),
    ]


def _markdown_line(cells: Iterable[str], plain: bool = False) -> str:
    return "| " + " | ".join(cell if plain else markdown_text(cell) for cell in cells) + " |"


def to_csv(table: Table) -> str:
    """The rows with one number a column, for programs; missing is `-` (pandas: `na_values="-"`).

    All columns are there whatever the study, so that files of several studies can be laid under each other.
    Scores are of 0 to 100, differences in points of correct answers, p-values as they came out, and corrected
    for their number.
    """
    return _csv(_CSV_COLUMNS, (_row_values(table, row) for row in table.rows))


def metrics_to_csv(table: Table) -> str:
    """Every metric of every cell, one a line, and the paper's number beside it; missing is `-`."""
    averages = [
        [
            *_cell_values(a.cell),
            *(f"average/{a.source.name}", a.ours, None, None, None, None, None),
            *(a.theirs, None, None, a.source.name, None, None, None),
            *(a.difference, None),
        ]
        for a in table.averages
    ]
    return _csv(_METRIC_COLUMNS, [*map(_line_values, table.lines), *averages])


def _row_values(table: Table, row: Row) -> list[Any]:
    baseline = row.cell.method == MAJORITY
    values = [
        *_cell_values(row.cell),
        *(row.on, row.score, row.deviation, *_ends(row.ci95)),
        *((None, None) if baseline else (row.seeds, row.expected)),
        *(row.n, row.unparsable, row.likelihood, row.majority),
        *(row.seconds, row.samples_per_second, row.device_hours, row.peak_memory),
    ]
    for method in BASELINES:
        values += _test_values(table.comparisons.get((row.cell, row.on, method)))
    return values


def _test_values(comparison: Comparison | None) -> list[float | None]:
    if comparison is None:
        return [None] * 4
    test = comparison.test
    return [100 * test.difference, test.p_value, comparison.corrected, test.n]


def _line_values(line: Line) -> list[Any]:
    ours, printed = line.ours, line.printed
    return [
        *(*_cell_values(line.cell), line.metric),
        *((ours.value, ours.deviation, *_ends(ours.ci95)) if ours else (None, None, None, None)),
        *(ours.seeds if ours else 0, line.expected),
        *((printed.value, *_ends(printed.ci95)) if printed else (None, None, None)),
        line.source.name if line.source else None,
        *((printed.model, printed.row, printed.split) if printed else (None, None, None)),
        *(line.difference, None if line.inside is None else int(line.inside)),
    ]


def _cell_values(cell: Cell) -> list[str | None]:
    return [*(part or None for part in cell[:5]), " ".join(f"{k}={v}" for k, v in cell.settings) or None]


def _ends(pair: tuple[float, float] | None) -> tuple[float | None, float | None]:
    return pair or (None, None)


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_plain(value) for value in row] for row in rows)
    return out.getvalue()


def _plain(value: str | float | None) -> str:
    if value is None:
        return MISSING
    if isinstance(value, str) and value[:1] in ("=", "+", "@", "\t"):
        return f"'{value}"  # or a spreadsheet would compute it
    return f"{value:.6g}" if isinstance(value, float) else str(value)
