"""Checkpoints of PPO: all that an interrupted run needs to end as if it had not been interrupted.

One safetensors file with every tensor (adapter, value head, optimizer, random states, best weights) and one
JSON file with the rest. A checkpoint is a folder that appears whole, by a rename, and carries the checksums of its
files.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nlu_ppo.storage import newest_whole, replace_folder, seal, writing

PARTIAL = ".partial-"
KEEP = 2  # the newest ones; the one before the last is the fall-back for a damaged one


@dataclass
class State:
    """`tensors` by name, and `values`, which JSON can hold."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def save(folder: Path, step: int, state: State) -> None:
    """Writes `folder/step-<step>` and removes all but the newest checkpoints.

    Raises:
        DiskError: there is no room; the older checkpoints stay as they are.
    """
    final, partial = folder / f"step-{step:08d}", folder / f"{PARTIAL}{step:08d}"
    remove_partial(folder)
    try:
        with writing(final):
            partial.mkdir(parents=True)
            tensors = {name: t.detach().cpu().contiguous() for name, t in state.tensors.items()}
            save_file(tensors, partial / "state.safetensors")
            text = json.dumps({"step": step, **state.values})
            (partial / "state.json").write_text(text, encoding="utf-8")
            seal(partial)
    except BaseException:
        remove_partial(folder)
        raise
    replace_folder(partial, final)
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old)


def remove_partial(folder: Path) -> None:
    """Removes what a kill has left of a checkpoint that was being written."""
    for partial in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(partial, ignore_errors=True)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole, or `None` if there is none."""
    return newest_whole(sorted(folder.glob("step-*")))


def read(checkpoint: Path) -> State:
    values = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return State(load_file(checkpoint / "state.safetensors"), values)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> State:
    """An optimizer's state as tensors and plain values, by parameter number."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for number, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{name}"] = value
            else:
                values[f"{number}.{name}"] = value
    return State(tensors, values)


def unpack_optimizer(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Puts a packed state back into an optimizer over the same parameters."""
    entries: dict[int, dict[str, Any]] = {}
    for key, value in [*state.tensors.items(), *state.values.items()]:
        number, _, name = key.partition(".")
        entries.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})


def prefixed(prefix: str, entries: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{name}": value for name, value in entries.items()}


def without_prefix(prefix: str, entries: dict[str, Any]) -> dict[str, Any]:
    start = prefix + "/"
    return {name[len(start) :]: value for name, value in entries.items() if name.startswith(start)}
