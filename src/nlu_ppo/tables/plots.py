"""Pictures of a study: how scores rise with training examples, and where they end."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nlu_ppo.tables.answers import Interval
from nlu_ppo.tables.beside import Line
from nlu_ppo.tables.collect import Cell, Run, Study, read_curve
from nlu_ppo.tables.order import cell_order, method_label
from nlu_ppo.tables.summarize import MAJORITY, Row, varying_fields

CURVE = "select/score"

# Okabe & Ito (2008), Color Universal Design: told apart with every common kind of colour blindness.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#56B4E9", "#E69F00", "#CC79A7", "#000000")
_FIXED = {"zero_shot": "#7F7F7F", "few_shot": "#CC79A7", "sft": "#0072B2", "ppo": "#D55E00"}
# Marks and dashes tell methods apart without any colour, in print too.
_MARKS = "osD^vPX*"
_UNTRAINED = {"zero_shot": (0, (1, 1.5)), "few_shot": (0, (5, 2))}
_PANEL = (3.6, 2.9)  # inches
_GRID = "#e6e6e6"
_THEME = (
    "<style>svg{color:#1c1c1c;fill:currentColor}@media(prefers-color-scheme:dark){svg{color:#d9d9d9}}</style>"
)
_MAX_COLUMNS = 4
_LEAST_RANGE = 10  # points of the score on a curve's axis

FloatArray = npt.NDArray[np.float64]
Points = list[tuple[float, float]]
Panel = tuple[str, str]  # task, model


def learning_curves(study: Study, rows: Sequence[Row]) -> Figure | None:
    """Draws `select/score` over training examples, one panel per task (and model), one line per method.

    The line is the mean over seeds and its band one sample deviation to each side, over the range of examples
    that all seeds cover. Methods without training are horizontal lines at their final score; those are of the
    evaluation set, while curves are of the slice held out of train.

    Returns:
        The picture; `None` if there is no curve to draw.
    """
    rows = [row for row in rows if row.on is None]
    runs: dict[Cell, list[Run]] = {}
    for run in study.runs:
        runs.setdefault(run.cell, []).append(run)
    curves = {
        cell: [c for c in (read_curve(run, CURVE) for run in group) if c] for cell, group in runs.items()
    }
    curves = {cell: found for cell, found in curves.items() if found}
    if not curves:
        return None
    fields = varying_fields(rows)
    labels = _labels(rows, fields)
    figure, panels = _panels([row for row in rows if row.cell in curves], fields)
    for panel, axes in panels.items():
        for row in rows:
            cell = row.cell
            if (cell.task, cell.model) != panel:
                continue
            colour, mark = _style(labels, method_label(cell, fields))
            if cell in curves:
                _draw_curve(axes, curves[cell], method_label(cell, fields), colour, mark)
            elif cell.method in _UNTRAINED and row.score is not None:
                label = f"{method_label(cell, fields)} (final score)"
                axes.axhline(row.score, color=colour, linestyle=_UNTRAINED[cell.method], lw=1.6, label=label)
        low, high = axes.get_ylim()
        if high - low < _LEAST_RANGE:  # a flat line isn't to look like a jagged one
            axes.set_ylim((low + high - _LEAST_RANGE) / 2, (low + high + _LEAST_RANGE) / 2)
        axes.set_xlabel("training examples seen")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    band = "; band: ± 1 deviation over seeds" if any(len(c) > 1 for c in curves.values()) else ""
    lines = (
        "\nhorizontal: final score on the evaluation set, without training" if _has_untrained(rows) else ""
    )
    return _finish(
        figure, f"{study.name}: score on the slice held out of train{band}{lines}", panels.values()
    )


def score_bars(study: Study, rows: Sequence[Row]) -> Figure:
    """Draws the final scores with their 95% intervals, one panel per task (and model), one bar per method.

    The dashed line is the majority baseline. A cell without a finished run keeps its place, marked `-`.
    """
    rows = [row for row in rows if row.on is None]
    fields = varying_fields(rows)
    labels = _labels(rows, fields)
    figure, panels = _panels([row for row in rows if row.cell.method != MAJORITY], fields)
    for (task, model), axes in panels.items():
        shown = [row for row in rows if (row.cell.task, row.cell.model) == (task, model)]
        names = [method_label(row.cell, fields) for row in shown]
        for place, (row, name) in enumerate(zip(shown, names, strict=True)):
            _draw_bar(axes, place, row.score, row.ci95, _style(labels, name)[0])
        majority = next(
            (
                r.score
                for r in rows
                if r.cell.task == task and r.cell.method == MAJORITY and r.score is not None
            ),
            None,
        )
        if majority is not None:
            axes.axhline(majority, color="black", linestyle="--", lw=1, label="majority")
        _label_bars(axes, names)
        _scale_bars(axes, [row.ci95[0] if row.ci95 else row.score for row in shown if row.score is not None])
    return _finish(figure, f"{study.name}: final scores with 95% intervals over examples", panels.values())


def printed_bars(study: Study, rows: Sequence[Row], lines: Sequence[Line]) -> Figure | None:
    """Draws ours beside what the paper prints, one panel per task, metric and model; `None` if nothing is printed.

    Perplexities and points are no percentages and have no panel.
    """
    lines = [line for line in lines if line.printed and line.printed.unit == "percent"]
    if not lines:
        return None
    fields = varying_fields(rows)
    labels = _labels(rows, fields)
    models = len({line.cell.model for line in lines}) > 1
    titles: dict[str, list[Line]] = {}
    for line in lines:
        assert line.printed is not None
        test = line.printed.split == "test" and not line.comparable
        told = [line.cell.task, line.metric, *([line.cell.model] if models else [])]
        title = ", ".join(told) + ("\n(the paper's: test split)" if test else "")
        titles.setdefault(title, []).append(line)
    figure, panels = _grid(list(titles), "percent")
    for title, axes in panels.items():
        lows: list[float | None] = []
        names = [method_label(line.cell, fields) for line in titles[title]]
        for place, (line, name) in enumerate(zip(titles[title], names, strict=True)):
            assert line.printed is not None  # they are the lines that a paper prints
            colour = _style(labels, name)[0]
            value, ends = (line.ours.value, line.ours.ci95) if line.ours else (None, None)
            _draw_bar(axes, place - 0.2, value, ends, colour, width=0.38)
            theirs = line.printed.ci95
            _draw_bar(axes, place + 0.2, line.printed.value, theirs, colour, width=0.38, hollow=True)
            lows += [value, line.printed.value, *(pair[0] for pair in (ends, theirs) if pair)]
        _label_bars(axes, names)
        _scale_bars(axes, lows)
    models_of = sorted({line.printed.model for line in lines if line.printed})
    title = f"{study.name}: ours (filled) beside the paper's {', '.join(models_of)} (hollow), 95% intervals"
    return _finish(figure, title, panels.values())


def to_svg(figure: Figure) -> str:
    """The picture as SVG that takes the colours of a light or a dark page, as the reader has it."""
    out = io.StringIO()
    # a salt, or the names of parts would differ from call to call
    with matplotlib.rc_context({"svg.hashsalt": "nlu_ppo"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = out.getvalue()
    drawn = drawn[drawn.index("<svg") :]  # what stands before would send a reader to the network
    drawn = drawn.replace("#000000", "currentColor").replace(
        f"stroke: {_GRID}", "stroke: currentColor; stroke-opacity: 0.15"
    )
    head, _, rest = drawn.partition(">")
    return f"{head}>{_THEME}{rest}"


def mean_curve(curves: Sequence[Points]) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    """Mean over seeds at every x that any seed has, within the range that all seeds cover.

    Outside of that range the mean would be of other seeds than inside, and jump. Between its own points a
    seed's curve is taken as straight.

    Args:
        curves: per seed, (x, y) in ascending order of x; none empty.

    Returns:
        x, mean, and sample deviation (`None` for one seed), each of shape (points,). Empty if the seeds have
        no common range.
    """
    first, last = max(c[0][0] for c in curves), min(c[-1][0] for c in curves)
    x = np.array(sorted({x for curve in curves for x, _ in curve if first <= x <= last}))
    values = np.array([np.interp(x, [p[0] for p in curve], [p[1] for p in curve]) for curve in curves])
    return x, values.mean(axis=0), values.std(axis=0, ddof=1) if len(curves) > 1 else None


def _draw_curve(axes: Axes, curves: Sequence[Points], label: str, colour: str, mark: str) -> None:
    x, mean, deviation = mean_curve(curves)
    # A mark per point as long as they stay apart.
    every = max(1, len(x) // 12)
    axes.plot(x, mean, color=colour, marker=mark, markersize=4, markevery=every, lw=1.8, label=label)
    if deviation is not None:
        axes.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.18, lw=0)


def _draw_bar(
    axes: Axes,
    place: float,
    score: float | None,
    ci95: Interval | None,
    colour: str,
    *,
    width: float = 0.72,
    hollow: bool = False,
) -> None:
    if score is None:
        axes.text(place, 1, "-", ha="center", va="bottom", fontsize=12)
        return
    face: dict[str, Any] = {"color": colour, "alpha": 0.85}
    if hollow:
        face = {"facecolor": "none", "edgecolor": colour, "hatch": "////", "lw": 1}
    axes.bar(place, score, width=width, **face)
    top = max(score, 0.0)
    if ci95 is not None:
        low, high = ci95
        # A mean of endpoints needn't enclose a score given with few digits; lengths must not be negative.
        lengths = [[max(0.0, score - low)], [max(0.0, high - score)]]
        axes.errorbar(place, score, lengths, color="black", capsize=3, lw=1.2)
        top = max(top, high)
    axes.text(place, top + 1, f"{score:.1f}", ha="center", va="bottom", fontsize=8 if width > 0.5 else 6.5)


def _label_bars(axes: Axes, names: Sequence[str]) -> None:
    axes.axhline(0, color="black", lw=0.8)
    crowded = max(map(len, names)) * len(names) > 36
    slant: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axes.set_xticks(range(len(names)), [name.replace(" (", "\n(") for name in names], **slant)
    axes.set_xlim(-0.6, len(names) - 0.4)


def _scale_bars(axes: Axes, lows: Iterable[float | None]) -> None:
    """Room for the numbers above bars that reach 100; below 0 only for scores that can be negative."""
    axes.set_ylim(min([0.0, *(low - 4 for low in lows if low is not None and low < 0)]), 112)
    axes.set_yticks([tick for tick in range(-100, 101, 20) if tick >= axes.get_ylim()[0]])


def _panels(rows: Iterable[Row], fields: tuple[str, ...]) -> tuple[Figure, dict[Panel, Axes]]:
    """An empty panel for each task and model of `rows`, titled, in the order of the rows."""
    keys = dict.fromkeys((r.cell.task, r.cell.model) for r in sorted(rows, key=lambda r: cell_order(r.cell)))
    titles = [f"{task}, {model}" if "model" in fields else task for task, model in keys]
    figure, panels = _grid(titles, "score (0 to 100)")
    return figure, dict(zip(keys, panels.values(), strict=True))


def _grid(titles: Sequence[str], label: str) -> tuple[Figure, dict[str, Axes]]:
    lines = math.ceil(len(titles) / _MAX_COLUMNS)
    columns = math.ceil(len(titles) / lines)
    # A Figure of its own, not pyplot's: no global state, and no display is ever asked for.
    layout = ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.06)
    figure = Figure(figsize=(max(_PANEL[0] * columns, 6.4), _PANEL[1] * lines + 0.9), layout=layout)
    FigureCanvasAgg(figure)
    panels = {}
    for place, title in enumerate(titles, start=1):
        axes = figure.add_subplot(lines, columns, place)
        axes.set_title(title, fontsize=10, fontweight="bold")
        if place % columns == 1 or columns == 1:
            axes.set_ylabel(label)
        axes.grid(axis="y", color=_GRID, lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        panels[title] = axes
    return figure, panels


def _finish(figure: Figure, title: str, panels: Iterable[Axes]) -> Figure:
    """Title, and one legend below all panels."""
    figure.suptitle(title, fontsize=10)
    handles: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9
        )
    return figure


def _labels(rows: Iterable[Row], fields: tuple[str, ...]) -> list[str]:
    """All methods of the study, told apart, in order: a method looks the same in every panel."""
    cells = [row.cell._replace(task="", model="") for row in rows if row.cell.method != MAJORITY]
    return list(dict.fromkeys(method_label(cell, fields) for cell in sorted(cells, key=cell_order)))


def _style(labels: Sequence[str], label: str) -> tuple[str, str]:
    """Colour and mark: familiar methods have their own colour, further ones take what is left, in turn."""
    free = [c for c in _COLOURS if c not in {_FIXED.get(name) for name in labels}] or list(_COLOURS)
    others = [name for name in labels if name not in _FIXED]
    colour = _FIXED[label] if label in _FIXED else free[others.index(label) % len(free)]
    return colour, _MARKS[labels.index(label) % len(_MARKS)]


def _has_untrained(rows: Iterable[Row]) -> bool:
    return any(row.cell.method in _UNTRAINED and row.score is not None for row in rows)


def _thousands(value: float, _: int | None = None) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"
