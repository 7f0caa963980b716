"""The model that a run logs: loaded by MLflow in a fresh process, it answers as the run did."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from composing import ROOT, run_of

from nlu_ppo.config import TrackingConfig
from nlu_ppo.run import execute
from nlu_ppo.tracking.delivery import connect, default_uri

TINY = ("task.limit.train=32", "task.limit.eval=20", "task.selection=8", "eval.bootstrap_samples=20")


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path


def last_run(outputs: Path) -> Any:
    client, experiment = connect(TrackingConfig(), outputs)
    return client.search_runs([experiment])[0]


def test_the_documented_snippet_classifies_a_sentence(tmp_path: Path) -> None:
    """The lines of docs/mlflow.md, in a fresh process, on a run of two steps with the tiny model."""
    execute(run_of(tmp_path / "run", "method=sft", "method.max_steps=2", *TINY))
    run = last_run(tmp_path)
    page = (ROOT / "docs" / "mlflow.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert "RUN_ID" in snippet
    assert "sqlite:///outputs/mlflow.db" in snippet
    program = snippet.replace("RUN_ID", run.info.run_id)
    program = program.replace("sqlite:///outputs/mlflow.db", default_uri(tmp_path))
    printed = subprocess.run(
        [sys.executable, "-c", program + "\nprint(answers.to_json())"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout  # fmt: skip
    answers = json.loads(printed.splitlines()[-1])
    assert answers["label"]["0"] in ("positive", "negative", None)
    assert sum(answers["probabilities"]["0"].values()) == pytest.approx(1)
