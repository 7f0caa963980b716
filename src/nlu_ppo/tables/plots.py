"""Pictures of a study: how scores rise with training examples, and where they end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

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
_MAX_COLUMNS = 4

FloatArray = npt.NDArray[np.float64]
Points = list[tuple[float, float]]
Panel = tuple[str, str]  # task, model


def learning_curves(study: Study, rows: Sequence[Row], path: Path) -> bool:
    """Draws `select/score` over training examples, one panel per task (and model), one line per method.

    The line is the mean over seeds and its band one sample deviation to each side, over the range of examples
    that all seeds cover. Methods without training are horizontal lines at their final score; those are of the
    evaluation set, while curves are of the slice held out of train.

    Returns:
        Whether there was a curve to draw; without any, nothing is written.
    """
    runs: dict[Cell, list[Run]] = {}
    for run in study.runs:
        runs.setdefault(run.cell, []).append(run)
    curves = {
        cell: [c for c in (read_curve(run, CURVE) for run in group) if c] for cell, group in runs.items()
    }
    curves = {cell: found for cell, found in curves.items() if found}
    if not curves:
        return False
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
        axes.set_xlabel("training examples seen")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    band = "; band: ± 1 deviation over seeds" if any(len(c) > 1 for c in curves.values()) else ""
    lines = (
        "\nhorizontal: final score on the evaluation set, without training" if _has_untrained(rows) else ""
    )
    _finish(figure, f"{study.name}: score on the slice held out of train{band}{lines}", panels.values(), path)
    return True


def score_bars(study: Study, rows: Sequence[Row], path: Path) -> None:
    """Draws the final scores with their 95% intervals, one panel per task (and model), one bar per method.

    The dashed line is the majority baseline. A cell without a finished run keeps its place, marked `-`.
    """
    fields = varying_fields(rows)
    labels = _labels(rows, fields)
    figure, panels = _panels([row for row in rows if row.cell.method != MAJORITY], fields)
    for (task, model), axes in panels.items():
        shown = [row for row in rows if (row.cell.task, row.cell.model) == (task, model)]
        names = [method_label(row.cell, fields) for row in shown]
        for place, (row, name) in enumerate(zip(shown, names, strict=True)):
            _draw_bar(axes, place, row, _style(labels, name)[0])
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
        axes.axhline(0, color="black", lw=0.8)
        crowded = max(map(len, names)) * len(names) > 36
        slant: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
        axes.set_xticks(range(len(shown)), [name.replace(" (", "\n(") for name in names], **slant)
        axes.set_xlim(-0.6, len(shown) - 0.4)
        lows = [row.ci95[0] if row.ci95 else row.score for row in shown if row.score is not None]
        # Room for the numbers above bars that reach 100; below 0 only for scores that can be negative.
        axes.set_ylim(min([0.0, *(low - 4 for low in lows if low is not None and low < 0)]), 112)
        axes.set_yticks([tick for tick in range(-100, 101, 20) if tick >= axes.get_ylim()[0]])
    _finish(figure, f"{study.name}: final scores with 95% intervals over examples", panels.values(), path)


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


def _draw_bar(axes: Axes, place: int, row: Row, colour: str) -> None:
    if row.score is None:
        axes.text(place, 1, "-", ha="center", va="bottom", fontsize=12)
        return
    axes.bar(place, row.score, width=0.72, color=colour, alpha=0.85)
    top = max(row.score, 0.0)
    if row.ci95 is not None:
        low, high = row.ci95
        # A mean of endpoints needn't enclose a score given with few digits; lengths must not be negative.
        lengths = [[max(0.0, row.score - low)], [max(0.0, high - row.score)]]
        axes.errorbar(place, row.score, lengths, color="black", capsize=3, lw=1.2)
        top = max(top, high)
    axes.text(place, top + 1, f"{row.score:.1f}", ha="center", va="bottom", fontsize=8)


def _panels(rows: Iterable[Row], fields: tuple[str, ...]) -> tuple[Figure, dict[Panel, Axes]]:
    """An empty panel for each task and model of `rows`, titled, in the order of the rows."""
    keys = list(
        dict.fromkeys((r.cell.task, r.cell.model) for r in sorted(rows, key=lambda r: cell_order(r.cell)))
    )
    lines = math.ceil(len(keys) / _MAX_COLUMNS)
    columns = math.ceil(len(keys) / lines)
    # A Figure of its own, not pyplot's: no global state, and no display is ever asked for.
    figure = Figure(figsize=(max(_PANEL[0] * columns, 6.4), _PANEL[1] * lines + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = {}
    for place, (task, model) in enumerate(keys, start=1):
        axes = figure.add_subplot(lines, columns, place)
        axes.set_title(f"{task}, {model}" if "model" in fields else task, fontsize=10, fontweight="bold")
        if place % columns == 1 or columns == 1:
            axes.set_ylabel("score (0 to 100)")
        axes.grid(axis="y", color="0.9", lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        panels[task, model] = axes
    return figure, panels


def _finish(figure: Figure, title: str, panels: Iterable[Axes], path: Path) -> None:
    """Title, one legend below all panels, and the file."""
    figure.suptitle(title, fontsize=10)
    handles: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9
        )
    figure.savefig(path, dpi=150)


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
