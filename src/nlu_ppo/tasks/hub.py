"""Rows of a split from the hub, through `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from nlu_ppo.errors import DataError
from nlu_ppo.tasks.parquet import parquet_files
from nlu_ppo.tasks.rawfiles import Located, as_hub_row
from nlu_ppo.tasks.record import Task


def hub_rows(
    task: Task, split: str, hub_path: str | Path | None
) -> tuple[Iterator[Located], tuple[str, ...], str]:
    """Rows with where they stand, the label column's class names, and a name for the whole.

    The files are downloaded once and memory-mapped from the cache afterwards (streaming would fetch them
    again for every run of a sweep); a local folder is streamed, since it needs no cache.

    Raises:
        DataError: no such split, no network and not in the cache, no such repository or revision.
    """
    if task.hub is None:
        raise DataError(f"task {task.name} isn't on the hub: use task.source=generated")
    hub = task.hub
    if split not in hub.splits:
        raise DataError(f"task {task.name} has no split {split!r} on the hub; it has {', '.join(hub.splits)}")
    their_split = hub.splits[split]
    path = str(hub_path) if hub_path else hub.path
    place = f"{path} ({', '.join(filter(None, (hub.config, their_split)))})"
    local = Path(path).expanduser()
    try:
        if hub_path and local.is_dir():
            parts = [(part, parquet_files(local, hub.config, part)) for part in their_split.split("+")]
            missing = [part for part, files in parts if not files]
            if missing:
                tried = ", ".join(str(local / hub.config / f"{part}-*.parquet") for part in missing)
                raise DataError(f"task {task.name}: no parquet files for split {split!r}; tried {tried}")
            files = [str(file) for _, found in parts for file in found]
            data: Any = datasets.load_dataset(
                "parquet", data_files={"rows": files}, split="rows", streaming=True
            )
        else:
            # The pinned revision belongs to the pinned repository, not to what takes its place.
            revision = None if hub_path else hub.revision
            data = datasets.load_dataset(path, hub.config or None, revision=revision, split=their_split)
    except DataError:
        raise
    except Exception as error:  # network, cache and format errors of several libraries
        raise DataError(
            f"task {task.name}: can't load {place} from the hub: {type(error).__name__}: {error}. Without "
            f"a network, run once with one (the files stay in the cache), or take local files: "
            f"{_local_files(task)}"
        ) from error
    features = data.features or {}
    feature = next((features[name] for name in hub.label_columns if name in features), None)
    names = tuple(getattr(feature, "names", None) or ())
    return _located(task, data, place), names, place


def _local_files(task: Task) -> str:
    return "task.source=raw task.data_dir=DIR" if task.raw and task.raw.root is None else "task.hub_path=DIR"


def _located(task: Task, data: Any, place: str) -> Iterator[Located]:
    assert task.hub is not None
    for number, row in enumerate(data):
        yield f"{place} row {number}", as_hub_row(task, task.hub, row, number)
