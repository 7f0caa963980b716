"""What our launchers have in common: cells are composed here, and runs that are finished are not started.

Hydra's own launcher runs cells in one process, so that one which is killed ends the sweep, and what one leaves
in the GPU's memory is missing to the next. Here the sweep composes and checks, and other processes run.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from nlu_ppo.cli import typed_keys
from nlu_ppo.composition import to_config
from nlu_ppo.errors import ConfigError
from nlu_ppo.identity import run_key
from nlu_ppo.launching.sweep import Cell, Identity, Outcome
from nlu_ppo.run import Run, finished_result
from nlu_ppo.sweeper import cell_names


class GridLauncher(Launcher):
    """Composes the cells of a grid and hands the runs that have no result to `work`."""

    def __init__(self) -> None:
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """What Hydra calls before `launch`."""
        self.hydra_context, self.config = hydra_context, config

    @abstractmethod
    def work(self, runs: Sequence[Cell], outcomes: dict[Identity, Outcome]) -> None:
        """Runs what isn't in `outcomes` yet, and adds what became of it.

        Raises:
            KeyboardInterrupt: the sweep was asked to stop, and so were its runs; none is at work any more.
        """

    @property
    def sweep_folder(self) -> Path:
        """The study's folder."""
        assert self.config is not None
        return Path(str(self.config.hydra.sweep.dir)).absolute()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the cells that aren't finished; returns once all have ended.

        Raises:
            KeyboardInterrupt: as `work`.
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
        outcomes = self._outcomes([cell for cell in composed if isinstance(cell, Cell)])
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
                Run(config, run_key(config), folder, frozenset(typed_keys())),
                plain(tree.hydra.job_logging),
                plain(tree.hydra.verbose),
                plain(tree.hydra.job.env_set),
            )
        finally:
            HydraConfig.instance().cfg = before

    def _outcomes(self, cells: Sequence[Cell]) -> Mapping[Identity, Outcome]:
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
            self.work(list(runs.values()), outcomes)
        return outcomes


def _returned(overrides: Sequence[str], outcome: Outcome) -> JobReturn:
    status = JobStatus.FAILED if isinstance(outcome, Exception) else JobStatus.COMPLETED
    return JobReturn(overrides=list(overrides), status=status, _return_value=outcome)


# -- settings ------------------------------------------------------------------------------------------------


def check_setting(name: str, value: Any, low: int, *, whole: bool = True, optional: bool = False) -> None:
    """Raises ConfigError for a setting of the launcher that is no number, or too low."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or value < low:
        number = "a whole number" if whole else "a number"
        null = ", or null" if optional else ""
        raise ConfigError(f"hydra.launcher.{name}={value}: it takes {number}, at least {low}{null}")


def plain(node: Any) -> Any:
    """A node of Hydra's tree as lists and dictionaries."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
