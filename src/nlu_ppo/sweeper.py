"""The grid sweeper: a cell that fails is named and stops no other; at the end all failures are listed.

Hydra's own sweeper raises the first failing cell's error without saying what became of the rest, and a cell
whose folder can't be named (a value out of range) ends the sweep before the others have run.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from nlu_ppo.errors import ConfigError
from nlu_ppo.mistakes import told


@dataclass(frozen=True)
class Failure:
    """A cell of the grid and why it has no result."""

    cell: str
    error: Exception

    def __str__(self) -> str:
        return f"{self.cell}\n{textwrap.indent(told(self.error), '    ')}"


class SweepError(Exception):
    """Some cells of a sweep have no result; all others have one."""

    def __init__(self, failures: Sequence[Failure], cells: int, what: str = "failed") -> None:
        self.failures = list(failures)
        listed = textwrap.indent("\n".join(map(str, failures)), "  ")
        super().__init__(f"{len(failures)} of {cells} cells {what}:\n{listed}")


def cell_name(overrides: Iterable[str]) -> str:
    """What tells a cell from its neighbours: its overrides, without the study's name and Hydra's settings."""
    return " ".join(o for o in overrides if not o.startswith(("+sweeps=", "hydra.", "hydra/"))) or "the run"


def cell_names(cells: Sequence[Sequence[str]]) -> list[str]:
    """The names of a grid's cells, without what they have in common."""
    fixed = set.intersection(*map(set, cells)) if len(cells) > 1 else set()
    return [cell_name(override for override in cell if override not in fixed) for cell in cells]


def expand(params: dict[str, Any] | None, arguments: Sequence[str]) -> list[list[str]]:
    """The overrides of every cell: the product of a study's `params` and of the command line's values."""
    texts = [f"{key}={value}" for key, value in (params or {}).items()] + list(arguments)
    values: dict[str, list[str]] = {}  # by key, so that the command line's word on a key is the last
    for override in OverridesParser.create().parse_overrides(texts):
        key = override.get_key_element()
        if override.is_discrete_sweep():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        elif override.is_sweep_override():
            raise ConfigError(f"{override.input_line}: a grid takes lists (a,b) and range(), no intervals")
        else:
            values[key] = [str(override.input_line)]
    return [list(cell) for cell in itertools.product(*values.values())]


class GridSweeper(Sweeper):
    """Runs the product of all values given, whatever launcher runs its cells."""

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        self.params = params
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """What Hydra calls before `sweep`."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Checks every cell, runs those that make sense, and raises SweepError if any has no result."""
        assert self.config is not None
        assert self.launcher is not None
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")

        cells = expand(self.params, arguments)
        names = cell_names(cells)
        mistakes = [self._mistake(cell) for cell in cells]
        failures = [Failure(n, e) for n, e in zip(names, mistakes, strict=True) if e is not None]
        legal = [(n, c) for n, c, e in zip(names, cells, mistakes, strict=True) if e is None]
        if failures and legal:
            print(f"{SweepError(failures, len(cells), 'cannot be run')}\nThe others run now.", flush=True)
        jobs = self.launcher.launch([cell for _, cell in legal], initial_job_idx=0) if legal else []
        for (name, _), job in zip(legal, jobs, strict=True):
            error = _error_of(job)
            if error is not None:
                failures.append(Failure(name, error))
        if failures:
            raise SweepError(failures, len(cells))
        return [jobs]

    def _mistake(self, cell: list[str]) -> Exception | None:
        """What is wrong with a cell, before anything runs: it doesn't compose, or its values are illegal."""
        assert self.config is not None
        assert self.hydra_context is not None
        try:
            tree = self.hydra_context.config_loader.load_sweep_config(self.config, cell)
            str(tree.hydra.sweep.subdir)  # made of the run's key, and so of its checked values
        except Exception as error:
            return error
        return None


def _error_of(job: JobReturn) -> Exception | None:
    with contextlib.redirect_stderr(io.StringIO()):  # asking a failed job for its value prints a line
        try:
            _ = job.return_value
        except Exception as error:
            return error
    return None
