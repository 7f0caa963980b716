"""What a run reads, as MLflow's datasets: name, digest, source and number of rows; the rows stay where they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

from nlu_ppo.config import Config, TaskConfig, TrainingConfig, ZeroShotConfig
from nlu_ppo.further import further_tasks
from nlu_ppo.tasks.record import Task
from nlu_ppo.tasks.splits import TaskData

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput


def slots_of(task: Task) -> list[str]:
    """The texts that a prompt of the task shows, in their order."""
    return list(dict.fromkeys(name for _, name, _, _ in Formatter().parse(task.template) if name))


def describe_data(
    config: Config, identity: Mapping[str, Any], tasks: Iterable[TaskData], beside: Iterable[TaskData]
) -> list[dict[str, Any]]:
    """The splits that a run uses, as `run.json` keeps them.

    Args:
        identity: what the run's key is made of; it has the fingerprints of all files.
        beside: the tasks in `eval.also`.
    """
    found = []
    for data in tasks:
        splits: list[tuple[str, str, Sequence[Any]]] = []
        if not isinstance(config.method, ZeroShotConfig):
            context = "training" if isinstance(config.method, TrainingConfig) else "demonstrations"
            splits.append(("train", context, data.train))
        if isinstance(config.method, TrainingConfig) and data.selection:
            splits.append(("train, held out", "selection", data.selection))
        splits += [(split, "evaluation", examples) for split, examples in data.evaluation.items()]
        found += _entries(data.task, config.task, identity["data"][data.task.name], splits)
    settings = {task.name: own for task, own in further_tasks(config)}
    digests = {part["task"]: part["data"] for part in identity.get("also", ())}
    for data in beside:
        name = data.task.name
        splits = [(split, "evaluation", examples) for split, examples in data.evaluation.items()]
        found += _entries(data.task, settings[name], digests[name], splits)
    return found


def _entries(
    task: Task, config: TaskConfig, fingerprint: str, splits: Iterable[tuple[str, str, Sequence[Any]]]
) -> list[dict[str, Any]]:
    """A subset is drawn by its size alone, so that files, split and size tell which rows these are."""
    return [
        {
            "name": f"{task.name}/{split}",
            "context": context,
            "rows": len(examples),
            "digest": hashlib.sha256(f"{fingerprint}/{split}/{len(examples)}".encode()).hexdigest()[:16],
            "columns": slots_of(task),
            "source": _source(task, config),
        }
        for split, context, examples in splits
    ]


def _source(task: Task, config: TaskConfig) -> dict[str, Any]:
    if config.source == "hub" and task.hub is not None:
        return {
            "path": config.hub_path or task.hub.path,
            "config_name": task.hub.config or None,
            "revision": None if config.hub_path else task.hub.revision,
        }
    if config.source == "raw":
        folder = config.data_dir or (task.raw.root if task.raw else None) or "."
        return {"folder": str(Path(folder).expanduser().resolve())}
    return {"generator": f"nlu_ppo.tasks.toy: {task.name}"}


def dataset_inputs(entries: Iterable[Mapping[str, Any]]) -> list[DatasetInput]:
    """What `describe_data` gave, as MLflow takes it."""
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.types.schema import ColSpec, Schema

    inputs = []
    for entry in entries:
        schema = Schema([ColSpec("string", name) for name in entry["columns"]])
        source = _mlflow_source(entry["source"])
        told = MetaDataset(source, entry["name"], entry["digest"], schema)  # type: ignore[abstract]
        dataset = Dataset(**told.to_dict(), profile=json.dumps({"num_rows": entry["rows"]}))
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", entry["context"])]))
    return inputs


def _mlflow_source(source: Mapping[str, Any]) -> Any:
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.huggingface_dataset_source import HuggingFaceDatasetSource

    if "generator" in source:
        return CodeDatasetSource(tags={"generator": source["generator"]})
    if "folder" in source:
        return resolve_dataset_source(source["folder"])
    return HuggingFaceDatasetSource(**source)
