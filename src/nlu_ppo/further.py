"""The tasks in `eval.also`: sets that a run's model is evaluated on beside its own. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nlu_ppo.config import Config, TaskConfig, key_fields
from nlu_ppo.errors import ConfigError, DataError
from nlu_ppo.tasks.record import Task
from nlu_ppo.tasks.registry import task_config, tasks_of
from nlu_ppo.tasks.splits import TaskData, check_source, data_fingerprint, load_evaluation


def further_tasks(config: Config) -> list[tuple[Task, TaskConfig]]:
    """Every task in `eval.also` with its settings; the run's own tasks are left out, they are scored anyway.

    Raises:
        ConfigError: a task that doesn't exist, twice the same, or whose source doesn't fit.
    """
    own = {task.name for task in tasks_of(config.task)} if config.eval.also else set()
    found: dict[str, tuple[Task, TaskConfig]] = {}
    for word in config.eval.also:
        settings = _as_asked(task_config(word), config)
        for task in tasks_of(settings):
            if task.name in found:
                raise ConfigError(f"eval.also names {task.name} twice")
            if task.name not in own:
                check_source(task, settings)
                found[task.name] = (task, settings)
    return list(found.values())


def _as_asked(task: TaskConfig, config: Config) -> TaskConfig:
    """With `eval.source`, `eval.data_dir` and `eval.limit`; a task of one's own says where its data are."""
    asked = config.eval
    if asked.limit is not None:
        task = replace(task, limit=replace(task.limit, eval=asked.limit))
    if task.record is not None or task.source == "generated":
        return task
    task = replace(task, source=asked.source or task.source, data_dir=asked.data_dir or task.data_dir)
    if task.source == "raw" and task.data_dir is None:
        raise ConfigError(
            f"eval.source=raw needs eval.data_dir=DIR, the folder with the files of {task.name}"
        )
    return task


def load_further(config: Config, scratch: Path | None = None) -> list[TaskData]:
    """What the tasks in `eval.also` are evaluated on, and nothing to train on.

    The majority row of such a set is its own commonest label: the model has seen none of its train split.

    Raises:
        ConfigError: a task that doesn't exist, or whose source doesn't fit.
        DataError: a file is missing or malformed, or a split is empty or without labels.
    """
    found = []
    for task, settings in further_tasks(config):
        bad_rows: dict[str, list[str]] = {}
        try:
            evaluation = load_evaluation(task, settings, scratch, bad_rows)
        except DataError as error:
            raise DataError(
                f"eval.also: {error} (in place of task.source and task.data_dir, these sets take eval.source "
                f"and eval.data_dir)"
            ) from error
        labels = [e.label for examples in evaluation.values() for e in examples if e.label is not None]
        found.append(TaskData(task, [], [], evaluation, labels, bad_rows))
    return found


def further_identity(further: Sequence[tuple[Task, TaskConfig]]) -> list[dict[str, Any]]:
    """What of further tasks can change a result: their settings, and the examples they come to."""
    parts = []
    for task, settings in further:
        kept = {"source": settings.source, "on_bad_row": settings.on_bad_row, "limit": settings.limit.eval}
        data = data_fingerprint(task, settings, task.eval_splits)
        parts.append({"task": task.name, **kept, **record_identity(settings), "data": data})
    return parts


def record_identity(config: TaskConfig) -> dict[str, Any]:
    """What `task.record` says; nothing without one."""
    if config.record is None:
        return {}
    parts = {f"record.{name}": value for name, value in key_fields(config.record).items()}
    # the order of the labels is that of the answers in the prompt, and JSON objects have none
    parts["record.labels"] = [[str(label), word] for label, word in config.record.labels.items()]
    return parts
