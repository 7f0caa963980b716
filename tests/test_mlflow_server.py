"""A real `mlflow server` is killed and restarted in the middle of parallel runs: no metric is lost or doubled."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from composing import command
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from servers import MlflowServer, mlflow_server, postgres, postgres_programs
from test_runs import lines

from nlu_ppo.tracking.delivery import final_metrics, numbers

SMALL = ("task.limit.eval=40", "task.selection=20", "method.select_every=5", "eval.bootstrap_samples=20")
LENGTH = {"sft": "method.epochs=9", "ppo": "method.epochs=9"}
LONG = "NLU_PPO_LONG_TESTS"


def start_runs(server: MlflowServer, folder: Path, cells: Sequence[tuple[str, str, int, int]]) -> list[Any]:
    """Starts `train.py` once per (task, method, seed, steps)."""
    processes = []
    for task, method, seed, steps in cells:
        words = [f"task={task}", f"method={method}", f"seed={seed}", f"method.max_steps={steps}"]
        words += [LENGTH[method], *SMALL, f"tracking.uri={server.uri}", f"outputs={folder / 'outputs'}"]
        with (folder / f"{task}-{method}-{seed}.log").open("wb") as log:
            processes.append(subprocess.Popen(command(*words), stdout=log, stderr=log, cwd=folder))
    return processes


def run_folders(folder: Path) -> list[Path]:
    return sorted(path.parent for path in (folder / "outputs").rglob("metrics.jsonl"))


def logged(folder: Path) -> int:
    """Metrics that all runs have written so far."""
    return sum((path / "metrics.jsonl").read_bytes().count(b"\n") for path in run_folders(folder))


def wait_until(what: str, true: Any, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.2)


def runs_in(client: MlflowClient) -> list[Run]:
    experiment = client.get_experiment_by_name("nlu_ppo")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def expected_metrics(folder: Path) -> Counter[tuple[str, int, float]]:
    """(name, step, value) of all that a run's files say."""
    found: Counter[tuple[str, int, float]] = Counter()
    for line in lines(folder / "metrics.jsonl"):
        values = {name: value for name, value in line.items() if name not in ("step", "examples", "seconds")}
        found.update((name, line["examples"], value) for name, value in numbers(values).items())
    result = json.loads((folder / "result.json").read_text())
    found.update((name, 0, value) for name, value in final_metrics(result).items())
    return found


def metrics_in(client: MlflowClient, run: Run) -> Counter[tuple[str, int, float]]:
    """(name, step, value) of all that MLflow has of a run."""
    histories = (client.get_metric_history(run.info.run_id, name) for name in run.data.metrics)
    return Counter((m.key, m.step, m.value) for history in histories for m in history)


def kill_in_the_middle(server: MlflowServer, folder: Path, processes: list[Any], down: float) -> int:
    """Kills the server once every run has sent metrics, and starts it again; returns what was logged meanwhile."""
    client, count = MlflowClient(tracking_uri=server.uri), len(processes)
    wait_until(
        "metrics of every run in MLflow",
        lambda: (
            sum(any(k.startswith("train/") for k in run.data.metrics) for run in runs_in(client)) == count
        ),
    )
    server.kill()
    before = logged(folder)
    time.sleep(down)
    wait_until("steps without a server", lambda: logged(folder) > before)
    meanwhile = logged(folder) - before
    assert any(process.poll() is None for process in processes), "all runs ended before the server was back"
    server.start()
    return meanwhile


def check_all_there(server: MlflowServer, folder: Path, processes: list[Any]) -> int:
    """Every metric of every run is there, once; returns how many there are."""
    for process in processes:
        assert process.wait(timeout=1800) == 0, "\n".join(
            log.read_text()[-2000:] for log in folder.glob("*.log")
        )
    client, folders = MlflowClient(tracking_uri=server.uri), run_folders(folder)
    runs = {run.info.run_id: run for run in runs_in(client)}
    assert len(runs) == len(folders) == len(processes)  # none was created twice
    total = 0
    for path in folders:
        run = runs[json.loads((path / "run.json").read_text())["mlflow_run_id"]]
        expected = expected_metrics(path)
        assert metrics_in(client, run) == expected
        assert run.info.status == "FINISHED"
        artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
        assert {"config.yaml", "metrics.jsonl", "predictions.jsonl", "result.json"} <= artifacts
        total += expected.total()
    return total


KILLED = pytest.mark.promise(
    "MLflow's server killed (-9) and restarted in the middle of runs", "no number is lost, none arrives twice"
)


@pytest.mark.thorough
@KILLED
def test_two_runs_survive_the_death_of_their_server(tmp_path: Path, figures: dict[str, Any]) -> None:
    with mlflow_server(tmp_path, f"sqlite:///{tmp_path / 'server.db'}") as server:
        cells = [("toy_sentiment", "sft", 0, 40), ("toy_sentiment", "ppo", 0, 25)]
        processes = start_runs(server, tmp_path, cells)
        figures["lines logged while it was dead"] = kill_in_the_middle(server, tmp_path, processes, down=1)
        figures["numbers of 2 runs in MLflow"] = check_all_there(server, tmp_path, processes)


@pytest.mark.slow
@pytest.mark.skipif(LONG not in os.environ, reason=f"takes minutes: set {LONG}=1")
@KILLED
def test_eight_runs_survive_the_death_of_a_server_with_postgresql(
    tmp_path: Path, figures: dict[str, Any]
) -> None:
    programs = postgres_programs()
    if programs is None:
        pytest.skip("there is no PostgreSQL here (initdb, pg_ctl): apt install postgresql")
    if importlib.util.find_spec("psycopg2") is None:
        pytest.skip("MLflow needs psycopg2 for PostgreSQL: pip install 'nlu-ppo[postgres]'")
    with postgres(programs) as store, mlflow_server(tmp_path, store) as server:
        cells = [
            (task, method, seed, {"sft": 80, "ppo": 50}[method])
            for task in ("toy_sentiment", "toy_nli")
            for method in ("sft", "ppo")
            for seed in (0, 1)
        ]
        processes = start_runs(server, tmp_path, cells)
        meanwhile = kill_in_the_middle(server, tmp_path, processes, down=10)
        total = check_all_there(server, tmp_path, processes)
        figures["lines logged while it was dead"] = meanwhile
        figures["numbers of 8 runs in MLflow"] = total
