"""What a check found, and the file that holds it."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

DONE, FAILED, SKIPPED, CUT = "done", "failed", "skipped", "out of time"
TRIAL = "CPU TRIAL at toy sizes: it shows that every line runs. These numbers say nothing of any GPU, nor of this CPU."
SMALL = "TRIAL at toy sizes: it shows that every line runs. These numbers say nothing of this GPU."


@dataclass
class Row:
    """One measurement.

    Attributes:
        figures: by name; `*_s` are seconds, `*_bytes` bytes, `*_per_s` counts a second, `mfu*` fractions.
        bounds: the least and the largest value that a figure may have, of those that are held to something.
        note: why there are no figures, or what a reader must know of them.
    """

    name: str
    model: str
    figures: dict[str, float] = field(default_factory=dict)
    bounds: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    note: str = ""

    @property
    def breaches(self) -> list[str]:
        """The figures that are out of bounds. NaN always is."""
        found = []
        for name, (low, high) in self.bounds.items():
            value = self.figures[name]
            inside = (low is None or value >= low) and (high is None or value <= high)
            if not inside or math.isnan(value):
                wanted = f"at most {high:g}" if high is not None else f"at least {low:g}"
                found.append(f"{self.name}, {self.model}: {name} is {value:.3g}, wanted {wanted}")
        return found


@dataclass
class PartRecord:
    """What came of one part. `kind` is `correctness` or `speed`; `reason` says why it isn't `done`."""

    name: str
    kind: str
    allowance_s: float
    status: str = SKIPPED
    reason: str = ""
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)


@dataclass
class Report:
    """Everything of one run. The file is written again whenever something is added.

    Attributes:
        card: the GPU's name, or `none (CPU)`.
        trial: says so where sizes are toy sizes; empty for a measurement.
        complete: no part is missing since the command was interrupted.
    """

    path: Path
    card: str
    trial: str
    machine: dict[str, Any]
    versions: dict[str, str]
    parts: list[PartRecord] = field(default_factory=list)
    complete: bool = False

    @property
    def ok(self) -> bool:
        return all(part.status != FAILED for part in self.parts)

    def write(self) -> None:
        """In one piece: an interrupted write leaves the former file."""
        values = {
            "schema": 1,
            "card": self.card,
            "trial": self.trial,
            "complete": self.complete,
            "ok": self.ok,
            "machine": self.machine,
            "versions": self.versions,
            "parts": [asdict(part) for part in self.parts],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text(json.dumps(_finite(values), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, self.path)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value


def file_name(card: str, trial: str) -> str:
    """`gpu-nvidia-h200.json`; what is a trial only says so in its name."""
    slug = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    return f"gpu-{slug}{'-trial' if trial else ''}.json"
