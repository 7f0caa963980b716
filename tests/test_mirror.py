"""MLflow mirrors runs: the same numbers, the same files, the right status; and it never stops a run."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
from connecting import connect_and_create
from mlflow.tracking import MlflowClient
from test_runs import lines, start

from nlu_ppo.config import TrackingConfig
from nlu_ppo.errors import DataError
from nlu_ppo.tracking.delivery import connect, default_uri
from nlu_ppo.tracking.mirror import sync

EXPERIMENT = "tracking.experiment=tests"


def client_of(outputs: Path) -> tuple[MlflowClient, str]:
    return connect(TrackingConfig(experiment="tests"), outputs)


def test_a_run_in_mlflow_equals_its_folder(tmp_path: Path, model_dir: Path) -> None:
    result = start(tmp_path / "run", model_dir, "ppo", EXPERIMENT, "study=s", "seed=3")
    client, experiment = client_of(tmp_path)
    (run,) = client.search_runs([experiment], "tags.study = 's' and tags.method = 'ppo' and tags.seed = '3'")
    assert run.info.status == "FINISHED"
    assert run.data.tags["key"] == json.loads((tmp_path / "run" / "result.json").read_text())["key"]
    assert run.data.params["method"] == "ppo"
    assert len(run.data.params) < 60
    assert run.data.metrics["final/score"] == pytest.approx(result["score"])
    for name in ("train/reward", "ppo/kl", "select/score"):
        expected = [(x["examples"], x[name]) for x in lines(tmp_path / "run" / "metrics.jsonl") if name in x]
        got = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        assert [step for step, _ in sorted(got)] == [examples for examples, _ in sorted(expected)]
        assert [v for _, v in sorted(got)] == pytest.approx([v for _, v in sorted(expected)])
    artifacts = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "predictions.jsonl", "metrics.jsonl", "learning_curve.png", "adapter"} <= artifacts


def test_a_failed_run_is_failed_in_mlflow_with_its_error(tmp_path: Path, model_dir: Path) -> None:
    with pytest.raises(DataError):
        start(tmp_path / "run", model_dir, "few_shot", "method.k=60", EXPERIMENT)
    client, experiment = client_of(tmp_path)
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FAILED"
    assert "method.k=60" in run.data.tags["error"]


def test_a_lost_server_stops_nothing_and_sync_brings_the_run_over(
    tmp_path: Path, model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = "tracking.uri=http://127.0.0.1:9"  # the discard port: refused at once
    result = start(tmp_path / "outputs" / "run", model_dir, "ppo", nowhere)
    assert result["status"] == "finished"
    assert "make sync" in caplog.text
    config = TrackingConfig(experiment="tests")
    assert sync(tmp_path / "outputs", config) == (1, 0)
    assert sync(tmp_path / "outputs", config) == (0, 1)
    client, experiment = client_of(tmp_path / "outputs")
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["final/score"] == pytest.approx(result["score"])
    assert len(client.get_metric_history(run.info.run_id, "train/reward")) == 4


def test_processes_that_start_together_share_a_new_database(tmp_path: Path) -> None:
    """Without the lock, parallel migrations of a new SQLite file lose most of the runs."""
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        ids = pool.map(connect_and_create, [tmp_path] * 4)
    client = MlflowClient(tracking_uri=default_uri(tmp_path))
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    assert {r.info.run_id for r in client.search_runs([experiment.experiment_id])} == set(ids)
