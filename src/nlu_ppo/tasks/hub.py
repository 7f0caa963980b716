"""Rows of a split from the hub, through `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from nlu_ppo.errors import DataError, MissingSplitError
from nlu_ppo.tasks.parquet import parquet_files
from nlu_ppo.tasks.rawfiles import Located, as_hub_row
from nlu_ppo.tasks.record import HubSource, Task


def hub_rows(
    task: Task, split: str, hub_path: str | Path | None
) -> tuple[Iterator[Located], tuple[str, ...], str]:
    """Rows with where they stand, the label column's class names, and a name for the whole.

    The files are downloaded once and memory-mapped from the cache afterwards (streaming would fetch them
    again for every run of a sweep); a local folder is streamed, since it needs no cache.

    Raises:
        DataError: the task has no such split.
        MissingSplitError: no network and not in the cache, no such repository, revision or file.
    """
    if task.hub is None:
        raise DataError(f"task {task.name} isn't on the hub: use task.source=generated")
    hub = task.hub
    if split not in hub.splits:
        raise DataError(f"task {task.name} has no split {split!r} on the hub; it has {', '.join(hub.splits)}")
    data = load_split(f"task {task.name}", hub, split, hub_path, _local_files(task))
    features = data.features or {}
    feature = next((features[name] for name in hub.label_columns if name in features), None)
    names = tuple(getattr(feature, "names", None) or ())
    place = _place(str(hub_path or hub.path), hub, split)
    return _located(task, data, place), names, place


def load_split(who: str, hub: HubSource, split: str, hub_path: str | Path | None, advice: str) -> Any:
    """A split of a repository, or of the folder or repository that takes its place.

    Args:
        who: what errors begin with.
        advice: what to do without a network, besides running once with one.
    """
    their_split = hub.splits[split]
    path = str(hub_path) if hub_path else hub.path
    local = Path(path).expanduser()
    try:
        if hub_path and local.is_dir():
            parts = [(part, parquet_files(local, hub.config, part)) for part in their_split.split("+")]
            missing = [part for part, files in parts if not files]
            if missing:
                tried = ", ".join(str(local / hub.config / f"{part}-*.parquet") for part in missing)
                raise MissingSplitError(f"{who}: no parquet files for split {split!r}; tried {tried}")
            paths = [str(file) for _, files in parts for file in files]
            return datasets.load_dataset("parquet", data_files={"rows": paths}, split="rows", streaming=True)
        # The pinned revision belongs to the pinned repository, not to what takes its place.
        revision = None if hub_path else hub.revision
        return datasets.load_dataset(path, hub.config or None, revision=revision, split=their_split)
    except DataError:
        raise
    except Exception as error:  # network, cache and format errors of several libraries
        raise MissingSplitError(
            f"{who}: can't load {_place(path, hub, split)} from the hub: {type(error).__name__}: "
            f"{error}. Without a network, run once with one (the files stay in the cache), or {advice}"
        ) from error


def _place(path: str, hub: HubSource, split: str) -> str:
    return f"{path} ({', '.join(filter(None, (hub.config, hub.splits[split])))})"


def _local_files(task: Task) -> str:
    raw = task.raw is not None and task.raw.root is None
    return "use task.source=raw task.data_dir=DIR" if raw else "use task.hub_path=DIR, a copy of its files"


def _located(task: Task, data: Any, place: str) -> Iterator[Located]:
    assert task.hub is not None
    for number, row in enumerate(data):
        yield f"{place} row {number}", as_hub_row(task, task.hub, row, number)
