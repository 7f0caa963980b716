"""hydra/launcher=local with real runs: what fails, dies, or is stopped, and what a second start does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from composing import ROOT, command
from mlflow.tracking import MlflowClient
from waiting import is_alive, wait_until

from nlu_ppo.errors import ConfigError
from nlu_ppo.launching.local import LocalLauncher, slot_environments, visible_gpus
from nlu_ppo.tracking.delivery import default_uri

SHORT = (
    "hydra/launcher=local", "hydra.launcher.slots=2", "task.limit.train=32", "task.limit.eval=12",
    "task.selection=8", "eval.bootstrap_samples=20", "study=s",
)  # fmt: skip
# Rewards that end a run in every way, and one that takes its time as long as a flag is there.
REWARDS = """
import os, signal, sys, time

def kills(completion, answer, example, *, task, config):
    os.kill(os.getpid(), signal.SIGKILL)

def leaves(completion, answer, example, *, task, config):
    sys.exit(0)

def vanishes(completion, answer, example, *, task, config):
    os._exit(0)

def lasts(completion, answer, example, *, task, config):
    if os.path.exists(__file__ + ".slow"):
        time.sleep(0.2)
    return float(answer == example.label)
"""


def sweep(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Starts `train.py -m` with the tiny model and few examples, runs below `folder`."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*command("-m"), *SHORT, f"outputs={folder}", *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def outcome(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def results(folder: Path) -> list[dict[str, Any]]:
    """What the run folders' result.json say."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("s/*/*/*/*/result.json"))]


