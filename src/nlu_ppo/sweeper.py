"""The grid sweeper: a cell that fails is named and stops no other; at the end all failures are listed.

Hydra's own sweeper raises the first failing cell's error without saying what became of the rest, and a cell
whose folder can't be named (a value out of range) ends the sweep before the others have run.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
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

from nlu_ppo import ranks
from nlu_ppo.composition import check_folder_name
from nlu_ppo.credentials import hidden
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


def expand(
    params: Mapping[str, Any] | None,
    arguments: Sequence[str],
    cells: Sequence[Mapping[str, Any]] | None = None,
) -> list[list[str]]:
    """The overrides of every cell of a grid.

    Without `cells`, the product of a study's `params` and of the command line's values. Of `cells`, each
    stands for itself, with that product around it; a list of values (`a,b`) in one makes several of it. The
    command line's word on a key replaces the study's; cells that are then the same run once.

    Raises:
        ConfigError: a value sweeps over an interval, `cells` is malformed, or both it and `params` set a key.
    """
    words = _values(arguments)
    around = _values(_texts(params or {}))
    if cells is None:
        listed: list[dict[str, list[str]]] = [{}]
    else:
        listed = _listed(cells, around)
    found: dict[tuple[str, ...], None] = {}  # a set in the order of its first entries
    for cell in listed:
        values = {**cell, **around}
        values.update(words)  # a known key keeps its place
        found.update(dict.fromkeys(itertools.product(*values.values())))
    return [list(cell) for cell in found]


def _listed(cells: Any, around: Mapping[str, Any]) -> list[dict[str, list[str]]]:
    where = "hydra.sweeper.cells"
    if not isinstance(cells, Sequence) or isinstance(cells, str) or not cells:
        raise ConfigError(f"{where}: a list of cells is due, such as [{{task: rte, seed: 1}}]")
    found = []
    for number, cell in enumerate(cells):
        if not isinstance(cell, Mapping) or not cell:
            raise ConfigError(f"{where}[{number}]: {cell!r} is no cell, which maps overrides to their values")
        values = _values(_texts(cell))
        twice = [key for key in values if key in around]
        if twice:
            raise ConfigError(f"{where}[{number}] sets {twice[0]}, and so does hydra.sweeper.params")
        found.append(values)
    return found


def _texts(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={_written(value)}" for key, value in values.items()]


def _written(value: Any) -> str:
    """A value from YAML as the command line has it; texts may be lists of values (`a,b`)."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(map(_written, value))}]"
    return str(value)


def _values(texts: Sequence[str]) -> dict[str, list[str]]:
    """By key, the overrides that its values make; of two words on a key the last counts."""
    values: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides(list(texts)):
        key = override.get_key_element()
        if override.is_discrete_sweep():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        elif override.is_sweep_override():
            raise ConfigError(f"{override.input_line}: a grid takes lists (a,b) and range(), no intervals")
        else:
            values[key] = [str(override.input_line)]
    return values


class GridSweeper(Sweeper):
    """Runs every cell of a grid, whatever launcher runs them.

    Args:
        params: by override, values of which the product is taken.
        cells: cells that are listed one by one, as mappings from override to value (see `expand`).
        minutes: what a cell is expected to take; the sweep itself doesn't look at it (nlu_ppo.tables.reproduce does).
    """

    def __init__(
        self,
        params: dict[str, Any] | None = None,
        cells: list[dict[str, Any]] | None = None,
        minutes: Any = None,
    ) -> None:
        self.params = params
        self.cells = cells
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
        """Checks every cell, runs those that make sense, and raises SweepError if any has no result.

        Raises:
            ConfigError: several processes were started.
        """
        if ranks.world() > 1:
            raise ConfigError(
                f"{ranks.world()} processes work on one run, not on a sweep: start the runs one by one, or the sweep "
                f"without accelerate launch (hydra/launcher=local gives each run a GPU of its own)"
            )
        assert self.config is not None
        assert self.launcher is not None
        if isinstance(self.config.study, str):
            check_folder_name("study", self.config.study)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "multirun.yaml").write_text(hidden(OmegaConf.to_yaml(self.config)), encoding="utf-8")

        cells = expand(self.params, arguments, self.cells)
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
