"""Rows of a split from the hub, through `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from nlu_ppo.errors import DataError, MissingSplitError
from nlu_ppo.tasks.rawfiles import Located
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
    advice = "use task.source=raw task.data_dir=DIR"
    data = load_split(f"task {task.name}", hub, split, hub_path, advice)
    feature = (data.features or {}).get("label")
    names = tuple(getattr(feature, "names", None) or ())
    place = f"{hub_path or hub.path} ({hub.config}, {hub.splits[split]})"
    return _located(data, place), names, place


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
            files = _parquet_files(local, hub.config, their_split)
            if not files:
                raise MissingSplitError(
                    f"{who}: no parquet files for split {split!r}; "
                    f"tried {local / hub.config / their_split}-*.parquet"
                )
            return datasets.load_dataset(
                "parquet", data_files={their_split: files}, split=their_split, streaming=True
            )
        # The pinned revision belongs to the pinned repository, not to what takes its place.
        revision = None if hub_path else hub.revision
        return datasets.load_dataset(path, hub.config, revision=revision, split=their_split)
    except DataError:
        raise
    except Exception as error:  # network, cache and format errors of several libraries
        raise MissingSplitError(
            f"{who}: can't load {path} ({hub.config}, {their_split}) from the hub: {type(error).__name__}: "
            f"{error}. Without a network, run once with one (the files stay in the cache), or {advice}"
        ) from error


def _parquet_files(folder: Path, config: str, split: str) -> list[str]:
    place = folder / config
    return [
        str(file) for file in sorted([*place.glob(f"{split}-*.parquet"), *place.glob(f"{split}.parquet")])
    ]


def _located(data: Any, place: str) -> Iterator[Located]:
    for number, row in enumerate(data):
        yield f"{place} row {number}", row
