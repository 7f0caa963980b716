"""Runs parts one after the other: each within its time, none able to end another, nothing lost if it stops."""

from __future__ import annotations

import contextlib
import signal
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu_check.record import CUT, DONE, FAILED, SKIPPED, PartRecord, Report, Row
from benchmarks.worker import release_memory, settle
from nlu_ppo.models.room import NoRoomError

GRACE = 20.0  # seconds by which a part may overrun before it is ended from outside
LEAST = 5.0  # seconds that must be left for a part to begin


class SkippedError(Exception):
    """A part can't be run here; the message says why."""


class OutOfTimeError(Exception):
    """A part's time is over."""


class Clock:
    """Time that is left."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    def check(self) -> None:
        """
        Raises:
            OutOfTimeError: nothing is left.
        """
        if self.left <= 0:
            raise OutOfTimeError


Add = Callable[[Row], None]


@dataclass(frozen=True)
class Part:
    """Something to find out.

    Attributes:
        kind: `correctness` or `speed`.
        seconds: its allowance.
        run: measures within the clock's time and hands every row to `add` as soon as it is known.
    """

    name: str
    kind: str
    seconds: float
    run: Callable[[Clock, Add], None]


def run_parts(parts: Sequence[Part], report: Report, budget: float, say: Callable[[str], None]) -> int:
    """Runs all parts within `budget` seconds.

    Returns:
        the exit status: 1 if a part failed, or a figure of correctness is out of bounds; 0 otherwise.
    """
    whole = Clock(budget)
    report.write()
    for part in parts:
        record = PartRecord(part.name, part.kind, min(part.seconds, max(whole.left, 0.0)))
        report.parts.append(record)
        if whole.left < LEAST:
            # what was never checked isn't right
            record.status = FAILED if part.kind == "correctness" else SKIPPED
            record.reason = f"the {budget:.0f} s were over"
        else:
            _run(part, record, report)
        report.write()
        say(f"{part.name}: {record.status} in {record.seconds:.0f} s {record.reason}".rstrip())
    report.complete = True
    report.write()
    return 0 if report.ok else 1


def _run(part: Part, record: PartRecord, report: Report) -> None:
    def add(row: Row) -> None:
        record.rows.append(row)
        report.write()

    begun = time.monotonic()
    try:
        with _ended_after(record.allowance_s + GRACE):
            part.run(Clock(record.allowance_s), add)
        record.status = DONE
    except SkippedError as reason:
        record.status, record.reason = SKIPPED, str(reason)
    except OutOfTimeError:
        record.status = FAILED if part.kind == "correctness" else CUT
        record.reason = f"took more than {record.allowance_s:.0f} s"
    except Exception as error:
        record.status, record.reason = FAILED, _described(error)
    finally:
        release_memory()
        record.seconds = round(time.monotonic() - begun, 2)
    breaches = [breach for row in record.rows for breach in row.breaches]
    if breaches:
        record.status, record.reason = FAILED, "; ".join(filter(None, [record.reason, *breaches]))


def _described(error: Exception) -> str:
    """The error and the place of ours where it came up, in one line."""
    ours = [f for f in traceback.extract_tb(error.__traceback__) if "benchmarks" in f.filename]
    lines = str(error).strip().splitlines()
    place = f" ({ours[-1].name}, line {ours[-1].lineno})" if ours else ""
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}{place}"


@contextlib.contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    """Ends the block by an error after so many seconds, where the system has an alarm for that."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: Any) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def rounds_of(
    action: Callable[[], Any], clock: Clock, most: int = 5, warm_up: int = 1
) -> tuple[float, int, list[Any]]:
    """Times an action, waiting for the device before and behind it.

    Returns:
        the median of its rounds in seconds, how many they were, and what they gave back. There are `most` of
        them or as many as the clock leaves time for, but one at least.
    """
    for _ in range(warm_up):
        action()
    seconds: list[float] = []
    found: list[Any] = []
    while len(seconds) < most and (not seconds or clock.left > seconds[-1]):
        settle()
        start = time.perf_counter()
        found.append(action())
        settle()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), len(seconds), found


def try_row(name: str, model: str, clock: Clock, add: Add, measure: Callable[[], Row]) -> Row | None:
    """Adds a row; without time left, or without memory, it says so, and the rest of the part goes on.

    Returns:
        the row, if it was measured.
    """
    if clock.left <= 0:
        add(Row(name, model, note="skipped: no time left"))
        return None
    try:
        row = measure()
    except (torch.OutOfMemoryError, NoRoomError):  # at all, or with one row at a time
        row = Row(name, model, note="skipped: out of memory")
        release_memory()
    add(row)
    return row if row.figures else None
