"""Which data and models runs need that are not on this machine. Needs neither torch nor network."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

from nlu_ppo.config import Config, TaskConfig
from nlu_ppo.errors import DataError
from nlu_ppo.further import further_tasks
from nlu_ppo.models.locate import resolve_path
from nlu_ppo.run import Run
from nlu_ppo.tasks.rawfiles import locate
from nlu_ppo.tasks.record import HubSource, Task
from nlu_ppo.tasks.registry import tasks_of
from nlu_ppo.tasks.texts import HUB as WIKITEXT_HUB
from nlu_ppo.tasks.texts import WIKITEXT

NETWORK = "needs a network"


def absent(runs: Iterable[Run]) -> list[str]:
    """A line for each model, data set or file that some of the runs need and that isn't here."""
    lines: dict[str, None] = {}
    for config in [run.config for run in runs]:
        lines.update(dict.fromkeys((*_models(config), *_data(config))))
    return list(lines)


def _models(config: Config) -> Iterator[str]:
    if config.model.kind == "endpoint":
        return
    path, revision = config.model.path, config.model.revision
    if Path(resolve_path(path)).is_dir():
        return
    if not isinstance(try_to_load_from_cache(path, "config.json", revision=revision), str):
        yield f"model {path} is not in the cache ({HF_HUB_CACHE}): {NETWORK}, and leave if it is gated"


def _data(config: Config) -> Iterator[str]:
    for task in tasks_of(config.task):
        splits = [*(["train"] if task.trainable else []), *task.eval_splits]
        if config.eval.submission:
            splits += [split for split in _splits(task, config.task) if split.startswith("test")]
        yield from _of_task(task, config.task, splits)
    for task, settings in further_tasks(config):
        yield from _of_task(task, settings, task.eval_splits)
    if config.eval.perplexity == WIKITEXT:
        yield from _of_hub("the text wikitext", WIKITEXT_HUB)


def _splits(task: Task, config: TaskConfig) -> Sequence[str]:
    source = task.raw.files if config.source == "raw" and task.raw else task.hub.splits if task.hub else ()
    return list(source)


def _of_task(task: Task, config: TaskConfig, splits: Sequence[str]) -> Iterator[str]:
    if config.source == "raw":
        for split in splits:
            try:
                locate(task, split, config.data_dir)
            except DataError as error:
                yield str(error)
    elif config.source == "hub" and task.hub is not None and not config.hub_path:
        yield from _of_hub(f"task {task.name}", task.hub)


def _of_hub(who: str, hub: HubSource) -> Iterator[str]:
    """`datasets` keeps what it has prepared under the repository's name, and the hub's files elsewhere."""
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or Path(HF_HOME) / "datasets")
    owner, _, name = hub.path.partition("/")
    folders = {f"{owner}___{name}", f"{owner}___{name.lower()}"}
    if not any((prepared / folder / (hub.config or "default")).is_dir() for folder in folders):
        yield f"{who}: {hub.path} is not in the cache of data sets ({prepared}): {NETWORK}"
