"""Between the shell and Hydra: resolvers, and how a mistake, a failing run or a failing cell is told."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nlu_ppo import ranks
from nlu_ppo.choices import default_choices, read_groups
from nlu_ppo.composition import to_config
from nlu_ppo.credentials import hide_passwords
from nlu_ppo.errors import UserError
from nlu_ppo.identity import run_key, subfolder
from nlu_ppo.mistakes import explain, told
from nlu_ppo.progress import close_bars
from nlu_ppo.stopping import Interrupted, signals_heeded
from nlu_ppo.sweeper import SweepError, cell_name

FAILED = 1  # exit code: cells of a sweep failed
USER_ERROR = 2  # exit code: the input is wrong, not the program
INTERRUPTED = 130  # exit code: what shells report after Ctrl-C


def register_resolvers() -> None:
    """`${run_folder:}` and `${run_subfolder:}`: where a run lives follows from its key; and small helpers."""

    def run_subfolder(*, _root_: DictConfig) -> str:
        config = to_config(_root_)
        return subfolder(config, run_key(config))

    def run_folder(*, _root_: DictConfig) -> str:
        config = to_config(_root_)
        return str(Path(config.outputs) / config.study / subfolder(config, run_key(config)))

    OmegaConf.register_new_resolver("run_subfolder", run_subfolder, replace=True)
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    OmegaConf.register_new_resolver("folder_name", lambda path: Path(path).resolve().name, replace=True)
    OmegaConf.register_new_resolver("groups", list_groups, replace=True)


def list_groups() -> str:
    """The groups and their choices, as `train.py --help` shows them; `*` marks the default."""
    chosen = default_choices()
    lines = []
    for group, choices in read_groups().items():
        if group == "hydra/sweeper":  # there is nothing to choose
            continue
        names = [c.name + "*" * (chosen.get(group) == c.name) for c in choices]
        label = group if group.startswith("hydra/") else f"{'+' * (group not in chosen)}{group}"
        lines.append(
            textwrap.fill(
                " ".join(names), 100, initial_indent=f"  {label + '=':<17}", subsequent_indent=" " * 19
            )
        )
    return "\n".join(lines)


def folder_of(_: DictConfig) -> Path:
    """The run's folder, as Hydra made it."""
    return Path(HydraConfig.get().runtime.output_dir)


def typed_keys() -> list[str]:
    """The keys that the command line, or the sweep, gave a value to."""
    return [word.lstrip("+").partition("=")[0] for word in HydraConfig.get().overrides.task]


# -- failures ------------------------------------------------------------------------------------------------


class RunFailedError(BaseException):
    """Carries a run's error past Hydra, which would print a line of its own about it.

    Not an `Exception`, because Hydra catches those.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@contextlib.contextmanager
def leaving_fails() -> Iterator[None]:
    """A run that calls `sys.exit` would end a whole sweep without a word; here it counts as a failure."""
    try:
        yield
    except SystemExit as left:
        if isinstance(left.__context__, Interrupted):  # submitit leaves so, the job back in Slurm's queue
            raise
        raise RuntimeError(f"the run called sys.exit({left.code!r})") from left


def one_run(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Around the function that Hydra calls for every run: tells its failure at once, by its overrides."""

    @functools.wraps(task)
    def guarded(tree: DictConfig) -> Any:
        try:
            with leaving_fails():
                return task(tree)
        except Exception as raised:
            error = raised
        job = HydraConfig.get()
        if OmegaConf.is_missing(job.job, "num"):  # a single run, no cell of a sweep
            raise RunFailedError(error)
        report(error, cell_name(job.overrides.task))
        raise error

    return guarded


def report(error: Exception, cell: str | None = None) -> None:
    """Prints the user's mistake as one message, a fault of the program with its traceback."""
    close_bars()
    message = explain(error)
    if message is None:
        traceback.print_exception(error)
        message = told(error)
    where = f"{cell}: " if cell else ""
    print(f"error: {where}{message}", file=sys.stderr, flush=True)


def command_line(main: Callable[[], Any]) -> None:
    """Runs Hydra's `main`; the user's mistakes end in one message, the program's in a traceback."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # or Hydra prints its own message and exits in our stead
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    ranks.silence_others()
    register_resolvers()
    sys.argv[1:] = hide_passwords(sys.argv[1:])  # Hydra writes the command line into files
    # argparse refuses a flag between overrides: `train.py task=rte -m seed=0,1`
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))
    try:
        with signals_heeded():
            main()
    except RunFailedError as failed:
        _give_up(failed.error)
    except SweepError as failed:
        print(f"error: {failed}", file=sys.stderr)
        sys.exit(FAILED)
    except (HydraException, OmegaConfBaseException, UserError, OSError) as error:
        _give_up(error)
    except KeyboardInterrupt as stop:
        close_bars()
        by = f" by {stop}" if isinstance(stop, Interrupted) else ""
        but = ", without overwrite=true," if any(word.startswith("overwrite=") for word in sys.argv) else ""
        print(f"interrupted{by}: the same command{but} goes on where this one stopped", file=sys.stderr)
        sys.exit(stop.exit_code if isinstance(stop, Interrupted) else INTERRUPTED)


def _give_up(error: Exception) -> None:
    if explain(error) is None:
        raise error
    if not ranks.told_by_main(error):
        report(error)
    sys.exit(USER_ERROR)


def visible(text: str) -> str:
    """Without the terminal's colour codes."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
