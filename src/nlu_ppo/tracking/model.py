"""A trained run as an MLflow model with a signature: the adapter, and what it takes to ask it. No pickles.

The base weights are named, not copied: `tiny` is part of the package, a model of the hub goes by its id and
revision, a local one by its folder. The adapter goes from the run folder straight to MLflow, and is there once.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlu_ppo.models.locate import ADAPTER
from nlu_ppo.tracking.folder import RunFolder

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient

NAME = "model"  # runs:/<run id>/model
LOADER = "nlu_ppo.serving"
DATA = "run"  # folder of the model with its settings and its adapter
# What answering needs; named, so that MLflow needn't find it out by loading the model in another process.
REQUIREMENTS = ("nlu-ppo", "torch", "transformers", "peft", "pandas", "mlflow")
LARGEST = 1 << 30  # bytes: all weights of a fully fine-tuned model are left in the run folder


def log_model(
    client: MlflowClient, experiment: str, run_id: str, folder: RunFolder, alive: Callable[[], None]
) -> None:
    """Logs the run's model, unless it is there; completes one that a lost server left half way.

    A run that trained nothing has none. One with more than a gigabyte of weights of its own gets a tag that says
    where they are.
    """
    settings = folder.read_json("run.json").get("serving")
    if settings is None or not folder.adapter.is_dir():
        return
    if _size(folder.adapter) > LARGEST:
        client.set_tag(run_id, "weights", f"in {folder.adapter.resolve()}: too large to be copied")
        return
    known = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    model = next((m for m in known if m.name == NAME), None)
    if model is None:
        model = client.create_logged_model(experiment, NAME, source_run_id=run_id, model_type="classifier")
    if model.status != "READY":
        with tempfile.TemporaryDirectory() as scratch:
            client.log_model_artifacts(
                model.model_id, str(_laid_out(Path(scratch), settings, run_id, model.model_id))
            )
        for name, path in _weights(folder, settings).items():
            alive()
            client.log_model_artifacts(model.model_id, str(path), f"data/{DATA}/{name}")
        client.finalize_logged_model(model.model_id, "READY")
    _link(client, run_id, model.model_id)


def _link(client: MlflowClient, run_id: str, model_id: str) -> None:
    """Shows the model on the run's page."""
    from mlflow.entities import LoggedModelOutput

    outputs = client.get_run(run_id).outputs
    if not any(output.model_id == model_id for output in (outputs.model_outputs if outputs else ())):
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _weights(folder: RunFolder, settings: Mapping[str, Any]) -> dict[str, Path]:
    """Folders of weights by their name in the model."""
    start = settings["model"]["adapter"]  # needed too, unless all weights were trained, which then contain it
    has_adapter = (folder.adapter / ADAPTER).is_file()
    return {"adapter": folder.adapter, **({"start": Path(start)} if start and has_adapter else {})}


def _laid_out(scratch: Path, settings: Mapping[str, Any], run_id: str, model_id: str) -> Path:
    """All of the model but the weights, as a folder."""
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    data, target = scratch / DATA, scratch / "model"
    data.mkdir()
    (data / "settings.json").write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")
    quiet = logging.getLogger("mlflow")  # it warns of a loader without type hints
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        save_model(
            str(target),
            loader_module=LOADER,
            data_path=str(data),
            mlflow_model=Model(run_id=run_id, model_id=model_id, model_uuid=model_id),
            signature=_signature(settings),
            input_example=settings["example"],
            model_config={"device": "auto"},  # what `load_model` may choose
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in REQUIREMENTS],
        )
    finally:
        quiet.setLevel(level)
    return target


def _signature(settings: Mapping[str, Any]) -> ModelSignature:
    """A text for every slot of the prompt (and the task's name, where there are several) to label and completion."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Map, Schema

    columns: dict[str, Any] = {}
    by_task = settings["columns"]
    for slots in by_task.values():
        columns |= dict.fromkeys(slots, DataType.string)
    for slot in settings["lists"]:
        columns[slot] = Array(DataType.string)
    several = len(by_task) > 1
    inputs: list[Any] = [ColSpec(kind, name, required=not several) for name, kind in columns.items()]
    if several:
        inputs.append(ColSpec(DataType.string, "task"))
    outputs: list[Any] = [
        ColSpec(DataType.double if settings["numbers"] else DataType.string, "label", required=False),
        ColSpec(DataType.string, "completion"),
        ColSpec(Map(DataType.double), "probabilities", required=False),
    ]
    if several:  # a label may be a word or a number
        outputs[0] = ColSpec(AnyType(), "label", required=False)
    return ModelSignature(Schema(inputs), Schema(outputs))
