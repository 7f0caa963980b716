"""`python -m nlu_ppo.tables.reproduce STUDY [override ...]`: runs what a study's table lacks, then builds the table.

Before anything runs it says which cells have no result yet, what they are likely to cost, and which data and
models are not on this machine. With --dry-run it stops there. Overrides are those of train.py.

Exit codes are those of `python -m nlu_ppo.tables`, or that of the sweep where a run of it failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from nlu_ppo.choices import CONF, ROOT
from nlu_ppo.cli import USER_ERROR, register_resolvers
from nlu_ppo.composition import register_schemas, to_config
from nlu_ppo.errors import MALFORMED, ConfigError, UserError
from nlu_ppo.identity import subfolder
from nlu_ppo.launching.display import duration
from nlu_ppo.mistakes import explain, told
from nlu_ppo.run import Run, build_run, finished_result
from nlu_ppo.sweeper import cell_names, expand
from nlu_ppo.tables.__main__ import main as print_table
from nlu_ppo.tables.needs import absent

FROM_RUNS, FROM_STUDY = "finished runs like it", "the study's estimate"


@dataclass(frozen=True)
class Cell:
    """A cell of a study.

    Attributes:
        run: `None` where the cell makes no sense; `mistake` then says why.
        state: `finished`, `missing`, or what became of an attempt (`failed`, `interrupted`, `begun`).
        seconds: what it took, or is expected to take from its beginning; `None` if nothing tells.
        source: where an expectation comes from.
    """

    name: str
    run: Run | None
    state: str
    seconds: float | None = None
    source: str = ""
    mistake: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    options, overrides = _parser().parse_known_args(arguments)
    try:
        plan, folder = make_plan(options.study, overrides)
    except (UserError, HydraException) as error:
        print(f"error: {explain(error) or told(error)}", file=sys.stderr)
        return USER_ERROR
    tell(plan)
    if options.dry_run:
        return 0
    swept = 0
    if any(cell.state != "finished" for cell in plan):
        command = [sys.executable, str(ROOT / "train.py"), "-m", f"+sweeps={options.study}", *overrides]
        swept = subprocess.run(command, check=False).returncode
    return print_table([folder.name, "--outputs", str(folder.parent)]) or swept


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nlu_ppo.tables.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("study", help="a file of sweeps/, without .yaml")
    parser.add_argument("--dry-run", action="store_true", help="only say what is missing")
    return parser


def make_plan(study: str, overrides: Sequence[str] = ()) -> tuple[list[Cell], Path]:
    """All cells of a study, in the order of the sweep, and the study's folder. Needs neither torch nor network.

    Raises:
        ConfigError, HydraException: there is no such study, or it (or an override) makes no sense.
    """
    register_schemas()
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        # a sweep's values (a,b) make no single configuration: what the study is called is asked without them
        single = [word for word in overrides if word.partition("=")[0] in ("study", "outputs")]
        tree = compose("config", [f"+sweeps={study}", *single], return_hydra_config=True)
        sweeper: Any = OmegaConf.to_container(tree.hydra.sweeper)
        lists = expand(sweeper["params"], [f"+sweeps={study}", *overrides], sweeper["cells"])
        cells = [_cell(name, words) for name, words in zip(cell_names(lists), lists, strict=True)]
    return with_costs(cells, sweeper["minutes"]), Path(tree.outputs) / tree.study


def _cell(name: str, overrides: Sequence[str]) -> Cell:
    try:
        # Hydra's own settings (a launcher) are no part of a run
        tree: DictConfig = compose("config", [o for o in overrides if not o.startswith(("hydra.", "hydra/"))])
        config = to_config(tree)
        run = build_run(config, Path())
        folder = Path(config.outputs) / config.study / subfolder(config, run.key)
        run = Run(config, run.key, folder)
    except (UserError, HydraException) as error:
        return Cell(name, None, "illegal", mistake=explain(error) or told(error))
    result = finished_result(run)
    if result is not None:
        spent = [s for s in (result.get("seconds") or {}).values() if isinstance(s, (int, float))]
        return Cell(name, run, "finished", sum(spent) if spent else None)
    return Cell(name, run, _attempt(folder))


def _attempt(folder: Path) -> str:
    """What became of a run that isn't finished."""
    with suppress(OSError, *MALFORMED):
        return str(json.loads((folder / "result.json").read_text(encoding="utf-8")).get("status", "begun"))
    return "begun" if (folder / "run.json").exists() else "missing"


