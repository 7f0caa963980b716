"""A long sweep of short runs: what it holds on to, what it leaves behind, whether MLflow says what the folders say."""

from __future__ import annotations

import json
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from composing import ROOT, command
from mlflow.tracking import MlflowClient

from nlu_ppo.tracking.delivery import ENDED, default_uri, final_metrics, numbers

METHODS = ("zero_shot", "sft", "ppo")
SHORT = (
    "hydra/launcher=local", "hydra.launcher.slots=2", "task=toy_sentiment", "task.limit.train=32",
    "task.limit.eval=12", "task.selection=8", "eval.bootstrap_samples=20", "study=s",
)  # fmt: skip


@pytest.mark.thorough
@pytest.mark.promise(
    "a sweep of 300 short runs on the local launcher",
    "the sweep's memory, threads and open files don't grow; no process, file or database row is left behind; MLflow "
    "holds of every run what its folder says",
)
def test_a_long_sweep_leaves_nothing_behind(tmp_path: Path, full: bool, figures: dict[str, Any]) -> None:
    seeds = 100 if full else 4
    outputs, before = tmp_path / "outputs", temporary_files()
    words = (*SHORT, f"outputs={outputs}", f"method={','.join(METHODS)}", f"seed=range(0,{seeds})")
    with (tmp_path / "sweep.log").open("wb") as log:
        sweep = subprocess.Popen(
            command("-m", *words), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        samples, seen = watch(sweep)
    assert sweep.returncode == 0, (tmp_path / "sweep.log").read_text()[-3000:]
    runs = sorted(path.parent for path in outputs.glob("s/*/*/*/*/result.json"))
    assert len(runs) == len(METHODS) * seeds
    figures |= {"runs": len(runs), "processes that were started": len(seen)}
    figures |= check_growth(samples)
    # -- left behind
    assert not [pid for pid in seen if psutil.pid_exists(pid) and mentions(pid, tmp_path)]
    assert list(outputs.rglob("*partial*")) == []
    assert temporary_files() <= before
    # -- MLflow
    figures |= compare_with_mlflow(runs, outputs)


def watch(process: subprocess.Popen[bytes]) -> tuple[list[dict[str, float]], set[int]]:
    """What the process holds, every second until it ends; and all processes that it has started."""
    samples, seen, parent = [], set(), psutil.Process(process.pid)
    while process.poll() is None:
        try:
            children = {child.pid for child in parent.children(recursive=True)}
            held = {
                "MiB": parent.memory_info().rss / 2**20,
                "files": parent.num_fds(),
                "threads": parent.num_threads(),
            }
            samples.append({**held, "children": len(children)})
            seen |= children
        except psutil.NoSuchProcess:
            continue
        time.sleep(1)
    return samples, seen


def check_growth(samples: list[dict[str, float]]) -> dict[str, Any]:
    """Medians of the second quarter of the time and of the last one; the first quarter's caches are still filling."""
    quarter, told = len(samples) // 4, {}
    for name, allowed in (("MiB", 8.0), ("files", 2), ("threads", 2)):
        early = statistics.median(sample[name] for sample in samples[quarter : 2 * quarter])
        late = statistics.median(sample[name] for sample in samples[3 * quarter :])
        assert late <= early + allowed, f"{name}: {early} in the second quarter, {late} in the last"
        told[f"{name} of the sweep, second and last quarter"] = f"{early:.0f} and {late:.0f}"
    assert (
        max(sample["children"] for sample in samples) <= 2 * 4
    )  # two runs, and what each asks git and the system
    return told


def temporary_files() -> set[Path]:
    """What nlu_ppo has put where temporary files go."""
    return set(Path(tempfile.gettempdir()).glob("nlu_ppo-*"))


def mentions(pid: int, folder: Path) -> bool:
    """Whether a process is one of a sweep's; numbers of processes are used again."""
    try:
        process = psutil.Process(pid)
        return any(
            str(folder) in word for word in [*process.cmdline(), *(f.path for f in process.open_files())]
        )
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def compare_with_mlflow(folders: list[Path], outputs: Path) -> dict[str, Any]:
    """Every run is there once, ended as its folder says, with all its numbers and none besides."""
    client = MlflowClient(tracking_uri=default_uri(outputs))
    experiment = client.get_experiment_by_name("nlu_ppo")
    assert experiment is not None
    found, token = [], None
    while True:
        page = client.search_runs([experiment.experiment_id], max_results=100, page_token=token)
        found, token = [*found, *page], page.token
        if not token:
            break
    by_id = {run.info.run_id: run for run in found}
    assert len(found) == len(by_id) == len(folders)
    with sqlite3.connect(outputs / "mlflow.db") as database:
        stored = database.execute(
            "select run_uuid, key, step, value from metrics where not is_nan"
        ).fetchall()
    rows: dict[str, Counter[tuple[str, int, float]]] = {name: Counter() for name in by_id}
    for run_id, *metric in stored:
        rows[run_id][tuple(metric)] += 1
    for folder in folders:
        record, result = (json.loads((folder / name).read_text()) for name in ("run.json", "result.json"))
        run = by_id.pop(record["mlflow_run_id"])
        assert (run.info.status, run.data.tags["key"]) == (ENDED[result["status"]], result["key"])
        assert rows[run.info.run_id] == expected_rows(folder, result), folder
        assert {a.path for a in client.list_artifacts(run.info.run_id)} >= {"config.yaml", "result.json"}
    assert not by_id
    return {"rows of metrics in MLflow, all of them in the folders": len(stored)}


def expected_rows(folder: Path, result: dict[str, Any]) -> Counter[tuple[str, int, float]]:
    """What MLflow's table of metrics has to hold of a run."""
    rows = Counter((name, 0, value) for name, value in final_metrics(result).items())
    metrics = folder / "metrics.jsonl"
    for line in metrics.read_text().splitlines() if metrics.exists() else ():
        values = json.loads(line)
        step = int(values["examples"])
        named = {k: v for k, v in values.items() if k not in ("step", "examples", "seconds")}
        rows.update((name, step, value) for name, value in numbers(named).items())
    return rows
