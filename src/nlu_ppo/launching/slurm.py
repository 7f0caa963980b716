"""`hydra/launcher=submitit_slurm`: every run of a sweep as a Slurm job, sent off by submitit.

The plugin that Hydra has for submitit waits for the jobs one after the other and raises the error of the first that
was killed, without its cell. Here the sweep watches all of them by `squeue`, as it watches local processes.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nlu_ppo.errors import MALFORMED, ConfigError
from nlu_ppo.launching.launcher import GridLauncher, check_setting, plain
from nlu_ppo.launching.processes import Ended, Job, StopRequests
from nlu_ppo.launching.slurm_job import TIMEOUT, SlurmRun, job_record
from nlu_ppo.launching.sweep import Cell, Identity, Outcome, RunJob, Sweep
from nlu_ppo.run import finished_result

log = logging.getLogger(__name__)

FILES = ".submitit"  # below the study's folder
SETTLE = 15.0  # seconds in which a result that another machine wrote must be seen here
TICK = 0.2  # seconds between two looks at the screen and at signals
# Why jobs wait in the normal course of things; any other reason may be one that only a person can do away with.
PATIENCE = {"None", "Priority", "Resources", "JobArrayTaskLimit", "BeginTime", "Cleaning"}


class SlurmLauncher(GridLauncher):
    """Runs cells as jobs of Slurm. What isn't named here goes to sbatch by `additional_parameters`.

    Args:
        timeout_min: time limit of a job. One that reaches it goes on in another: `requeues`.
        signal_delay_s: how many seconds ahead of the limit the run is told to save and end.
        requeues: how often a job may go on after its limit or a preemption.
        array_parallelism: at most so many jobs at a time.
        setup: shell commands ahead of the run, such as `module load cuda`.
        poll_s: seconds between two questions to Slurm.
    """

    def __init__(
        self,
        timeout_min: int = 720,
        cpus_per_task: int | None = 8,
        gpus_per_node: int | None = 1,
        mem_gb: float | None = None,
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        constraint: str | None = None,
        array_parallelism: int = 256,
        signal_delay_s: int = 120,
        requeues: int = 20,
        setup: Sequence[str] | None = None,
        additional_parameters: Mapping[str, Any] | None = None,
        poll_s: float = 10.0,
    ) -> None:
        super().__init__()
        check_setting("timeout_min", timeout_min, 1)
        check_setting("cpus_per_task", cpus_per_task, 1, optional=True)
        check_setting("gpus_per_node", gpus_per_node, 0, optional=True)
        check_setting("mem_gb", mem_gb, 0, whole=False, optional=True)
        check_setting("array_parallelism", array_parallelism, 1)
        check_setting("signal_delay_s", signal_delay_s, 1)
        check_setting("requeues", requeues, 0)
        check_setting("poll_s", poll_s, 0, whole=False)
        self.array_parallelism, self.requeues, self.poll = array_parallelism, requeues, poll_s
        threads = []
        if cpus_per_task is not None:  # since 22.05 srun doesn't take the job's number for its own
            threads = [f"export {v}={cpus_per_task}" for v in ("OMP_NUM_THREADS", "SRUN_CPUS_PER_TASK")]
        settings = {
            "timeout_min": timeout_min,
            "cpus_per_task": cpus_per_task,
            "gpus_per_node": gpus_per_node or None,
            "mem_gb": mem_gb,
            "slurm_partition": partition,
            "slurm_account": account,
            "slurm_qos": qos,
            "slurm_constraint": constraint,
            "slurm_array_parallelism": array_parallelism,
            "slurm_signal_delay_s": signal_delay_s,
            "slurm_setup": [*threads, *(plain(setup) or [])],
            "slurm_additional_parameters": {"requeue": True, **(plain(additional_parameters) or {})},
        }
        self.settings = {name: value for name, value in settings.items() if value is not None}

    def work(self, runs: Sequence[Cell], outcomes: dict[Identity, Outcome]) -> None:
        """Sends off what isn't in `outcomes`, and waits for it."""
        folder = self.sweep_folder / FILES
        executor = _executor(folder, {**self.settings, "name": f"nlu_ppo-{runs[0].run.config.study}"})
        queue = SlurmQueue(executor, folder / "jobs.jsonl", self.requeues, self.poll)
        how = f"each a job of Slurm, at most {self.array_parallelism} at a time"
        Sweep(runs, outcomes, queue, folder, how).work()


def _executor(folder: Path, settings: Mapping[str, Any]) -> Any:
    try:
        import submitit
    except ImportError:
        raise ConfigError("hydra/launcher=submitit_slurm needs submitit: pip install -e '.[slurm]'") from None
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
    except RuntimeError as error:
        raise ConfigError(
            f"hydra/launcher=submitit_slurm: {error} Start the sweep where Slurm's commands are, or take "
            f"hydra/launcher=local"
        ) from error
    executor.update_parameters(**settings)
    folder.mkdir(parents=True, exist_ok=True)
    return executor


