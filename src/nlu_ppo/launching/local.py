"""`hydra/launcher=local`: the cells of a sweep as processes of their own, several at a time.

Hydra's own launcher runs cells in one process, so that one which is killed ends the sweep, and what one leaves
in the GPU's memory is missing to the next. Here the sweep composes and checks; `nlu_ppo.launching.child` runs.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from nlu_ppo.cli import USER_ERROR
from nlu_ppo.config import to_config
from nlu_ppo.errors import CellError, ConfigError
from nlu_ppo.launching.display import Active, Display, Grid, duration, headline, last_metrics, number
from nlu_ppo.launching.estimate import Durations, Kind
from nlu_ppo.launching.order import Order
from nlu_ppo.launching.processes import Ended, Job, Queue
from nlu_ppo.run import Run, finished_result, record_end, run_key
from nlu_ppo.sweeper import cell_names
from nlu_ppo.tracking.folder import LOG

log = logging.getLogger(__name__)

CHILD = (sys.executable, "-m", "nlu_ppo.launching.child")
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


class LocalLauncher(Launcher):
    """Runs cells in processes of their own.

    Args:
        slots: how many at a time; `None`: one per GPU, or without GPUs as many as there are cores for.
        threads: CPU threads of each; `None`: the cores, shared out among the slots.
        retries: how often a run that failed is started again, unless its user is at fault.
        grace: seconds that runs get to end in when the sweep is asked to stop.
    """

    def __init__(
        self, slots: int | None = None, threads: int | None = None, retries: int = 0, grace: float = 60.0
    ) -> None:
        _check("slots", slots, 1)
        _check("threads", threads, 1)
        _check("retries", retries, 0)
        _check("grace", grace, 0, whole=False)
        self.slots, self.threads, self.retries, self.grace = slots, threads, retries, grace
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """What Hydra calls before `launch`."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the cells that aren't finished; returns once all have ended.

        Raises:
            KeyboardInterrupt: the sweep was asked to stop, and so were its runs; none is at work any more.
        """
        assert self.config is not None
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        composed: list[Cell | Exception] = []
        for i, (name, overrides) in enumerate(zip(cell_names(job_overrides), job_overrides, strict=True)):
            try:
                composed.append(self._compose(name, list(overrides), initial_job_idx + i))
            except Exception as error:
                composed.append(error)
        outcomes = self._run([cell for cell in composed if isinstance(cell, Cell)])
        return [
            _returned(overrides, outcomes[cell.identity] if isinstance(cell, Cell) else cell)
            for cell, overrides in zip(composed, job_overrides, strict=True)
        ]

    def _compose(self, name: str, overrides: list[str], number: int) -> Cell:
        """The run of a cell, in the folder that Hydra's own launcher would give it."""
        assert self.hydra_context is not None
        assert self.config is not None
        tree = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(tree):
            tree.hydra.job.id = str(number)
            tree.hydra.job.num = number
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(tree)  # folders and log files may be made of it
        try:
            folder = Path(tree.hydra.sweep.dir, tree.hydra.sweep.subdir).absolute()
            with read_write(tree.hydra.runtime), open_dict(tree.hydra.runtime):
                tree.hydra.runtime.output_dir = str(folder)
            HydraConfig.instance().set_config(tree)
            config = to_config(tree)
            return Cell(
                name,
                Run(config, run_key(config), folder),
                _plain(tree.hydra.job_logging),
                _plain(tree.hydra.verbose),
                _plain(tree.hydra.job.env_set),
            )
        finally:
            HydraConfig.instance().cfg = before

    def _run(self, cells: Sequence[Cell]) -> Mapping[Identity, Outcome]:
        """What became of every run. Cells whose method doesn't use what they differ in are one run."""
        runs: dict[Identity, Cell] = {}
        for cell in cells:
            runs.setdefault(cell.identity, cell)
        outcomes: dict[Identity, Outcome] = {}
        for identity, cell in runs.items():
            result = None if cell.run.config.overwrite else finished_result(cell.run)
            if result is not None:
                outcomes[identity] = result
        if outcomes:
            print(f"{len(outcomes)} of {len(runs)} runs are finished already", flush=True)
        if len(outcomes) < len(runs):
            _Sweep(list(runs.values()), outcomes, self._queue(cells)).work()
        return outcomes

    def _queue(self, cells: Sequence[Cell]) -> Queue:
        gpus = visible_gpus() if any(cell.run.config.device != "cpu" for cell in cells) else []
        slots = slot_environments(self.slots, self.threads, gpus, available_cores())
        return Queue(slots, retries=self.retries, hopeless=(USER_ERROR,), grace=self.grace)


# -- the runs at work ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunJob(Job):
    """The job of a run. `last_words` is a file that it writes its error to, if it can."""

    cell: Cell | None = None
    last_words: Path = Path()


