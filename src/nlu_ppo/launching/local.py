"""`hydra/launcher=local`: the cells of a sweep as processes of their own, several at a time, on this machine."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from nlu_ppo.cli import USER_ERROR
from nlu_ppo.errors import ConfigError
from nlu_ppo.launching.launcher import GridLauncher, check_setting
from nlu_ppo.launching.processes import Queue
from nlu_ppo.launching.sweep import Cell, Identity, Outcome, Sweep

CHILD = (sys.executable, "-m", "nlu_ppo.launching.child")


class LocalLauncher(GridLauncher):
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
        super().__init__()
        check_setting("slots", slots, 1, optional=True)
        check_setting("threads", threads, 1, optional=True)
        check_setting("retries", retries, 0)
        check_setting("grace", grace, 0, whole=False)
        self.slots, self.threads, self.retries, self.grace = slots, threads, retries, grace

    def work(self, runs: Sequence[Cell], outcomes: dict[Identity, Outcome]) -> None:
        """Runs what isn't in `outcomes`, so many at a time."""
        gpus = visible_gpus() if any(cell.run.config.device != "cpu" for cell in runs) else []
        slots = slot_environments(self.slots, self.threads, gpus, available_cores())
        queue = Queue(slots, retries=self.retries, hopeless=(USER_ERROR,), grace=self.grace)
        with tempfile.TemporaryDirectory(prefix="nlu_ppo-") as folder:
            Sweep(runs, outcomes, queue, Path(folder), _said(slots)).work(CHILD)


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
