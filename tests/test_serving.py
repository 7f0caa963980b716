"""The model that a run logs: MLflow loads it, and it answers as the run did."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from composing import ROOT, run_of
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from test_runs import lines

from nlu_ppo.config import TrackingConfig
from nlu_ppo.run import Run, execute
from nlu_ppo.tasks import tasks_of
from nlu_ppo.tasks.splits import load_task
from nlu_ppo.tracking.delivery import connect, default_uri

SHORT = ("task.limit.train=32", "task.limit.eval=20", "task.selection=8", "eval.bootstrap_samples=20",
         "method.max_steps=2")  # fmt: skip


def trained(folder: Path, *overrides: str, name: str = "run") -> tuple[Run, Any, MlflowClient]:
    """A short run; the run in MLflow, and a client for it."""
    run = run_of(folder / name, *SHORT, *overrides)
    execute(run)
    client, experiment = connect(TrackingConfig(), folder)
    return run, client.search_runs([experiment])[0], client


def load(folder: Path, run: Any) -> Any:
    mlflow.set_tracking_uri(default_uri(folder))
    return mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model", model_config={"device": "cpu"})


def test_the_documented_snippet_classifies_a_sentence(outputs: Path) -> None:
    """The lines of docs/mlflow.md, in a fresh process, on a run with the tiny model."""
    _, run, _ = trained(outputs, "method=sft")
    page = (ROOT / "docs" / "mlflow.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert "RUN_ID" in snippet
    assert "sqlite:///outputs/mlflow.db" in snippet
    program = snippet.replace("RUN_ID", run.info.run_id)
    program = program.replace("sqlite:///outputs/mlflow.db", default_uri(outputs))
    printed = subprocess.run(
        [sys.executable, "-c", program + "\nprint(answers.to_json())"],
        capture_output=True, text=True, check=True, cwd=outputs,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout  # fmt: skip
    answers = json.loads(printed.splitlines()[-1])
    assert answers["label"]["0"] in ("positive", "negative", None)
    assert answers["probabilities"]["0"].keys() == {"positive", "negative"}
    assert sum(answers["probabilities"]["0"].values()) == pytest.approx(1)


def test_the_loaded_model_answers_as_its_run_did(outputs: Path) -> None:
    """One model of two tasks: every validation example gets the completion and the labels of predictions.jsonl."""
    run, logged, client = trained(outputs, "task=toys", "method=ppo")
    model = load(outputs, logged)
    rows, names = [], {}
    for task in tasks_of(run.config.task):
        (examples,) = load_task(task, run.config.task).evaluation.values()
        rows += [{"task": task.name, **example.fields} for example in examples]
        names[task.name] = task.labels
    answers = model.predict(pd.DataFrame(rows))
    said = lines(run.folder / "predictions.jsonl")
    assert len(said) == len(answers) == 40
    for line, answer in zip(said, answers.to_dict("records"), strict=True):
        labels = names[line["task"]]
        assert answer["completion"] == line["completion"]
        assert answer["label"] == (None if line["label"] is None else labels[line["label"]])
        assert max(answer["probabilities"], key=answer["probabilities"].get) == labels[line["likely"]]
    with pytest.raises(Exception, match="row 0: `task` is 'cola'"):
        model.predict(pd.DataFrame([{"task": "cola", "text": "x"}]))
    with pytest.raises(Exception, match="row 0: the column 'premise' holds"):
        model.predict(pd.DataFrame([{"task": "toy_nli", "text": "x"}]))

    (kept,) = client.search_logged_models([logged.info.experiment_id])
    files = [path.name for path in (outputs / "mlartifacts").rglob("*")]
    assert kept.name == "model"
    assert [output.model_id for output in logged.outputs.model_outputs] == [kept.model_id]
    assert [name for name in files if name.endswith(".safetensors")] == ["adapter_model.safetensors"]  # once
    assert not [name for name in files if name.endswith((".pkl", ".pt", ".bin"))]


def test_the_input_is_checked_against_the_signature(outputs: Path) -> None:
    """Also: full fine-tuning logs all weights; zero-shot logs no model."""
    _, logged, _ = trained(outputs, "method=sft", "lora=none")
    model = load(outputs, logged)
    assert [(c.name, str(c.type)) for c in model.metadata.signature.inputs] == [("text", "DataType.string")]
    (answer,) = model.predict(pd.DataFrame([{"text": "I did not like it."}])).to_dict("records")
    assert answer["label"] in ("positive", "negative", None)
    example = model.input_example
    assert list(model.predict(example)["completion"])
    with pytest.raises(MlflowException, match="missing inputs"):
        model.predict(pd.DataFrame([{"sentence": "I did not like it."}]))
    _, asked, client = trained(outputs, "method=zero_shot", name="asked")
    models = client.search_logged_models([asked.info.experiment_id])
    assert [m.source_run_id for m in models] == [logged.info.run_id]
