"""Several processes at work on one run: they find what one process finds, leave together, and fail in one voice.

The processes are real ones, started by torchrun, and exchange over gloo.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import ROOT, command
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from waiting import wait_until

from nlu_ppo import ranks

SMALL = (
    "task=toy_sentiment", "model=tiny", "tracking=none", "eval.bootstrap_samples=20", "task.limit.train=48",
    "task.limit.eval=15", "task.selection=7", "lora.dropout=0", "method.max_steps=6", "method.select_every=4",
    "method.checkpoint_every=1",
)  # fmt: skip
PPO_AFTER_SFT = ("method=ppo", "method.init=sft", "method.start.max_steps=3", "method.start.select_every=2",
                 "method.minibatch_size=8", "method.kl_horizon=50", "method.reward_scaling=running")  # fmt: skip
TIMEOUT = 300


def launched(processes: int, *arguments: str) -> list[str]:
    """The command line of train.py with several processes."""
    if processes == 1:
        return command(*arguments)
    head = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*head, str(ROOT / "train.py"), *arguments]


def run(processes: int, folder: Path, *arguments: str) -> Path:
    """A run in a folder of its own; returns the folder of its study."""
    done = subprocess.run(
        launched(processes, *SMALL, *arguments, f"outputs={folder}", "study=s"),
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "s" / "toy_sentiment" / "tiny"


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def check_alike(found: Path, expected: Path) -> None:
    """Metrics, adapter and answers, to float tolerance."""
    ours, theirs = lines(found, "metrics.jsonl"), lines(expected, "metrics.jsonl")
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for name in mine.keys() - {"seconds"}:
            # a fraction counts what lies beyond a threshold, where rounding may put a token on its other side
            rounding = 0.05 if name.endswith("clip_fraction") else 2e-5
            assert mine[name] == pytest.approx(other[name], rel=1e-3, abs=rounding), name
    assert lines(found, "predictions.jsonl") == lines(expected, "predictions.jsonl")
    a, b = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (found, expected))
    assert a.keys() == b.keys()
    for name, tensor in b.items():
        torch.testing.assert_close(a[name], tensor, rtol=1e-3, atol=1e-5)
    moved = max(float(t.abs().max()) for name, t in b.items() if "lora_B" in name)
    assert moved > 1e-4  # which starts at 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SFT and then PPO from it, in one process."""
    return run(1, tmp_path_factory.mktemp("alone"), *PPO_AFTER_SFT)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in two processes."""
    return run(2, tmp_path_factory.mktemp("together"), *PPO_AFTER_SFT)


@pytest.mark.slow
def test_two_processes_train_as_one_does(alone: Path, together: Path) -> None:
    check_both(together, alone)


@pytest.mark.slow
def test_so_they_do_with_the_frozen_weights_spread(alone: Path, tmp_path: Path) -> None:
    check_both(run(2, tmp_path, *PPO_AFTER_SFT, "model.shard=true"), alone)


def check_both(together: Path, alone: Path) -> None:
    for method in ("sft", "ppo"):
        (found,), (expected,) = (list(study.glob(f"{method}/0-*/result.json")) for study in (together, alone))
        check_alike(found.parent, expected.parent)
        assert json.loads((found.parent / "run.json").read_text())["processes"] == 2


@pytest.mark.slow
@pytest.mark.promise(
    "SIGTERM to the launcher of a run of several processes",
    "all leave after the same step; the same command goes on to the bitwise same end",
)
def test_all_leave_after_the_same_step_and_go_on(together: Path, tmp_path: Path) -> None:
    """SIGTERM to the launcher; the run goes on in two processes, bitwise as if nothing had happened."""
    started = subprocess.Popen(
        launched(2, *SMALL, *PPO_AFTER_SFT, f"outputs={tmp_path}", "study=s"),
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    study = tmp_path / "s" / "toy_sentiment" / "tiny"
    wait_until(lambda: has_trained(study), TIMEOUT)
    started.send_signal(signal.SIGTERM)
    _, told = started.communicate(timeout=TIMEOUT)
    (folder,) = (study / "ppo").iterdir()
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted", told[-3000:]
    assert list((folder / "checkpoints").glob("step-*"))
    assert run(2, tmp_path, *PPO_AFTER_SFT) == study
    check_same(study, together)


def check_same(study: Path, expected: Path) -> None:
    """The PPO runs of two studies have bitwise the same adapter, and the same answers."""
    (ours,), (theirs,) = ((*(folder / "ppo").iterdir(),) for folder in (study, expected))
    found, wanted = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (ours, theirs))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert lines(ours, "predictions.jsonl") == lines(theirs, "predictions.jsonl")


def has_trained(study: Path) -> bool:
    return any("ppo/kl" in file.read_text() for file in study.glob("ppo/*/metrics.jsonl"))


@pytest.mark.thorough
@pytest.mark.promise(
    "one of a run's processes killed with -9",
    "the launcher names it, the others are gone within a minute, and the same command goes on to the bitwise same end",
)
@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_is_killed_ends_the_others(
    together: Path, tmp_path: Path, victim: int, figures: dict[str, Any]
) -> None:
    """By the launcher; the folder is free for the next attempt."""
    started = subprocess.Popen(
        launched(2, *SMALL, *PPO_AFTER_SFT, f"outputs={tmp_path}", "study=s"),
        cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    study = tmp_path / "s" / "toy_sentiment" / "tiny"
    try:
        wait_until(lambda: has_trained(study), TIMEOUT)
        workers = children(started.pid)
        assert len(workers) == 2
        os.kill(workers[victim], signal.SIGKILL)
        began = time.monotonic()
        _, told = started.communicate(timeout=60)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
    assert started.returncode != 0
    assert "exitcode  : -9" in told
    assert f"local_rank: {victim}" in told
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 10)
    figures[f"seconds until all were gone, rank {victim} killed"] = round(time.monotonic() - began, 1)
    assert run(2, tmp_path, *PPO_AFTER_SFT) == study
    check_same(study, together)


def children(pid: int) -> list[int]:
    """The processes that the launcher has started, by rank."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    running = [int(child) for child in found if b"train.py" in Path(f"/proc/{child}/cmdline").read_bytes()]
    ranked = {}
    for child in running:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranked[next(v for v in variables if v.startswith(b"RANK="))] = child
    return [ranked[rank] for rank in sorted(ranked)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("method=grpo",), "method=grpo trains in one process"),
        (("method=ppo", "method.batch_size=9", "method.minibatch_size=9"), "can't be shared evenly by 2"),
    ],
)
def test_a_mistake_is_told_once(arguments: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    done = subprocess.run(
        launched(2, *SMALL, *arguments, f"outputs={tmp_path}"),
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr
    assert expected in done.stderr


def test_a_sweep_is_no_work_for_several_processes(tmp_path: Path) -> None:
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "LOCAL_RANK": "0"}
    done = subprocess.run(
        command("-m", "method=zero_shot", "seed=0,1", f"outputs={tmp_path}"),
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, env={**os.environ, **variables},
    )  # fmt: skip
    assert done.returncode == 2
    assert "2 processes work on one run, not on a sweep" in done.stderr


@given(count=st.integers(0, 50), world=st.integers(1, 9))
def test_shares_are_stretches_that_make_up_the_whole(count: int, world: int) -> None:
    items, shares = list(range(count)), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "world", lambda: world)
        for rank in range(world):
            patch.setattr(ranks, "rank", lambda rank=rank: rank)
            shares.append(list(ranks.share(items)))
    assert [item for share in shares for item in share] == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
