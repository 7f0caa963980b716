"""What a person sees of a grid at work: redrawn on a terminal, a few lines now and then in a log file."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nlu_ppo.errors import MALFORMED

COLUMNS = {"reward": "train/reward", "KL": "ppo/kl", "accuracy": "train/accuracy", "held out": "select/score"}
TAIL = 1 << 16  # bytes of metrics.jsonl that are looked at
SPEED_LINES = 10  # the speed is that of so many last lines
REDRAW = 0.5  # seconds, on a terminal
REPEAT = 60.0  # seconds between two looks at all running cells, in a log file


@dataclass(frozen=True)
class Active:
    """A cell at work."""

    name: str
    seconds: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Grid:
    """The whole sweep at one moment. `remaining` is in seconds, `None` as long as no cell has finished."""

    title: str
    done: int
    failed: int
    waiting: int
    running: Sequence[Active]
    seconds: float
    remaining: float | None = None

    @property
    def cells(self) -> int:
        return self.done + self.failed + self.waiting + len(self.running)


def headline(grid: Grid, over: bool = False) -> str:
    """All cells in one line; `over`: nothing is at work any more, and what waits will not be started."""
    text = (
        f"{grid.title}: {grid.done} of {grid.cells} done, {len(grid.running)} running, {grid.failed} failed, "
        f"{grid.waiting} waiting; {duration(grid.seconds)} gone"
    )
    if (grid.running or grid.waiting) and not over:
        left = (
            "unknown until a cell is done" if grid.remaining is None else f"about {duration(grid.remaining)}"
        )
        text += f", left: {left}"
    return text


def row(cell: Active) -> list[str]:
    """The columns of a running cell: name, step, `COLUMNS`, samples/s, time; `-` for what it doesn't have."""
    numbers = [number(cell.metrics.get(name), 2) for name in COLUMNS]
    step, speed = number(cell.metrics.get("step"), 0), number(cell.metrics.get("samples/s"), 1)
    return [cell.name, step, *numbers, speed, duration(cell.seconds)]


def line(cell: Active) -> str:
    """A running cell in one line, without what it doesn't have."""
    names = ["step", *COLUMNS, "samples/s", "running for"]
    told = [f"{name} {value}" for name, value in zip(names, row(cell)[1:], strict=True) if value != "-"]
    return f"  {cell.name}: {', '.join(told)}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`, `2 d 3 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def number(value: float | None, digits: int) -> str:
    """`-` for a number that isn't there."""
    return "-" if value is None else f"{value:.{digits}f}"


# -- what runs say of themselves -----------------------------------------------------------------------------


def last_metrics(path: Path, since: float) -> dict[str, float]:
    """The last step, the last value of each of `COLUMNS`, and samples/s, of a run's metrics.jsonl.

    Args:
        since: when the run was started (`time.time()`). What was written earlier is of an earlier attempt.
    """
    try:
        return _shown(_tail(path)) if path.stat().st_mtime >= since else {}
    except (OSError, *MALFORMED):  # none yet, being replaced, or damaged: what can't be read can't be shown
        return {}


def _shown(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found = {"step": float(lines[-1]["step"])}
    for name, key in COLUMNS.items():
        values = [line[key] for line in lines if line.get(key) is not None]
        if values:
            found[name] = float(values[-1])
    speed = _speed(lines)
    return found if speed is None else {**found, "samples/s": speed}


def _tail(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as stream:
        beginning = max(0, stream.seek(0, 2) - TAIL)
        stream.seek(beginning)
        lines = stream.read().split(b"\n")[:-1]  # behind the last line break nothing, or a line half written
    return [json.loads(line) for line in lines[1 if beginning else 0 :]]


def _speed(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Training examples per second over the last lines of one attempt, whose clock begins at 0."""
    last = first = lines[-1]
    for line in reversed(lines[-SPEED_LINES:]):
        if line["seconds"] > first["seconds"]:
            break
        first = line
    seconds, examples = last["seconds"] - first["seconds"], last["examples"] - first["examples"]
    return examples / seconds if seconds > 0 and examples > 0 else None


# -- on the screen -------------------------------------------------------------------------------------------


@dataclass
class Display:
    """Shows a grid on standard output."""

    terminal: bool = field(default_factory=lambda: sys.stdout.isatty())
    _shown: float = 0.0
    _live: Any = None
    _open: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Display:
        self._shown = time.monotonic()
        if self.terminal:
            from rich.console import Console
            from rich.live import Live

            live = Live(console=Console(), auto_refresh=False, transient=True)
            self._live = self._open.enter_context(live)
        return self

    def __exit__(self, *error: Any) -> None:
        with suppress(OSError):
            self._open.close()

    def due(self) -> bool:
        """Whether `show` has something to do; what it shows takes work to find out."""
        return time.monotonic() - self._shown >= (REDRAW if self.terminal else REPEAT)

    def show(self, grid: Grid) -> None:
        """Shows the grid as it is now."""
        self._shown = time.monotonic()
        with suppress(OSError):  # a terminal that is gone must not cost the runs their time to end in
            if self._live is not None:
                self._live.update(drawn(grid), refresh=True)
            else:
                print("\n".join([headline(grid), *map(line, grid.running)]), flush=True)

    def say(self, text: str) -> None:
        """Prints lines that stay."""
        with suppress(OSError):
            if self._live is not None:
                self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                print(text, flush=True)


def drawn(grid: Grid) -> Any:
    """Headline and running cells, for rich."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("running", overflow="fold")
    for name in ("step", *COLUMNS, "samples/s", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for cell in grid.running:
        table.add_row(*map(Text, row(cell)))
    return Group(Text(headline(grid), style="bold"), *([table] if grid.running else []))
