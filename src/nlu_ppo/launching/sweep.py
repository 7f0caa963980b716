"""The runs of a sweep at work: what goes into a queue, what comes out of it, what is shown meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from nlu_ppo.errors import CellError
from nlu_ppo.launching.display import Active, Display, Grid, duration, headline, last_metrics, number
from nlu_ppo.launching.estimate import Durations, Kind
from nlu_ppo.launching.order import Order
from nlu_ppo.launching.processes import Ended, Job, StopRequests
from nlu_ppo.run import Run, finished_result, record_end
from nlu_ppo.tracking.folder import LOG

log = logging.getLogger(__name__)

Identity: TypeAlias = tuple[Path, str]  # of a run: folder and key
Outcome: TypeAlias = dict[str, Any] | Exception  # what result.json holds, or why there is no result


@dataclass(frozen=True)
class Cell:
    """A cell of the grid, composed.

    Attributes:
        job_logging, verbose, environment: what Hydra sets for a job: its log, and environment variables.
    """

    name: str
    run: Run
    job_logging: dict[str, Any]
    verbose: bool | str | list[str]
    environment: dict[str, str]

    @property
    def identity(self) -> Identity:
        return self.run.folder, self.run.key

    @property
    def kind(self) -> Kind:
        names = self.run.names
        return tuple(str(names[group]) for group in ("method", "model", "task"))


@dataclass(frozen=True)
class RunJob(Job):
    """The job of a run. `last_words` is a file that it writes its error to, if it can."""

    cell: Cell | None = None
    last_words: Path = Path()


class JobQueue(Protocol):
    """What works off jobs: processes of this machine, or a cluster."""

    stop: StopRequests

    @property
    def width(self) -> int:
        """How many jobs are at work at a time."""

    @property
    def at_work(self) -> list[tuple[Job, float]]:
        """The running jobs, and for how many seconds they have been at work."""

    @property
    def pending(self) -> list[Job]:
        """The jobs that wait, in their order."""

    def work(self, jobs: Iterable[Job], on_end: Callable[[Ended], None], on_tick: Callable[[], None]) -> None:
        """Returns once all have ended. Raises KeyboardInterrupt if this process was asked to stop."""


class Sweep:
    """The runs of a grid.

    Args:
        runs: all of them.
        outcomes: of the runs that are finished already; those of the others are added.
        folder: for files that runs leave their errors in.
        how: in words, how many are at work at a time and where.
    """

    def __init__(
        self,
        runs: Sequence[Cell],
        outcomes: dict[Identity, Outcome],
        queue: JobQueue,
        folder: Path,
        how: str,
    ) -> None:
        self.runs, self.outcomes, self.queue, self.folder, self.how = runs, outcomes, queue, folder, how
        self.began = time.monotonic()
        self.durations = Durations()
        for cell in runs:
            result = outcomes.get(cell.identity)
            if isinstance(result, dict):
                self.durations.add(cell.kind, sum(result["seconds"].values()))
        self.display = Display()
        self.clerk = ThreadPoolExecutor(1)  # MLflow may take its time, and GPUs shouldn't wait for it

    def work(self, command: Sequence[str] = ()) -> None:
        """Runs what isn't finished, each by `command`."""
        with ExitStack() as stack:
            stack.enter_context(self.clerk)
            stack.enter_context(self.display)
            new = [cell for cell in self.runs if cell.identity not in self.outcomes]
            jobs = [self._job(cell, command) for cell in new]
            self.display.say(f"{len(jobs)} runs to do, {self.how}; each writes {LOG} in its folder")
            try:
                self.queue.work(jobs, self._ended, self._tick)
            finally:
                self.display.say(headline(self._grid(), over=True))

    def _job(self, cell: Cell, command: Sequence[str]) -> RunJob:
        run, last_words = cell.run, self.folder / f"{cell.run.key}.error"
        last_words.unlink(missing_ok=True)  # of an earlier sweep
        order = Order(
            cell.name, run.config, run.folder, last_words, cell.job_logging, cell.verbose, run.typed
        )
        environment = {"PYTHONUNBUFFERED": "1", **cell.environment}
        return RunJob(cell.name, command, run.folder / LOG, order.to_line(), environment, cell, last_words)

    def _tick(self) -> None:
        if self.display.due():
            self.display.show(self._grid())

    def _grid(self) -> Grid:
        running, active = [], []
        for job, seconds in self.queue.at_work:
            cell = _cell(job)
            metrics = last_metrics(cell.run.folder / "metrics.jsonl", time.time() - seconds)
            running.append((cell.kind, seconds))
            active.append(Active(cell.name, seconds, metrics))
        waiting = [_cell(job).kind for job in self.queue.pending]
        done = sum(isinstance(outcome, dict) for outcome in self.outcomes.values())
        return Grid(
            title=self.runs[0].run.config.study,
            done=done,
            failed=len(self.outcomes) - done,
            waiting=len(self.runs) - len(self.outcomes) - len(active),
            running=active,
            seconds=time.monotonic() - self.began,
            remaining=self.durations.remaining(running, waiting, self.queue.width),
        )

    def _ended(self, ended: Ended) -> None:
        """Finds out what an attempt came to, and says it."""
        cell, said = _cell(ended.job), read_last_words(ended.job)
        can_be_old = cell.run.config.overwrite and ended.code != 0
        result = None if can_be_old else finished_result(cell.run)
        if result is not None:
            self.outcomes[cell.identity] = result
            self.durations.add(cell.kind, ended.seconds)
            score = number(result.get("score"), 1)
            self.display.say(f"done: {cell.name}: score {score}, {duration(ended.seconds)}")
            return
        how = ended.how if ended.code else "it left before it had a result (exit code 0)"
        stopped = self.queue.stop.count > 0 and not said
        if not said and not ended.again:
            self.clerk.submit(_record_end, cell.run, "interrupted" if stopped else "failed", how)
        if stopped:
            self.display.say(f"stopped: {cell.name}")
            return
        error = CellError(f"{said or how}\n{f'{how}, ' if said else ''}log: {ended.job.log}")
        if not ended.again:
            self.outcomes[cell.identity] = error
        self.display.say(f"failed{', will be tried again' * ended.again}: {cell.name}: {error}")


def _cell(job: Job) -> Cell:
    assert isinstance(job, RunJob)
    assert job.cell is not None
    return job.cell


def read_last_words(job: Job) -> str:
    """The message that a run failed with, if it could leave one; the next attempt begins without."""
    assert isinstance(job, RunJob)
    if not job.last_words.exists():
        return ""
    said = job.last_words.read_text(encoding="utf-8", errors="replace")  # a kill may have cut it
    job.last_words.unlink()
    return said


def _record_end(run: Run, status: str, error: str) -> None:
    try:
        record_end(run, status, error)
    except Exception as failure:
        log.warning("%s: how this run ended could not be written down: %s", run.folder, failure)
