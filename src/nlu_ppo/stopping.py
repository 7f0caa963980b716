"""Signals that ask a run to end. Training answers them with a checkpoint at the end of the step.

Ctrl-C, SIGTERM (`kill`, Slurm's preemption), SIGHUP (the terminal is gone) and SIGUSR1 (Slurm's warning ahead of
the time limit, `sbatch --signal=USR1@120`). A signal that is ignored, as SIGHUP is after nohup, stays ignored.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from nlu_ppo import ranks


def _known(*names: str) -> tuple[signal.Signals, ...]:
    """Those that this system has: Windows lacks most of them."""
    return tuple(signal.Signals[name] for name in names if hasattr(signal, name))


ASKING = _known("SIGINT", "SIGTERM", "SIGHUP")
WARNING = _known("SIGUSR1", "SIGUSR2")  # of an end that comes later: SIGTERM behind it is no second request
TOGETHER = 1.0  # seconds: Slurm and make each pass one request on, and what comes twice so soon is the same


class Interrupted(KeyboardInterrupt):
    """A signal has ended a run. Like Ctrl-C's exception it passes whatever catches `Exception`."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(self.name)

    @property
    def exit_code(self) -> int:
        """What shells report of a process that the signal has killed: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


class _Requests:
    """What this process was asked, and whether it answers at once or at the end of a step."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.waits = False
        self.raised = False
        self._since: float | None = None  # time.monotonic() of the first that wasn't only a warning

    def take(self, number: int, frame: Any) -> None:
        """The signal handler."""
        now, first = time.monotonic(), self.number is None
        urgent = number not in WARNING
        insistent = urgent and self._since is not None and now - self._since > TOGETHER
        if urgent and self._since is None:
            self._since = now
        if first:
            self.number = number
        if insistent or (first and not self.waits):
            self.raised = True
            raise Interrupted(number)
        if first:
            said = "the run writes a checkpoint after this step and ends; once more ends it at once"
            os.write(2, f"\n{Interrupted(number).name}: {said}\n".encode())  # print may be at work just now


_requests: _Requests | None = None


@contextlib.contextmanager
def signals_heeded() -> Iterator[None]:
    """Within, signals end the run by `Interrupted`; the outermost of several such blocks counts.

    A handler that was there before has its turn at the end: submitit's, which puts a preempted job back into Slurm's
    queue, thus runs once the checkpoint is written. SIGUSR2 is heeded only where it has such a handler.
    """
    global _requests
    if _requests is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _requests = _Requests()
    before: dict[int, Any] = {}
    for number in (*ASKING, *WARNING):
        earlier = signal.getsignal(number)
        if earlier is None or earlier is signal.SIG_IGN:  # None: somebody's handler that Python can't call
            continue
        if callable(earlier) or number.name != "SIGUSR2":
            before[number] = signal.signal(number, _requests.take)
    try:
        yield
    except Interrupted as stop:
        _give_back(before)
        earlier = before[stop.number]
        if callable(earlier) and earlier is not signal.default_int_handler:
            earlier(stop.number, None)
        raise
    finally:
        _give_back(before)
        _requests = None


def _give_back(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def at_step_ends() -> Iterator[None]:
    """Within, a request waits until the block asks for it; only a second one ends the run at once."""
    with _waiting(True):
        yield


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Within, as outside `at_step_ends`: a request, also one that waits already, ends the block by `Interrupted`.

    And by nothing else: a library in whose middle it was raised may make an error of its own of it.
    """
    leave_if_requested()
    try:
        with _waiting(False):
            yield
    except Exception as error:
        if _requests is None or _requests.number is None or not _requests.raised:
            raise
        raise Interrupted(_requests.number) from error
    finally:
        if _requests is not None:
            _requests.raised = False


@contextlib.contextmanager
def _waiting(waits: bool) -> Iterator[None]:
    if _requests is None:
        yield
        return
    before, _requests.waits = _requests.waits, waits
    try:
        yield
    finally:
        _requests.waits = before


def requested() -> bool:
    """Whether a signal has asked this process to end."""
    return _requests is not None and _requests.number is not None


def agree() -> bool:
    """Whether a signal has asked this process to end, or another one of the same run, whose request then is this one's
    too: all leave after the same step. Together (`ranks`)."""
    asked = [number for number in ranks.gather(_requests.number if _requests is not None else None) if number]
    if asked and _requests is not None and _requests.number is None:
        _requests.number = asked[0]
    return requested()


def leave_if_requested() -> None:
    """Raises `Interrupted` if a signal has asked for it; together."""
    agree()
    if _requests is not None and _requests.number is not None:
        raise Interrupted(_requests.number)
