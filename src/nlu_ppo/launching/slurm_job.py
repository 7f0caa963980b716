"""What a Slurm job of a sweep does: one run, and on a signal ahead of its end a way back into the queue."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nlu_ppo.cli import INTERRUPTED
from nlu_ppo.launching.child import interrupt, work
from nlu_ppo.launching.order import Order

TIMEOUT = 60  # seconds that Slurm may take to answer


@dataclass(frozen=True)
class SlurmRun:
    """A run as submitit takes it: a function without arguments.

    Attributes:
        order: `Order.to_line()` of it.
        log: the file that its output goes to, behind what is there.
        requeues: how often Slurm may start it again, after preemption or at its time limit.
    """

    name: str
    order: bytes
    log: Path
    environment: Mapping[str, str]
    requeues: int

    def __call__(self) -> None:
        """Raises SystemExit unless the run has finished, so that Slurm's own records are right."""
        job = os.environ["SLURM_JOB_ID"]
        os.environ.update(self.environment)
        self._write_to_log(job)
        signals = (signal.SIGTERM, signal.SIGUSR2)
        for number in signals:  # in place of submitit's: a run saves before it ends
            signal.signal(number, interrupt)
        order = Order.from_line(self.order)
        if os.environ.get("SLURM_RESTART_COUNT"):  # what is there is what this job did before
            order.config.overwrite = False
        code = work(order)
        for number in signals:  # requeueing kills what is left of the job
            signal.signal(number, signal.SIG_IGN)
        if code == INTERRUPTED:
            self._go_on_later(job)
        if code:
            sys.exit(code)

    def _write_to_log(self, job: str) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            began, host = time.strftime("%Y-%m-%d %H:%M:%S"), os.uname().nodename
            start = int(os.environ.get("SLURM_RESTART_COUNT", 0)) + 1
            log.write(f"--- {began}  {self.name}  (Slurm job {job}, start {start}, on {host})\n".encode())
            log.flush()
            for output in (sys.stdout, sys.stderr):
                output.flush()
                os.dup2(log.fileno(), output.fileno())

    def _go_on_later(self, job: str) -> None:
        """Puts the job back into the queue, unless it was cancelled or was there too often."""
        try:
            record = job_record(job)
            if record.get("JobState") not in ("RUNNING", "PREEMPTED"):
                return
            if int(record.get("Restarts", 0)) >= self.requeues:
                print(f"not put back into Slurm's queue: hydra.launcher.requeues={self.requeues} is used up")
                return
            subprocess.run(["scontrol", "requeue", job], check=True, timeout=TIMEOUT)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"could not be put back into Slurm's queue: {error}", file=sys.stderr)


def job_record(job: str) -> dict[str, str]:
    """What Slurm knows of a job (`scontrol show job`); empty some minutes after its end.

    Raises:
        OSError, SubprocessError: Slurm doesn't answer.
    """
    told = subprocess.run(
        ["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True, timeout=TIMEOUT
    )
    return dict(re.findall(r"(\S+?)=(\S*)", told.stdout))
