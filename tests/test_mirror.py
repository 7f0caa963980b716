"""MLflow mirrors runs: the same numbers, the same files, the right status; and it never stops a run."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from pathlib import Path

import pytest
from composing import config_of
from connecting import connect_and_create
from faulty_proxy import faulty_proxy
from mlflow.tracking import MlflowClient
from test_runs import lines, start

from nlu_ppo.config import TrackingConfig
from nlu_ppo.credentials import hide_passwords, take_password, without_password
from nlu_ppo.errors import DataError, TrackingError
from nlu_ppo.tracking.delivery import connect, default_uri
from nlu_ppo.tracking.folder import RunFolder
from nlu_ppo.tracking.mirror import sync
from nlu_ppo.tracking.params import params_of

EXPERIMENT = "tracking.experiment=tests"
NOWHERE = "http://127.0.0.1:9"  # the discard port: refused at once


def client_of(outputs: Path) -> tuple[MlflowClient, str]:
    return connect(TrackingConfig(experiment="tests"), outputs)


def test_a_run_in_mlflow_equals_its_folder(outputs: Path, model_dir: Path) -> None:
    result = start(outputs / "run", model_dir, "ppo", EXPERIMENT, "study=s", "seed=3")
    client, experiment = client_of(outputs)
    (run,) = client.search_runs([experiment], "tags.study = 's' and tags.method = 'ppo' and tags.seed = '3'")
    assert run.info.status == "FINISHED"
    assert run.data.tags["key"] == json.loads((outputs / "run" / "result.json").read_text())["key"]
    assert run.data.metrics["final/score"] == pytest.approx(result["score"])
    for name in ("train/reward", "ppo/kl", "select/score"):
        expected = [(x["examples"], x[name]) for x in lines(outputs / "run" / "metrics.jsonl") if name in x]
        got = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        assert [step for step, _ in sorted(got)] == [examples for examples, _ in sorted(expected)]
        assert [v for _, v in sorted(got)] == pytest.approx([v for _, v in sorted(expected)])
    artifacts = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert artifacts == {
        "config.yaml", "predictions.jsonl", "metrics.jsonl", "learning_curve.png", "result.json"
    }  # fmt: skip

    read = {
        (i.dataset.name, i.tags[0].value): json.loads(i.dataset.profile) for i in run.inputs.dataset_inputs
    }
    assert read == {
        ("toy_sentiment/train", "training"): {"num_rows": 32},
        ("toy_sentiment/train, held out", "selection"): {"num_rows": 8},
        ("toy_sentiment/validation", "evaluation"): {"num_rows": 12},
    }


def test_a_failed_run_is_failed_in_mlflow_with_its_error(outputs: Path, model_dir: Path) -> None:
    with pytest.raises(DataError):
        start(outputs / "run", model_dir, "few_shot", "method.k=60", EXPERIMENT)
    client, experiment = client_of(outputs)
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FAILED"
    assert "method.k=60" in run.data.tags["error"]


@pytest.mark.promise(
    "MLflow that never answers, or never well", "the run ends well, and `make sync` brings it over"
)
@pytest.mark.parametrize("fault", ["not there", "500", "html"])
def test_a_lost_server_stops_nothing_and_sync_brings_the_run_over(
    outputs: Path, model_dir: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    with faulty_proxy(NOWHERE) as proxy:
        proxy.fault = fault
        uri = NOWHERE if fault == "not there" else proxy.uri
        result = start(outputs / "run", model_dir, "ppo", f"tracking.uri={uri}")
    assert result["status"] == "finished"
    assert caplog.text.count("MLflow can't be reached or refuses") == 1
    assert "make sync" in caplog.text
    config = TrackingConfig(experiment="tests")
    assert sync(outputs, config) == (1, 0)
    assert sync(outputs, config) == (0, 1)
    client, experiment = client_of(outputs)
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["final/score"] == pytest.approx(result["score"])
    assert len(client.get_metric_history(run.info.run_id, "train/reward")) == 4


@pytest.fixture
def half_way(outputs: Path) -> tuple[RunFolder, MlflowClient, str]:
    """A run of which MLflow has the first two of three lines, and which then died without a word."""
    folder = RunFolder(outputs / "run", "0" * 64)
    folder.open()
    names = {"task": "t", "model": "m", "method": "sft", "seed": "0"}
    folder.begin({"tags": names, "params": {"method": "sft"}}, "task: t\n")
    for step in (1, 2):
        folder.append_metrics({"step": step, "examples": 16 * step, "seconds": step, "train/loss": 1 / step})
    folder.close()
    assert sync(outputs, TrackingConfig(experiment="tests")) == (1, 0)
    folder.append_metrics({"step": 3, "examples": 48, "seconds": 3.5, "train/loss": None, "a %,b/x": 7})
    client, experiment = client_of(outputs)
    (run,) = client.search_runs([experiment])
    return folder, client, run.info.run_id


def test_sync_completes_what_is_partly_there(half_way: tuple[RunFolder, MlflowClient, str]) -> None:
    folder, client, run_id = half_way
    assert client.get_run(run_id).info.status == "KILLED"
    outputs, config = folder.path.parent, TrackingConfig(experiment="tests")
    assert sync(outputs, config) == (1, 0)
    assert sync(outputs, config) == (0, 1)
    folder.finish({"status": "finished", "metrics": {"accuracy": 0.5}, "score": 50.0})
    assert sync(outputs, config) == (1, 0)
    assert sync(outputs, config) == (0, 1)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    history = {name: client.get_metric_history(run_id, name) for name in run.data.metrics}
    assert {name: [(m.step, m.value) for m in found] for name, found in history.items()} == {
        "train/loss": [(16, 1.0), (32, 0.5)],  # once each; what is no number has no place
        "a __b/x": [(48, 7.0)],  # MLflow takes no % and no comma in a name
        "final/accuracy": [(0, 0.5)],
        "final/score": [(0, 50.0)],
    }
    stamps = [m.timestamp - 1000 * folder.started for m in history["train/loss"]]
    assert stamps == pytest.approx([1000, 2000], abs=1)
    experiment = run.info.experiment_id
    assert len(client.search_runs([experiment])) == 1


def test_a_run_whose_id_was_lost_is_found_again(half_way: tuple[RunFolder, MlflowClient, str]) -> None:
    """Killed between the server's answer and the note of it, or the answer never came."""
    folder, client, run_id = half_way
    folder.update_record({"mlflow_run_id": None})
    assert sync(folder.path.parent, TrackingConfig(experiment="tests")) == (1, 0)
    assert folder.read_json("run.json")["mlflow_run_id"] == run_id
    assert len(client.search_runs([client.get_run(run_id).info.experiment_id])) == 1


