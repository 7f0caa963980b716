"""hydra/launcher=submitit_slurm on a real Slurm of one node, which these tests start; skipped where there is none."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from composing import ROOT, command
from slurm_node import missing, slurm_node
from waiting import wait_until

from nlu_ppo.launching.slurm import _seconds

REWARDS = """
import os, signal, time

def kills(completion, answer, example, *, task, config):
    os.kill(os.getpid(), signal.SIGKILL)

def vanishes(completion, answer, example, *, task, config):
    os._exit(0)

def lasts(completion, answer, example, *, task, config):
    if os.path.exists(__file__ + ".slow"):
        time.sleep(0.2)
    return float(answer == example.label)
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which a Slurm of our own is at hand."""
    pytest.importorskip("submitit", reason="submitit isn't installed: pip install -e '.[slurm]'")
    if reason := missing():
        pytest.skip(reason)
    with slurm_node(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


def queued(environment: dict[str, str]) -> list[list[str]]:
    """Number and state of each job that waits or runs."""
    told = subprocess.run(
        ["squeue", "--noheader", "--format=%i %T"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split() for line in told.stdout.splitlines()]


def sweep(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    """Starts a sweep with the tiny model and few examples, runs below `folder`."""
    common = (
        "hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.poll_s=1",
        "hydra.launcher.timeout_min=10", "task.limit.train=32", "task.limit.eval=12", "task.selection=8",
        "eval.bootstrap_samples=20", "tracking=none", f"outputs={folder}", "study=s",
    )  # fmt: skip
    return subprocess.Popen(
        command("-m", *common, *arguments), cwd=ROOT, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """The first line of a sweep's output with these words."""
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return line
    raise AssertionError(process.communicate())


@pytest.mark.slow
@pytest.mark.promise(
    "jobs of a Slurm array that die, or are preempted",
    "those that die are named; the others go on from their checkpoints",
)
def test_jobs_that_die_are_named_and_those_that_are_interrupted_go_on(
    tmp_path: Path, slurm: dict[str, str]
) -> None:
    rewards, slow = tmp_path / "rewards.py", tmp_path / "rewards.py.slow"
    rewards.write_text(REWARDS)

    def start(*names: str) -> subprocess.Popen[str]:
        return sweep(
            tmp_path, slurm, "method=ppo", "method.epochs=9", "method.max_steps=8", "method.checkpoint_every=1",
            "method.select_every=0", "reward.name=" + ",".join(f"{rewards}:{name}" for name in names),
        )  # fmt: skip

    def start_and_wait() -> tuple[subprocess.Popen[str], Path]:
        """Starts a slow run; returns the sweep, and the run's folder once it has logged a step."""
        slow.touch()
        began, process = time.time(), start("lasts")

        def logged() -> list[Path]:
            assert process.poll() is None, process.communicate()
            files = tmp_path.glob("s/*/*/*/*/metrics.jsonl")
            return [f.parent for f in files if f.stat().st_mtime > began and f.read_text()]

        wait_until(lambda: bool(logged()))
        return process, logged()[0]

    process, folder = start_and_wait()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "stopped: " in out
    assert "goes on where this one stopped" in err
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"
    assert queued(slurm) == []

    process, _ = start_and_wait()
    process.kill()
    process.communicate()
    ((job, state),) = queued(slurm)
    assert state == "RUNNING"
    # what Slurm sends ahead of a time limit, or to one that has to make room
    subprocess.run(["scancel", "--signal=USR2", job], env=slurm, check=True)
    wait_until(lambda: (folder / "run.log").read_text().count("interrupted: the same sweep") == 2)

    process = start("lasts", "kills", "vanishes")
    read_until(process, "1 of them are jobs of Slurm already")
    slow.unlink()
    out, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "s: 1 of 3 done, 0 running, 2 failed, 0 waiting" in out
    log = (folder / "run.log").read_text()
    assert f"Slurm job {job}, start 2, on " in log
    assert "going on from step" in log
    assert "95% interval" in log
    summary = err[err.index("error: 2 of 3 cells failed") :]
    for name, says in {
        "kills": r"Slurm job \S+: FAILED, killed by signal 9, Slurm's log: \S+",
        "vanishes": r"it left before it had a result \(exit code 0\)",
    }.items():
        told = re.search(rf"rewards\.py\\:{name}\n +{says}\n +log: (\S+)\n", summary)
        assert told is not None, summary
        assert "start 1, on " in Path(told[1]).read_text()


def test_what_slurm_refuses_or_will_never_start_is_told(tmp_path: Path, slurm: dict[str, str]) -> None:
    process = sweep(tmp_path, slurm, "hydra.launcher.partition=none", "seed=0,1")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    assert err.splitlines()[-1].startswith("error: Slurm doesn't take the jobs: sbatch: error: ")
    assert "Invalid partition name" in err.splitlines()[-1]

    process = sweep(tmp_path, slurm, "hydra.launcher.timeout_min=9999", "seed=0,1")
    said = read_until(process, "waits, says Slurm")
    assert "waits, says Slurm: Partition" in said  # its time limit is lower; versions name that differently
    assert len(queued(slurm)) == 1  # an array
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "s: 0 of 2 done, 0 running, 0 failed, 2 waiting" in out
    assert queued(slurm) == []


def test_a_machine_without_slurm_is_told_so(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    told = subprocess.run(
        command("-m", "hydra/launcher=submitit_slurm", "seed=0,1", f"outputs={tmp_path}"),
        cwd=ROOT, env={**os.environ, "PATH": "/nowhere"}, capture_output=True, text=True,
    )  # fmt: skip
    assert told.returncode == 2
    assert told.stderr.startswith("error: hydra/launcher=submitit_slurm: Could not detect")
    assert told.stderr.count("\n") == 1


def test_the_time_that_slurm_tells_in_seconds() -> None:
    assert _seconds("00:01:05") == 65
    assert _seconds("1-02:03:04") == 86400 + 2 * 3600 + 184
    assert _seconds("INVALID") == 0


@pytest.mark.thorough
def test_one_run_in_two_processes_goes_back_into_the_queue_and_on(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    """scripts/one_run.sbatch, warned as ahead of its time limit."""
    told = subprocess.run(
        [
            "sbatch", "--parsable", "--cpus-per-task=2", f"--output={tmp_path}/log",
            str(ROOT / "scripts" / "one_run.sbatch"), "method=ppo", "task=toy_sentiment", "model=tiny",
            "method.max_steps=12", "method.epochs=9", "method.select_every=0", "method.checkpoint_every=0",
            "task.limit.train=64", "task.limit.eval=12", "eval.bootstrap_samples=20", "tracking=none",
            f"outputs={tmp_path}", f"hydra.run.dir={tmp_path}/run",
        ],
        cwd=ROOT, env={**slurm, "PROCESSES": "2", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    job, folder = told.stdout.strip(), tmp_path / "run"
    metrics = folder / "metrics.jsonl"
    wait_until(lambda: metrics.is_file() and "ppo/kl" in metrics.read_text(), 200)
    subprocess.run(["scancel", "--signal=USR1", "--batch", job], env=slurm, check=True)

    def status() -> str:
        result = folder / "result.json"
        return json.loads(result.read_text())["status"] if result.is_file() else ""

    wait_until(lambda: status() == "interrupted", 100)
    (left,) = (folder / "checkpoints").glob("step-*")
    wait_until(lambda: status() == "finished", 300)
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == [*range(1, 13), 12]  # the selection slice at the end
    assert "going on from step" in (tmp_path / "log").read_text()
    assert 0 < int(left.name.removeprefix("step-")) < 12
