"""Outputs that can't be written, and several processes that want the same: real runs and sweeps as processes."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attempts import arguments_of, differences
from composing import ROOT, command
from forked import Forge, Forked, forge
from test_resume import can_mount

BRIEF = ("method=zero_shot", "task=toy_nli", "task.limit.eval=12", "eval.bootstrap_samples=20")


@pytest.fixture(scope="module")
def forked() -> Iterator[Forge]:
    with forge() as source:
        yield source


# -- disks -----------------------------------------------------------------------------------------------------


def one_error(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return said


def read_only(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`train.py`, for which `folder` is on a disk that can only be read; root, too, can't write there."""
    mount = f"mount --bind '{folder}' '{folder}' && mount -o remount,ro,bind '{folder}' && exec \"$@\""
    return subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh", *command(*arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.thorough
@pytest.mark.promise(
    "outputs on a disk that can only be read, or in whose place a file stands",
    "one line names it and says what to do; what only saves time (kept prompts) or mirrors (MLflow) is done without",
)
def test_outputs_that_cant_be_written(tmp_path: Path, outputs: Path, figures: dict[str, Any]) -> None:
    file = tmp_path / "file"
    file.touch()
    done = subprocess.run(
        command(*BRIEF, f"outputs={file}"), cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert f"{file}/" in one_error(done)
    assert "a file stands where a folder has to be" in one_error(done)
    if not can_mount():
        pytest.skip("nothing can be mounted here, so that no disk was read-only")
    told = one_error(read_only(outputs, *BRIEF, f"outputs={outputs}"))
    assert f"error: {outputs}/" in told
    assert "Read-only file system; take another outputs=DIR" in told
    told = one_error(read_only(outputs, "-m", "seed=0,1", *BRIEF, f"outputs={outputs}", "study=s"))
    assert str(outputs) in told
    cache = outputs / ".cache"
    cache.mkdir()
    done = read_only(cache, *BRIEF, f"outputs={outputs}", f"hydra.run.dir={outputs / 'run'}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no tokenised prompts are kept" in done.stdout + done.stderr
    figures["places"] = 4


@pytest.mark.thorough
@pytest.mark.promise(
    "too few files that a process may open", "one line says so, with `ulimit -n`; never a half result"
)
def test_a_low_limit_on_open_files(tmp_path: Path, figures: dict[str, Any]) -> None:
    ended = {}
    for limit in (5, 6, 7, 8, 9, 10, 16, 64):
        folder = tmp_path / f"run-{limit}"
        done = subprocess.run(
            command(*BRIEF, f"outputs={tmp_path}", f"hydra.run.dir={folder}"),
            cwd=ROOT, capture_output=True, text=True, timeout=300,
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
        )  # fmt: skip
        ended[limit] = done.returncode
        result = folder / "result.json"
        finished = result.exists() and json.loads(result.read_text())["status"] == "finished"
        assert finished == (done.returncode == 0), done.stderr[-3000:]
        if done.returncode:
            assert "oo many open files" in done.stderr, done.stderr[-3000:]
    # Between 10 and 16 it depends on what MLflow's thread opens meanwhile.
    assert ended[64] == 0 != ended[6]
    figures["exit codes by limit"] = ", ".join(f"{limit}: {code}" for limit, code in ended.items())


# -- several at once -------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.promise(
    "two processes on one run folder",
    "one works; the other says so and leaves, or finds the run finished; the result is that of one alone",
)
def test_two_commands_at_once(forked: Forge, tmp_path: Path, full: bool, figures: dict[str, Any]) -> None:
    chance, trials = random.Random(0), 20 if full else 3
    words = arguments_of("sft", "method.max_steps=4", "method.checkpoint_every=1")

    def begin(folder: Path, number: int) -> Forked:
        log = folder.with_name(f"{folder.name}-{number}.log")
        return forked.start(log, *words, f"outputs={tmp_path}", f"hydra.run.dir={folder}")

    assert begin(tmp_path / "whole", 0).wait() == 0
    counts = {"worked": 0, "left": 0, "found it finished": 0}
    for trial in range(trials):
        folder = tmp_path / f"run-{trial}"
        both = [begin(folder, 0)]
        time.sleep(chance.choice((0.0, 0.0, chance.uniform(0, 0.5), chance.uniform(0, 6))))
        both.append(begin(folder, 1))
        ended = []
        for one in both:
            code, said = one.wait(), one.said()
            assert "Traceback" not in said
            if "already finished" in said:
                ended.append((code, "found it finished"))
            elif "another process is at work on this run" in said:
                ended.append((code, "left"))
            else:
                ended.append((code, "worked"))
        assert (0, "worked") in ended, [one.said()[-2000:] for one in both]
        assert {(0, "worked"), (2, "left"), (0, "found it finished")} >= set(ended)
        assert ended.count((0, "worked")) == 1
        assert differences(tmp_path / "whole", folder) == []
        for _, what in ended:
            counts[what] += 1
    figures |= counts


@pytest.mark.thorough
@pytest.mark.promise(
    "one sweep started twice at the same time",
    "every run is done by one of them, once; the other names those that it left, and a third start finds all finished",
)
def test_two_sweeps_at_once(forked: Forge, tmp_path: Path, full: bool, figures: dict[str, Any]) -> None:
    seeds = 8 if full else 3
    words = arguments_of("sft", "method.max_steps=3", "method.checkpoint_every=1")
    sweep = ("-m", f"seed=range(0,{seeds})", "study=s", *words, f"outputs={tmp_path / 'both'}")
    both = [forked.start(tmp_path / f"{number}.log", *sweep) for number in range(2)]
    codes = [one.wait() for one in both]
    assert set(codes) <= {0, 1}, [one.said()[-2000:] for one in both]
    for one in both:
        assert "Traceback" not in one.said()
    third = forked.start(tmp_path / "third.log", *sweep)
    assert third.wait() == 0, third.said()[-2000:]
    assert third.said().count("already finished: ") == seeds
    alone = forked.start(tmp_path / "alone.log", *sweep[:-1], f"outputs={tmp_path / 'alone'}")
    assert alone.wait() == 0, alone.said()[-2000:]
    folders = sorted((tmp_path / "both").glob("s/*/*/*/*"))
    assert len(folders) == seeds
    for folder in folders:
        assert differences(tmp_path / "alone" / folder.relative_to(tmp_path / "both"), folder) == []
    left = sum(one.said().count("another process is at work on this run") > 0 for one in both)
    figures |= {"runs": seeds, "sweeps that left some to the other": left}
