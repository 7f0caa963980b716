"""MLflow slow, silent, answering nonsense, its database locked, read-only or garbage: runs go on, and nothing is lost.

Real runs of train.py, a real server behind a proxy that breaks what passes, and real SQLite files.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attempts import COMMON, ROOT, TRAINING, differences, last_step
from faulty_proxy import FaultyProxy, faulty_proxy
from forked import Forge, Forked, forge
from mlflow.tracking import MlflowClient
from servers import mlflow_server
from test_mlflow_server import expected_metrics, metrics_in, wait_until
from test_runs import start as start_here

from nlu_ppo.config import TrackingConfig
from nlu_ppo.tracking.delivery import default_uri
from nlu_ppo.tracking.mirror import sync

RUN = (
    *(word for word in (*COMMON, *TRAINING) if word != "tracking=none"),
    "method=sft", "task=toy_sentiment", "lora=paper", "method.select_every=4", "method.checkpoint_every=0",
)  # fmt: skip
WARNING = "MLflow can't be reached or refuses"


@pytest.fixture(scope="module")
def forked() -> Iterator[Forge]:
    with forge() as source:
        yield source


@pytest.fixture(scope="module")
def whole(forked: Forge, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without tracking."""
    folder = tmp_path_factory.mktemp("untracked") / "run"
    run = start(forked, folder, "tracking=none")
    assert run.wait() == 0, run.said()
    return folder


def start(forked: Forge, folder: Path, *arguments: str, **more: Any) -> Forked:
    places = (f"hydra.run.dir={folder}", f"outputs={folder.parent}")
    return forked.start(folder.with_name(folder.name + ".log"), *RUN, *places, *arguments, **more)


def check_untouched(run: Forked, folder: Path, whole: Path) -> None:
    """It ended well, with the result of a run without tracking, and said one warning with what to do."""
    assert run.wait() == 0, run.said()[-3000:]
    assert differences(whole, folder) == []
    assert "Traceback" not in run.said()


def check_told(run: Forked) -> None:
    assert run.said().count(WARNING) == 1, run.said()
    assert "`make sync` brings over what is missing" in run.said()


def check_arrived(uri: str, experiment: str, folder: Path) -> int:
    """MLflow has one run, with every number of the folder once; returns how many."""
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    expected = expected_metrics(folder)
    assert metrics_in(client, run) == expected
    assert run.info.status == "FINISHED"
    assert run.info.end_time >= run.info.start_time
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "metrics.jsonl", "predictions.jsonl", "result.json"} <= artifacts
    return expected.total()


# -- a server ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(migrated, folder / "server.db")
    with mlflow_server(folder, f"sqlite:///{folder / 'server.db'}") as found:
        yield found.uri


@pytest.fixture
def proxy(server: str) -> Iterator[FaultyProxy]:
    with faulty_proxy(server) as found:
        yield found


@pytest.mark.thorough
@pytest.mark.promise(
    "MLflow slow, silent, answering 500, 503 or HTML, or connections reset, for a while",
    "the run isn't held up, one warning tells of it, and every number arrives once",
)
@pytest.mark.parametrize("fault", ["slow", "500", "html", "reset", "answer lost", "cut"])
def test_a_faulty_server_costs_nothing(
    fault: str,
    forked: Forge,
    whole: Path,
    proxy: FaultyProxy,
    tmp_path: Path,
    figures: dict[str, Any],
    full: bool,
) -> None:
    folder, experiment = tmp_path / "run", f"tests {fault}"
    proxy.fault, proxy.delay = fault, 5.0 if full else 0.3
    run = start(forked, folder, f"tracking.uri={proxy.uri}", f"tracking.experiment={experiment}")
    wait_until("all steps logged", lambda: run.poll() is not None or last_step(folder) >= 11)
    if fault != "slow":
        wait_until("a request met the fault", lambda: run.poll() is not None or proxy.seen[fault] > 0)
        proxy.fault = ""
    check_untouched(run, folder, whole)
    if fault == "slow":
        assert WARNING not in run.said()
    else:
        check_told(run)
    sync(folder.parent, TrackingConfig(uri=proxy.uri, experiment=experiment))
    figures["requests that met it"] = proxy.seen[fault]
    figures["numbers in MLflow"] = check_arrived(proxy.uri, experiment, folder)