def test_sync_leaves_runs_at_work_alone(half_way: tuple[RunFolder, MlflowClient, str]) -> None:
    folder, _, _ = half_way
    other = RunFolder(folder.path, folder.key)
    assert other.claim()
    assert sync(folder.path.parent, TrackingConfig(experiment="tests")) == (0, 0)
    other.close()
    with pytest.raises(TrackingError, match="can't be reached"):
        sync(folder.path.parent, TrackingConfig(uri=NOWHERE))


@pytest.mark.promise(
    "MLflow that takes connections and is silent", "the run waits no longer than `tracking.patience`"
)
def test_a_server_that_hangs_holds_up_a_run_no_longer_than_its_patience(
    tmp_path: Path, model_dir: Path
) -> None:
    """It takes connections and never answers: only the run's end waits, as long as was asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"tracking.uri=http://127.0.0.1:{server.getsockname()[1]}"
        result = start(tmp_path / "run", model_dir, "zero_shot", uri, "tracking.patience=0.5")
    assert result["status"] == "finished"  # and this test ended


def test_params_are_few_and_name_what_was_set() -> None:
    def params(*overrides: str) -> dict[str, str]:
        config = config_of(*overrides)
        names = {"task": "toy_sentiment", "model": "tiny", "method": config.method.name}
        if config.method.name == "ppo":
            names |= {"reward": "label_agreement", "lora": "paper"}
        return params_of(config, names, [word.partition("=")[0] for word in overrides])

    chosen = {"task": "toy_sentiment", "model": "tiny", "seed": "0"}
    assert params("method=zero_shot", "lora.r=4") == {**chosen, "method": "zero_shot"}  # it uses no adapter
    assert params("method=few_shot") == {**chosen, "method": "few_shot", "with.method.k": "5"}
    ppo = params("method=ppo")
    assert ppo == {
        **chosen, "method": "ppo", "with.method.optimizer": "adafactor",
        "with.method.learning_rate": "0.0006", "with.method.epochs": "1.5",
    }  # fmt: skip
    assert not any("answer_words" in name for name in params("method=sft"))  # empty, as it is for all runs
    started = params("method=ppo", "method.init=sft")
    assert started == {**ppo, "with.method.init": "sft"}  # what the SFT run was set to is told by that one
    # a sweep gives every run of it the key, also where the value is the default
    swept = params(
        "method=ppo", "lora=paper", "method.clip_range=0.2", "lora.r=4", "task.limit.train=10", "device=cpu"
    )
    settings = {"with.method.clip_range": "0.2", "with.lora.r": "4", "with.task.limit.train": "10"}
    assert swept == {**ppo, "lora": "paper", **settings}


def test_passwords_are_used_and_never_recorded(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "PGUSER", "PGPASSWORD"):
        monkeypatch.setenv(name, "")
    secret = "http://ann:s3cr%40t@127.0.0.1:9"
    start(tmp_path / "run", model_dir, "zero_shot", f"tracking.uri={secret}")
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "ann"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "s3cr@t"
    assert "127.0.0.1" in caplog.text
    assert "s3cr" not in caplog.text
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or b"s3cr" not in path.read_bytes(), path
    assert hide_passwords(["task=cb", f"tracking.uri={secret}"]) == ["task=cb", f"tracking.uri={NOWHERE}"]
    assert hide_passwords([f"tracking.uri={NOWHERE}", "a=b=c"]) == [f"tracking.uri={NOWHERE}", "a=b=c"]
    assert take_password("postgresql+psycopg2://bob:pw@db/x") == "postgresql+psycopg2://db/x"
    assert (os.environ["PGUSER"], os.environ["PGPASSWORD"]) == ("bob", "pw")
    assert without_password("mysql://bob:pw@db:3306/x") == "mysql://bob:***@db:3306/x"


def test_processes_that_start_together_share_a_new_database(tmp_path: Path) -> None:
    """Without the lock, parallel migrations of a new SQLite file lose most of the runs."""
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        ids = pool.map(connect_and_create, [tmp_path] * 4)
    client = MlflowClient(tracking_uri=default_uri(tmp_path))
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    assert {r.info.run_id for r in client.search_runs([experiment.experiment_id])} == set(ids)