class _Sweep:
    """The runs of a grid: what goes into the queue, what comes out of it, what is shown meanwhile.

    Args:
        outcomes: of the runs that are finished already; those of the others are added.
    """

    def __init__(self, runs: Sequence[Cell], outcomes: dict[Identity, Outcome], queue: Queue) -> None:
        self.runs, self.outcomes, self.queue = runs, outcomes, queue
        self.began = time.time()
        self.durations = Durations()
        for cell in runs:
            result = outcomes.get(cell.identity)
            if isinstance(result, dict):
                self.durations.add(cell.kind, sum(result["seconds"].values()))
        self.display = Display()
        self.clerk = ThreadPoolExecutor(1)  # MLflow may take its time, and GPUs shouldn't wait for it

    def work(self) -> None:
        """Runs what isn't finished."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nlu_ppo-")))
            stack.enter_context(self.clerk)
            stack.enter_context(self.display)
            new = [cell for cell in self.runs if cell.identity not in self.outcomes]
            jobs = [self._job(cell, folder / str(number)) for number, cell in enumerate(new)]
            self.display.say(
                f"{len(jobs)} runs to do, {_said(self.queue.slots)}; each writes {LOG} in its folder"
            )
            try:
                self.queue.work(jobs, self._ended, self._tick)
            finally:
                self.display.say(headline(self._grid()))

    def _job(self, cell: Cell, last_words: Path) -> RunJob:
        run = cell.run
        order = Order(cell.name, run.config, run.folder, last_words, cell.job_logging, cell.verbose)
        environment = {"PYTHONUNBUFFERED": "1", **cell.environment}
        return RunJob(cell.name, CHILD, run.folder / LOG, order.to_line(), environment, cell, last_words)

    def _tick(self) -> None:
        if self.display.due():
            self.display.show(self._grid())

    def _grid(self) -> Grid:
        now, running, active = time.time(), [], []
        for work in self.queue.running.values():
            cell = _cell(work.job)
            metrics = last_metrics(cell.run.folder / "metrics.jsonl", work.began)
            running.append((cell.kind, now - work.began))
            active.append(Active(cell.name, now - work.began, metrics))
        waiting = [_cell(job).kind for job, _ in self.queue.waiting]
        done = sum(isinstance(outcome, dict) for outcome in self.outcomes.values())
        return Grid(
            title=self.runs[0].run.config.study,
            done=done,
            failed=len(self.outcomes) - done,
            waiting=len(self.runs) - len(self.outcomes) - len(active),
            running=active,
            seconds=now - self.began,
            remaining=self.durations.remaining(running, waiting, len(self.queue.slots)),
        )

    def _ended(self, ended: Ended) -> None:
        """Finds out what an attempt came to, and says it."""
        cell, said = _cell(ended.job), _read_last_words(ended.job)
        can_be_old = cell.run.config.overwrite and ended.code != 0
        result = None if can_be_old else finished_result(cell.run)
        if result is not None:
            self.outcomes[cell.identity] = result
            self.durations.add(cell.kind, ended.seconds)
            score = number(result.get("score"), 1)
            self.display.say(f"done: {cell.name}: score {score}, {duration(ended.seconds)}")
            return
        how = ended.how if ended.code else "it left before it had a result (exit code 0)"
        stopped = self.queue.stop_requests > 0 and not said
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


def _read_last_words(job: Job) -> str:
    assert isinstance(job, RunJob)
    if not job.last_words.exists():
        return ""
    said = job.last_words.read_text(encoding="utf-8")
    job.last_words.unlink()  # the next attempt may have none
    return said


def _record_end(run: Run, status: str, error: str) -> None:
    try:
        record_end(run, status, error)
    except Exception as failure:
        log.warning("%s: how this run ended could not be written down: %s", run.folder, failure)


def _returned(overrides: Sequence[str], outcome: Outcome) -> JobReturn:
    status = JobStatus.FAILED if isinstance(outcome, Exception) else JobStatus.COMPLETED
    return JobReturn(overrides=list(overrides), status=status, _return_value=outcome)


# -- slots ---------------------------------------------------------------------------------------------------


def slot_environments(
    slots: int | None, threads: int | None, gpus: Sequence[str], cores: int
) -> list[dict[str, str]]:
    """For each slot the environment that gives it a GPU, if there are any, and its share of the cores.

    Processes whose threads outnumber the cores wait for each other: two with two threads each are ten times
    slower on two cores than two with one.

    Raises:
        ConfigError: more threads are asked for than there are cores.
    """
    count = slots or len(gpus) or max(1, cores // (threads or 1))
    if threads is not None and threads > max(1, cores // count):
        raise ConfigError(
            f"hydra.launcher.threads={threads} in {count} slots is more than the {cores} cores that there are: "
            f"leave it out, or lower hydra.launcher.slots"
        )
    share = str(threads or max(1, cores // count))
    environments = [{"OMP_NUM_THREADS": share, "MKL_NUM_THREADS": share} for _ in range(count)]
    if gpus:
        for number, environment in enumerate(environments):
            environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    return environments


def _said(slots: Sequence[Mapping[str, str]]) -> str:
    gpus = list(
        dict.fromkeys(slot["CUDA_VISIBLE_DEVICES"] for slot in slots if "CUDA_VISIBLE_DEVICES" in slot)
    )
    threads = slots[0]["OMP_NUM_THREADS"]
    where = f"on GPU {', '.join(gpus)}, " if gpus else ""
    return f"{len(slots)} at a time, {where}{threads} CPU thread{'s' * (threads != '1')} each"


def visible_gpus() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        import torch

        return [str(number) for number in range(torch.cuda.device_count())]
    names = [name.strip() for name in named.split(",")]
    return names[: names.index("-1")] if "-1" in names else [name for name in names if name]


def available_cores() -> int:
    """The cores that this process may use: affinity and a container's limit count."""
    from joblib import cpu_count

    return int(cpu_count())


# -- settings ------------------------------------------------------------------------------------------------


def _check(name: str, value: Any, low: int, whole: bool = True) -> None:
    optional = name in ("slots", "threads")
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or value < low:
        number = "a whole number" if whole else "a number"
        null = ", or null" if optional else ""
        raise ConfigError(f"hydra.launcher.{name}={value}: it takes {number}, at least {low}{null}")


def _plain(node: Any) -> Any:
    """A node of Hydra's tree as lists and dictionaries."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