def contents(folder: Path) -> dict[Path, int]:
    """All files, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# -- to the end ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.promise(
    "a run of a sweep killed, or leaving in whatever way",
    "the others are finished; it is named at the end, with its log; folder and MLflow say that it failed",
)
def test_a_run_that_dies_is_named_at_the_end_and_touches_no_other(tmp_path: Path) -> None:
    rewards = tmp_path / "rewards.py"
    rewards.write_text(REWARDS)
    names = ",".join(f"{rewards}:{name}" for name in ("kills", "leaves", "vanishes", "lasts"))
    code, out, err = outcome(sweep(tmp_path, "method=ppo", "method.max_steps=1", f"reward.name={names}"))
    assert code == 1
    assert "4 runs to do, 2 at a time" in out
    assert "s: 1 of 4 done, 0 running, 3 failed, 0 waiting" in out
    assert out.count("\ndone: ") == 1
    summary = err[err.index("error: 3 of 4 cells failed") :]
    for name, says in {
        "kills": "killed by SIGKILL (by a user, or by the system when memory runs out)\n      log: ",
        "leaves": "RuntimeError: the run called sys.exit(0)\n      exit code 1, log: ",
        "vanishes": "it left before it had a result (exit code 0)\n      log: ",
    }.items():
        told = re.search(rf"rewards\.py\\:{name}\n      (.*\n.*)\n", summary)
        assert told is not None, summary
        assert told[1].startswith(says)
        assert "attempt 1" in Path(told[1].rpartition("log: ")[2]).read_text()
    assert ":lasts" not in summary
    found = {r.get("error", "finished").partition(" (")[0]: r["status"] for r in results(tmp_path)}
    assert found == {
        "killed by SIGKILL": "failed",
        "SystemExit: 0": "failed",
        "it left before it had a result": "failed",
        "finished": "finished",
    }
    client = MlflowClient(tracking_uri=default_uri(tmp_path))
    experiment = client.get_experiment_by_name("nlu_ppo")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.status for run in runs) == ["FAILED"] * 3 + ["FINISHED"]
    errors = {run.data.tags["error"].partition(" (")[0] for run in runs if run.info.status == "FAILED"}
    assert errors == {*found} - {"finished"}


# -- stopped on the way --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.promise(
    "a sweep stopped by SIGTERM, or killed with -9",
    "no run is left behind; the same command goes on where it stopped",
)
def test_a_sweep_that_is_stopped_or_killed_takes_its_runs_along_and_goes_on(tmp_path: Path) -> None:
    rewards, slow = tmp_path / "rewards.py", tmp_path / "rewards.py.slow"
    rewards.write_text(REWARDS)
    grid = (
        "method=ppo", "method.epochs=9", "method.max_steps=4", "method.checkpoint_every=1",
        "method.select_every=0", "seed=0,1", "tracking=none", f"reward.name={rewards}:lasts",
    )  # fmt: skip

    def start() -> tuple[subprocess.Popen[str], list[int]]:
        """Starts the sweep; returns it, and the processes of its runs once both have logged a step."""
        slow.touch()
        began = time.time()
        process = sweep(tmp_path, *grid)

        def at_work() -> bool:
            assert process.poll() is None, process.communicate()
            files = [f for f in tmp_path.glob("s/*/*/*/[01]-*/metrics.jsonl") if f.stat().st_mtime > began]
            return len(files) == 2 and all(file.read_text() for file in files)

        wait_until(at_work)
        return process, [child.pid for child in psutil.Process(process.pid).children()]

    process, children = start()
    process.send_signal(signal.SIGTERM)
    code, out, err = outcome(process)
    assert code == 130
    assert "goes on where this one stopped" in err
    assert out.count("stopped: ") == len(children) == 2
    assert not any(map(is_alive, children))
    assert [r["status"] for r in results(tmp_path)] == ["interrupted"] * 2

    process, children = start()
    process.kill()
    process.communicate()
    assert len(children) == 2
    wait_until(lambda: not any(map(is_alive, children)), seconds=30)

    slow.unlink()
    code, out, err = outcome(sweep(tmp_path, *grid))
    assert (code, err) == (0, "")
    assert [(r["seed"], r["status"]) for r in results(tmp_path)] == [(s, "finished") for s in range(2)]
    for log in tmp_path.glob("s/*/*/*/*/run.log"):
        assert log.read_text().count("attempt 1") == 3
        assert "going on from step" in log.read_text()
        assert "95% interval" in log.read_text()  # what a run prints of itself at its end

    before = contents(tmp_path)
    code, out, err = outcome(sweep(tmp_path, *grid))
    assert (code, err) == (0, "")
    assert "2 of 2 runs are finished already" in out
    assert "done: " not in out
    assert [path.name for path, when in contents(tmp_path).items() if when != before.get(path)] == [
        "multirun.yaml"  # of the sweep itself
    ]


# -- settings ------------------------------------------------------------------------------------------------


def threads(environments: list[dict[str, str]]) -> list[int]:
    assert all(e["OMP_NUM_THREADS"] == e["MKL_NUM_THREADS"] for e in environments)
    return [int(e["OMP_NUM_THREADS"]) for e in environments]


def test_slots_share_out_the_cores_and_the_gpus() -> None:
    assert threads(slot_environments(None, None, [], 4)) == [1, 1, 1, 1]
    assert threads(slot_environments(2, None, [], 5)) == [2, 2]
    assert threads(slot_environments(None, 2, [], 5)) == [2, 2]
    assert threads(slot_environments(8, None, [], 4)) == [1] * 8
    assert "CUDA_VISIBLE_DEVICES" not in slot_environments(None, None, [], 1)[0]
    for slots, expected in ((None, ["0", "3"]), (1, ["0"]), (4, ["0", "3", "0", "3"])):
        environments = slot_environments(slots, None, ["0", "3"], 16)
        assert [e["CUDA_VISIBLE_DEVICES"] for e in environments] == expected
        assert threads(environments) == [16 // len(expected)] * len(expected)


def test_more_threads_than_cores_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.threads=2 in 2 slots .* 3 cores"):
        slot_environments(2, 2, [], 3)


def test_the_visible_gpus_are_those_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for named, expected in (("2,0", ["2", "0"]), ("", []), ("1,-1,2", ["1"]), ("GPU-8f3a", ["GPU-8f3a"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert visible_gpus() == expected


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"slots": 0}, "hydra.launcher.slots=0: it takes a whole number, at least 1, or null"),
        ({"threads": "many"}, "hydra.launcher.threads=many: it takes a whole number"),
        ({"retries": 1.5}, "hydra.launcher.retries=1.5: it takes a whole number, at least 0"),
        ({"grace": -1}, "hydra.launcher.grace=-1: it takes a number, at least 0"),
    ],
)
def test_a_wrong_setting_is_named(setting: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LocalLauncher(**setting)
    assert str(caught.value).startswith(says)


def test_a_wrong_setting_on_the_command_line_gives_one_line(tmp_path: Path) -> None:
    code, out, err = outcome(sweep(tmp_path, "hydra.launcher.slots=two", "seed=0,1"))
    assert (code, out) == (2, "")
    assert err == "error: hydra.launcher.slots=two: it takes a whole number, at least 1, or null\n"
