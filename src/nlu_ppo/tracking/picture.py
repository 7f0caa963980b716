"""A run's own picture: its learning curves, drawn from metrics.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nlu_ppo.tracking.folder import RunFolder

NAME = "learning_curve.png"
# What is drawn, one panel each, if the run logged it: name of the metric, label of the axis.
PANELS = (
    ("select/score", "score on the held-out slice (percent)"),
    ("train/reward", "mean reward"),
    ("train/loss", "training loss"),
    ("ppo/kl", "KL to the reference (nats per completion)"),
)


def draw_run(folder: RunFolder, title: str) -> Path | None:
    """Writes `learning_curve.png` into the run folder; `None` if the run logged nothing to draw."""
    lines = folder.read_metrics()
    drawn = [(name, label) for name, label in PANELS if any(line.get(name) is not None for line in lines)]
    if not drawn:
        return None
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    figure = Figure(figsize=(4.2 * len(drawn), 3.2), layout="constrained")
    for i, (name, label) in enumerate(drawn, start=1):
        axes: Any = figure.add_subplot(1, len(drawn), i)
        points = [(line["examples"], line[name]) for line in lines if line.get(name) is not None]
        axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 30 else None, markersize=3)
        axes.set_xlabel("training examples")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    path = folder.path / NAME
    figure.savefig(path, dpi=110)
    return path
