"""A queue of commands, so many at a time, each in a process of its own: one that dies touches no other.

Knows nothing of runs, nor of Hydra. POSIX only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POLL = 0.1  # seconds between two looks at the processes


@dataclass(frozen=True)
class Job:
    """A command to run.

    Attributes:
        log: the file that its output goes to, behind what is there.
        message: what it finds on its standard input. The pipe stays open behind it for as long as this process
            lives, however it ends, so that a job can notice its end.
        environment: variables of its own, which win over those of its slot.
    """

    name: str
    command: Sequence[str]
    log: Path
    message: bytes = b""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Running:
    """A job at work; `began` is in seconds of `time.monotonic()`, which nobody sets."""

    job: Job
    process: subprocess.Popen[bytes]
    began: float
    attempt: int


@dataclass(frozen=True)
class Ended:
    """An attempt at a job that is over.

    Attributes:
        code: exit code; negative: the number of the signal that killed it.
        again: it failed and will be tried again.
        error: more than the code says, in words: why it could not even be started.
    """

    job: Job
    code: int
    seconds: float
    again: bool = False
    error: str = ""

    @property
    def how(self) -> str:
        """In words."""
        if self.error:
            return self.error
        if self.code >= 0:
            return f"exit code {self.code}"
        killer = _name_of(-self.code)
        hint = " (by a user, or by the system when memory runs out)" if killer == "SIGKILL" else ""
        return f"killed by {killer}{hint}"


class StopRequests:
    """Counts signals that ask this process to stop, as long as it is entered."""

    def __init__(self, *signals: signal.Signals) -> None:
        self.count = 0
        self._signals = signals
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        for number in self._signals:
            handler = signal.getsignal(number)
            if (
                handler is not signal.SIG_IGN
            ):  # stays so: nohup, and jobs that a script starts in the background
                self._before[number] = handler
                signal.signal(number, self._take)

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: Any) -> None:
        self.count += 1


class Queue:
    """Works off jobs in their order, as many at a time as there are slots.

    Args:
        slots: for each slot the environment variables of the jobs that run in it.
        retries: how often a job that failed is tried again, behind all others.
        hopeless: exit codes after which it isn't.
        grace: seconds between SIGTERM and SIGKILL when this process is asked to stop.
    """

    def __init__(
        self,
        slots: Sequence[Mapping[str, str]],
        *,
        retries: int = 0,
        hopeless: Container[int] = (),
        grace: float = 60.0,
    ) -> None:
        self.slots = slots
        self.retries, self.hopeless, self.grace = retries, hopeless, grace
        self.waiting: deque[tuple[Job, int]] = deque()  # with the number of the attempt
        self.running: dict[int, Running] = {}  # by slot
        self.stop = StopRequests(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._deadline: float | None = None

    @property
    def width(self) -> int:
        """How many jobs are at work at a time."""
        return len(self.slots)

    @property
    def at_work(self) -> list[tuple[Job, float]]:
        """The running jobs, and for how many seconds they have been at work."""
        now = time.monotonic()
        return [(running.job, now - running.began) for running in self.running.values()]

    @property
    def pending(self) -> list[Job]:
        """The jobs that wait, in their order."""
        return [job for job, _ in self.waiting]

    def work(
        self,
        jobs: Iterable[Job],
        on_end: Callable[[Ended], None] = lambda ended: None,
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        """Returns once all jobs have ended.

        SIGINT, SIGTERM and SIGHUP are passed on to the running jobs as SIGTERM; no other job is started then. A
        second one kills them at once.

        Args:
            on_end: hears of every attempt that is over.
            on_tick: is called several times a second.

        Raises:
            KeyboardInterrupt: this process was asked to stop; no job is running any more.
        """
        self.waiting.extend((job, 1) for job in jobs)
        try:
            with self.stop:
                while self.running or (self.waiting and not self.stop.count):
                    self._stop_jobs_if_asked()
                    for ended in [*self._start_jobs(), *self._collect_ended()]:
                        on_end(ended)
                    on_tick()
                    time.sleep(POLL)
        finally:
            for running in self.running.values():  # only after an error in here or in one of the callbacks
                _kill_group(running.process)
        if self.stop.count:
            raise KeyboardInterrupt

    # -- starting and ending ------------------------------------------------------------------------------

    def _start_jobs(self) -> Iterator[Ended]:
        """Fills the free slots. Yields the jobs that could not be started."""
        for number, environment in enumerate(self.slots):
            if self.stop.count or not self.waiting:
                return
            if number in self.running:
                continue
            job, attempt = self.waiting.popleft()
            try:
                self.running[number] = _start(job, environment, attempt)
            except OSError as error:
                yield Ended(job, 127, 0.0, error=f"could not be started ({error})")

    def _collect_ended(self) -> Iterator[Ended]:
        for number, running in list(self.running.items()):
            code = running.process.poll()
            if code is None:
                continue
            del self.running[number]
            _kill_group(running.process)  # what it may have left behind holds its GPU, and locks
            _close(running.process)
            job, attempt = running.job, running.attempt
            again = code != 0 and attempt <= self.retries and code not in self.hopeless
            again = again and not self.stop.count
            if again:
                self.waiting.append((job, attempt + 1))
            yield Ended(job, code, time.monotonic() - running.began, again)

    # -- stopping -----------------------------------------------------------------------------------------

    def _stop_jobs_if_asked(self) -> None:
        if not self.stop.count:
            return
        if self._deadline is None:
            self._deadline = time.monotonic() + self.grace
            for running in self.running.values():
                running.process.terminate()
        elif self.stop.count > 1 or time.monotonic() > self._deadline:
            for running in self.running.values():
                _kill_group(running.process)


def _start(job: Job, environment: Mapping[str, str], attempt: int) -> Running:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        began = time.strftime("%Y-%m-%d %H:%M:%S")
        log.write(f"--- {began}  {job.name}  (attempt {attempt})\n".encode())
        log.flush()
        # A session of its own: Ctrl-C at the terminal comes to this process only, which passes it on.
        process = subprocess.Popen(
            list(job.command), stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, bufsize=0,
            env={**os.environ, **environment, **job.environment}, start_new_session=True,
        )  # fmt: skip
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it is gone already; its exit code will tell
        process.stdin.write(job.message)
    return Running(job, process, time.monotonic(), attempt)


def _close(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a job with all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
