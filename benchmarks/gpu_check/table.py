"""The report as tables for the terminal. Everything else that was measured is in the file."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from benchmarks.gpu_check.record import DONE, FAILED, PartRecord, Report, Row

WIDTH = 118  # where output is no terminal
# of speed parts, as far as they have them: name and heading
COLUMNS = {
    "tera_operations_per_s": "10^12/s",
    "gigabytes_per_s": "GB/s",
    "step_s": "time",
    "rollout_s": "rollout",
    "update_s": "update",
    "samples_per_s": "samples/s",
    "examples_per_s": "examples/s",
    "tokens_per_s": "tokens/s",
    "mfu_of_measured": "MFU",
    "update_mfu_of_measured": "MFU, update",
    "peak_memory_bytes": "peak memory",
    "memory_above_weights_bytes": "above weights",
    "ours_is_faster_by": "ours faster by",
}


def show(report: Report, console: Console | None = None) -> None:
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDTH)
    for part in report.parts:
        if part.rows:
            console.print(_speed(part, report) if part.kind == "speed" else _correctness(part, report))
        if part.status != DONE:
            style = "red" if part.status == FAILED else "yellow"
            console.print(f"{part.name}: {part.status}: {part.reason}", style=style, markup=False)
    console.print(
        "MFU: operations that the mathematics needs, by the time and the matrix rate measured above."
    )
    verdict = "no part failed" if report.ok else "A PART FAILED"
    console.print(f"{report.card}: {verdict}. All figures: {report.path}", markup=False)


def _table(part: PartRecord, report: Report) -> Table:
    title = f"{part.name} ({part.kind}): {part.status}, {part.seconds:.0f} s"
    return Table(
        title=title, title_justify="left", caption=report.trial or None, caption_justify="left", min_width=80
    )


def _correctness(part: PartRecord, report: Report) -> Table:
    table = _table(part, report)
    for heading in ("compared", "model", "seen", "wanted", ""):
        table.add_column(heading)
    for row in part.rows:
        seen = ", ".join(f"{_plain(name)} {_shown(name, value)}" for name, value in row.figures.items())
        verdict = "" if not row.bounds else "[red]OUT OF BOUNDS[/]" if row.breaches else "ok"
        table.add_row(row.name, row.model, seen or row.note, _wanted(row), verdict)
    return table


def _wanted(row: Row) -> str:
    return ", ".join(
        f"{_plain(name)} <= {high:g}" if high is not None else f"{_plain(name)} >= {low:g}"
        for name, (low, high) in row.bounds.items()
    )


def _speed(part: PartRecord, report: Report) -> Table:
    table = _table(part, report)
    names = [name for name in COLUMNS if any(name in row.figures for row in part.rows)]
    table.add_column("measured")
    table.add_column("model")
    for name in names:
        table.add_column(COLUMNS[name], justify="right")
    for row in part.rows:
        if any(name in row.figures for name in names) or not row.figures:
            cells = [_shown(name, row.figures[name]) if name in row.figures else "" for name in names]
            what = row.name if row.figures else f"{row.name} ({row.note})"
            table.add_row(what, row.model, *cells)
    return table


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _shown(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return f"{value / 1e9:.2f} GB"
    if name.endswith("_s") and not name.endswith("_per_s"):
        return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"
    if "mfu" in name:
        return f"{value:.1%}"
    return f"{value:.0f}" if value == round(value) or value >= 1000 else f"{value:.3g}"