@pytest.mark.thorough
@pytest.mark.promise(
    "MLflow that never answers, or never well", "the run ends well, and `make sync` brings it over"
)
@pytest.mark.parametrize("fault", ["silent", "503"])
def test_a_server_that_never_comes_back(
    fault: str,
    forked: Forge,
    whole: Path,
    proxy: FaultyProxy,
    server: str,
    tmp_path: Path,
    figures: dict[str, Any],
) -> None:
    folder, experiment = tmp_path / "run", f"never {fault}"
    proxy.fault = fault
    run = start(
        forked,
        folder,
        f"tracking.uri={proxy.uri}",
        f"tracking.experiment={experiment}",
        "tracking.patience=3",
    )
    check_untouched(run, folder, whole)
    assert "`make sync` brings it over" in run.said()
    figures["requests without an answer"] = proxy.seen[fault]
    config = TrackingConfig(uri=server, experiment=experiment)
    assert sync(folder.parent, config) == (1, 0)
    assert sync(folder.parent, config) == (0, 1)
    figures["numbers in MLflow"] = check_arrived(server, experiment, folder)


# -- its database --------------------------------------------------------------------------------------------


def locked(file: Path) -> sqlite3.Connection:
    """Another program holds the database, and lets nobody read."""
    holder = sqlite3.connect(file)
    holder.execute("BEGIN EXCLUSIVE")
    return holder


BREAK = {
    "locked": locked,
    "garbage": lambda file: file.write_bytes(bytes(range(256)) * 200),
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:100_000]),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.promise(
    "the MLflow database locked by another program, full of garbage, or cut off",
    "the run ends as without, one warning tells of it, and `make sync` builds it anew from the run folders",
)
@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=() if name == "garbage" else pytest.mark.thorough) for name in BREAK]
)
def test_a_broken_database_costs_nothing(
    fault: str, model_dir: Path, outputs: Path, caplog: pytest.LogCaptureFixture, figures: dict[str, Any]
) -> None:
    plain = start_here(outputs / "whole", model_dir, "sft", "tracking=none")
    database = outputs / "mlflow.db"
    held = BREAK[fault](database)
    result = start_here(outputs / "run", model_dir, "sft", "tracking.patience=9")  # SQLite waits for five
    assert result["score"] == plain["score"]
    assert differences(outputs / "whole", outputs / "run") == []
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "MLflow" in r.getMessage()]
    assert len(told) == 2, told  # what is wrong, and at the end what is missing
    assert WARNING in told[0]
    assert "\n" not in told[0]
    if fault == "locked":
        held.close()
    else:
        code, said = synced(outputs)
        assert (code, said.count("\n")) == (1, 1), said
        assert ("mlflow.db is damaged: move it away" in said) == (fault != "a folder")
        database.rename(outputs / "broken.db")
    assert synced(outputs) == (0, "2 runs brought into MLflow, 0 were there already\n")
    assert synced(outputs) == (0, "0 runs brought into MLflow, 2 were there already\n")
    client = MlflowClient(
        tracking_uri=default_uri(outputs.rename(outputs.with_name("moved")))
    )  # no pool knows it
    (found,) = (e for e in client.search_experiments() if e.name == "nlu_ppo")
    runs = {run.data.tags["folder_id"]: run for run in client.search_runs([found.experiment_id])}
    folder = outputs.with_name("moved") / "run"
    run = runs[json.loads((folder / "run.json").read_text())["folder_id"]]
    assert metrics_in(client, run) == expected_metrics(folder)
    figures["numbers in MLflow"] = expected_metrics(folder).total()


def synced(outputs: Path) -> tuple[int, str]:
    """`make sync` as a process of its own: exit code, and what it says."""
    words = [sys.executable, "-m", "nlu_ppo.tracking", "--outputs", str(outputs)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, cwd=ROOT)
    lines = (done.stdout + done.stderr).splitlines(keepends=True)
    return done.returncode, "".join(line for line in lines if "INFO" not in line)
