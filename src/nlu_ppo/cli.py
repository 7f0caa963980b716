"""Between the shell and Hydra: resolvers for folders, and errors that name the key and list what exists."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from nlu_ppo.config import to_config
from nlu_ppo.errors import UserError
from nlu_ppo.run import run_key, subfolder

USER_ERROR = 2  # exit code: the input is wrong, not the program


def register_resolvers() -> None:
    """`${run_folder:}` and `${run_subfolder:}`: where a run lives follows from its key."""

    def run_subfolder(*, _root_: DictConfig) -> str:
        config = to_config(_root_)
        return subfolder(config, run_key(config))

    def run_folder(*, _root_: DictConfig) -> str:
        config = to_config(_root_)
        return str(Path(config.outputs) / config.study / subfolder(config, run_key(config)))

    OmegaConf.register_new_resolver("run_subfolder", run_subfolder, replace=True)
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    OmegaConf.register_new_resolver("folder_name", lambda path: Path(path).resolve().name, replace=True)


def folder_of(_: DictConfig) -> Path:
    """The run's folder, as Hydra made it."""
    return Path(HydraConfig.get().runtime.output_dir)


def command_line(main: Callable[[], Any]) -> None:
    """Runs Hydra's `main`; the user's mistakes end in one message, the program's in a traceback."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # or Hydra prints its own message and exits in our stead
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    register_resolvers()
    try:
        main()
    except (HydraException, OmegaConfBaseException, UserError) as error:
        message = explain(error)
        if message is None:
            raise
        sys.exit(_say(message))


def _say(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return USER_ERROR


def explain(error: BaseException) -> str | None:
    """The user's mistake behind an error in one message, or `None` if it is something else."""
    chain = list(_chain(error))
    if any(not isinstance(link, (UserError, HydraException, OmegaConfBaseException)) for link in chain):
        return None  # a fault of the program inside the composition
    for link in chain:
        if isinstance(link, UserError):
            return str(link)
    for link in chain:
        if isinstance(link, ConfigKeyError):
            return _unknown_key(link)
    for link in chain:
        if isinstance(link, OmegaConfBaseException) and link.full_key:
            return f"{link.full_key}: {link.msg or str(link).splitlines()[0]}"
    for link in chain:
        if isinstance(link, HydraException):
            return str(link)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _unknown_key(error: ConfigKeyError) -> str:
    """`method.max_stpes` is unknown: what is close to it, and what there is."""
    parent = error.parent_node
    known = sorted(str(k) for k in parent) if isinstance(parent, DictConfig) else []
    wrong = str(error.key)
    where = str(error.full_key)[: -len(wrong)].rstrip(".")
    close = difflib.get_close_matches(wrong, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    there = f" There is: {', '.join(known)}." if known else ""
    return f"unknown key {error.full_key}.{hint}{there if where or known else ''}"


def visible(text: str) -> str:
    """Without the terminal's colour codes."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