def with_costs(cells: Sequence[Cell], minutes: Any) -> list[Cell]:
    """The cells with what they are expected to take: as finished ones of the same task, model and method took.

    Where there is none, the study's own `minutes` say it; otherwise it stays unknown.

    Raises:
        ConfigError: `minutes` is malformed.
    """
    check_minutes(minutes)
    known: dict[tuple[Any, ...], list[float]] = {}
    for cell in cells:
        if cell.run is not None and cell.state == "finished" and cell.seconds is not None:
            known.setdefault(_kind(cell.run), []).append(cell.seconds)
    found = []
    for cell in cells:
        if cell.run is None or cell.state == "finished":
            found.append(cell)
        elif like := known.get(_kind(cell.run)):
            found.append(Cell(cell.name, cell.run, cell.state, fmean(like), FROM_RUNS))
        else:
            estimate = minutes_of(minutes, _kind(cell.run))
            seconds, source = (None, "") if estimate is None else (60 * estimate, FROM_STUDY)
            found.append(Cell(cell.name, cell.run, cell.state, seconds, source))
    return found


def _kind(run: Run) -> tuple[str, ...]:
    return tuple(str(run.names[name]) for name in ("task", "model", "method"))


def minutes_of(minutes: Any, names: Sequence[str]) -> float | None:
    """What a study says of a cell: a number for all, or numbers by names of its task, model or method, nested."""
    while isinstance(minutes, Mapping):
        minutes = next((minutes[name] for name in names if name in minutes), None)
    return None if minutes is None else float(minutes)


def check_minutes(minutes: Any, where: str = "hydra.sweeper.minutes", depth: int = 3) -> None:
    """Raises ConfigError where it is neither a number nor numbers by task, model and method, nested."""
    if isinstance(minutes, Mapping) and depth:
        for key, value in minutes.items():
            check_minutes(value, f"{where}.{key}", depth - 1)
    elif minutes is not None and (isinstance(minutes, (bool, str, Mapping, list)) or not minutes >= 0):
        raise ConfigError(f"{where}: {minutes!r} is no number of minutes")


# -- what is said --------------------------------------------------------------------------------------------


def tell(plan: Sequence[Cell]) -> None:
    """Prints what is missing, what it will cost, and what is not on this machine."""
    legal = [cell for cell in plan if cell.run is not None]
    due = [cell for cell in legal if cell.state != "finished"]
    print(f"{len(plan)} cells: {len(legal) - len(due)} finished, {len(due)} to run", end="")
    print(f", {len(plan) - len(legal)} that can't be run:" if len(plan) > len(legal) else ".")
    for cell in plan:
        if cell.mistake:
            print(f"- {cell.name}: {cell.mistake}")
    if due:
        _print_due(due)
        print(cost(due))
    for line in absent([cell.run for cell in due if cell.run is not None]):
        print(f"- {line}")


def _print_due(due: Sequence[Cell]) -> None:
    table = Table("to run", "state", "about", "says", box=None, pad_edge=False)
    for cell in due:
        about = "unknown" if cell.seconds is None else duration(cell.seconds)
        table.add_row(cell.name, cell.state, about, cell.source)
    width = max(len(cell.name) for cell in due) + 60  # in a pipe rich would break lines at 80
    Console(width=max(width, 80), highlight=False).print(table)


def cost(due: Sequence[Cell]) -> str:
    """One line: what all of them take, one after the other."""
    seconds = [cell.seconds for cell in due if cell.seconds is not None]
    unknown = len(due) - len(seconds)
    if not seconds:
        return f"What these {len(due)} runs will take is unknown: none like them has finished."
    more = f", and {unknown} more of which nothing is known" if unknown else ""
    return (
        f"{len(seconds)} runs of about {duration(sum(seconds))} in all{more}, one after the other; "
        f"with several at a time (hydra/launcher=local) in so much less."
    )


if __name__ == "__main__":
    sys.exit(main())