class SlurmQueue:
    """Jobs in Slurm's queue. They outlive this process: another one, on the same register, finds them again.

    Args:
        register: a file that says which run is which job.
        requeues: as for `SlurmRun`.
        poll: seconds between two questions to Slurm.
    """

    def __init__(self, executor: Any, register: Path, requeues: int, poll: float) -> None:
        self.executor, self.register, self.requeues, self.poll = executor, register, requeues, poll
        self.stop = StopRequests(signal.SIGINT, signal.SIGTERM)  # the end of a terminal leaves the jobs alone
        self._jobs: dict[str, RunJob] = {}  # by Slurm's number
        self._began: dict[str, float] = {}  # of those at work
        self._gone: dict[str, float] = {}  # since when Slurm doesn't list them any more
        self._logs: dict[str, Path] = {}
        self._cancelled = False
        self._asked = -math.inf
        self._reasons = set(PATIENCE)  # that need not be said any more

    @property
    def width(self) -> int:
        """As many as there are at work just now: how many Slurm will let in isn't known."""
        return max(1, len(self._began))

    @property
    def at_work(self) -> list[tuple[Job, float]]:
        now = time.monotonic()
        return [(self._jobs[number], now - began) for number, began in self._began.items()]

    @property
    def pending(self) -> list[Job]:
        return [job for number, job in self._jobs.items() if number not in self._began]

    def work(
        self,
        jobs: Iterable[Job],
        on_end: Callable[[Ended], None] = lambda ended: None,
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        """Returns once all jobs have ended.

        SIGINT and SIGTERM cancel them; a second one doesn't wait for their end.

        Raises:
            KeyboardInterrupt: this process was asked to stop.
            ConfigError: Slurm doesn't take the jobs.
        """
        with self.stop:
            self._submit([job for job in jobs if isinstance(job, RunJob)])
            while self._jobs and self.stop.count < 2:
                self._cancel_if_asked()
                for ended in self._collect_ended():
                    on_end(ended)
                on_tick()
                time.sleep(TICK)
        if self.stop.count:
            raise KeyboardInterrupt

    # -- into the queue -----------------------------------------------------------------------------------

    def _submit(self, jobs: Sequence[RunJob]) -> None:
        """Sends off the jobs that no earlier start has sent off."""
        states, known = _states(), self._registered()
        new = []
        for job in jobs:
            number = known.get(str(job.log))
            if number in states:
                self._jobs[number] = job
            else:
                new.append(job)
        if self._jobs:
            print(f"{len(self._jobs)} of them are jobs of Slurm already, of an earlier start", flush=True)
        if not new:
            return
        runs = [SlurmRun(j.name, j.message, j.log, dict(j.environment), self.requeues) for j in new]
        import submitit

        try:
            sent = self.executor.submit_array(runs)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise ConfigError(f"Slurm doesn't take the jobs: {_last_line(str(error))}") from error
        with self.register.open("a", encoding="utf-8") as register:
            for job, submitted in zip(new, sent, strict=True):
                number = submitted.job_id
                register.write(json.dumps({"job": number, "log": str(job.log)}) + "\n")
                self._jobs[number], self._logs[number] = job, submitted.paths.stderr

    def _registered(self) -> dict[str, str]:
        """The last job of every run, by the run's log."""
        if not self.register.exists():
            return {}
        try:
            lines = self.register.read_text(encoding="utf-8").splitlines()
            return {entry["log"]: entry["job"] for entry in map(json.loads, lines)}
        except MALFORMED as error:
            raise ConfigError(
                f"{self.register} can't be read ({error}): if no job of the sweep is left, remove it"
            ) from error

    # -- out of it ----------------------------------------------------------------------------------------

    def _collect_ended(self) -> Iterator[Ended]:
        if time.monotonic() - self._asked < self.poll:
            return
        self._asked = time.monotonic()
        try:
            states = _states()
        except ConfigError as error:  # its controller is being restarted, or the network is gone for a moment
            log.warning("%s", error)
            return
        for number, job in list(self._jobs.items()):
            if number in states:
                self._note(number, *states[number])
            elif self._is_over(number, job):
                yield self._end(number, job)

    def _note(self, number: str, state: str, reason: str) -> None:
        self._gone.pop(number, None)
        if state == "PENDING" and reason not in self._reasons:
            self._reasons.add(reason)
            log.warning("Slurm job %s waits, says Slurm: %s", number, reason)
        if state == "RUNNING":
            self._began.setdefault(number, time.monotonic())
        elif state == "PENDING":  # put back into the queue, perhaps
            self._began.pop(number, None)

    def _is_over(self, number: str, job: RunJob) -> bool:
        assert job.cell is not None
        waited = time.monotonic() - self._gone.setdefault(number, time.monotonic())
        return waited >= SETTLE or job.last_words.exists() or finished_result(job.cell.run) is not None

    def _end(self, number: str, job: RunJob) -> Ended:
        try:
            record = job_record(number)
        except (OSError, subprocess.SubprocessError):
            record = {}
        began = self._began.pop(number, time.monotonic())
        del self._jobs[number]
        seconds = _seconds(record.get("RunTime", "")) or time.monotonic() - began
        state = record.get("JobState", "no record of it any more")
        code = 0 if state == "COMPLETED" else int(record.get("ExitCode", "1:0").partition(":")[0]) or 1
        return Ended(job, code, seconds, error="" if code == 0 else self._in_words(number, state, code))

    def _in_words(self, number: str, state: str, code: int) -> str:
        log = f", Slurm's log: {self._logs[number]}" if number in self._logs else ""
        how = f"killed by signal {code - 128}" if code > 128 else f"exit code {code}"
        return f"Slurm job {number}: {state}, {how}{log}"

    def _cancel_if_asked(self) -> None:
        if self.stop.count and not self._cancelled:
            self._cancelled = True
            subprocess.run(["scancel", *self._jobs], check=False, timeout=TIMEOUT)


def _states() -> dict[str, tuple[str, str]]:
    """The state of each of this user's jobs that wait or run, and why it waits, by number.

    Raises:
        ConfigError: Slurm doesn't answer.
    """
    command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%r"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = _last_line(getattr(error, "stderr", None) or str(error))
        raise ConfigError(f"Slurm doesn't answer to squeue: {said}") from error
    jobs = (line.split("|", 2) for line in told.stdout.splitlines())
    return {number: (state, reason) for number, state, reason in jobs}


def _seconds(text: str) -> float:
    """`1-02:03:04` in seconds; 0 for anything else."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
