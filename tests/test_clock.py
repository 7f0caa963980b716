"""The system's clock is set while runs are at work: what they compute, and what they record of the time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from attempts import arguments_of, differences, last_step
from composing import ROOT, command
from mlflow.tracking import MlflowClient
from waiting import wait_until

from nlu_ppo.tracking.delivery import default_uri

DAY = 24 * 3600


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that a process takes its time from."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("the clock is set by a library in C, and there is no compiler")
    library = tmp_path_factory.mktemp("clock") / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


class Machine:
    """Processes whose clock can be set."""

    def __init__(self, shim: Path, folder: Path) -> None:
        self.dial = folder / "dial"
        self.set(0)
        self._variables = {"LD_PRELOAD": str(shim), "NLU_PPO_TEST_CLOCK": str(self.dial)}

    def set(self, seconds: int) -> None:
        """So many seconds from the true time."""
        partial = self.dial.with_suffix(".partial")
        partial.write_text(str(seconds))
        partial.replace(self.dial)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command(*arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **self._variables},
        )  # fmt: skip

    def now(self) -> float:
        """What a new process believes."""
        told = subprocess.run(
            ["date", "+%s"], env={**os.environ, **self._variables}, capture_output=True, check=True
        )
        return float(told.stdout)


def test_the_shim_sets_the_clock(shim: Path, tmp_path: Path) -> None:
    machine = Machine(shim, tmp_path)
    machine.set(-400 * DAY)
    assert machine.now() == pytest.approx(time.time() - 400 * DAY, abs=60)


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    wait_until(lambda: last_step(folder) >= step or process.poll() is not None, 300)


@pytest.mark.thorough
@pytest.mark.promise(
    "the clock set back or ahead by days, during a run and between its attempts",
    "the result is the same; no time that is recorded is negative or counts the jump within an attempt; MLflow's times "
    "are in order",
)
def test_a_clock_that_jumps_changes_no_result(
    shim: Path, tmp_path: Path, outputs: Path, figures: dict[str, Any]
) -> None:
    words = [w for w in arguments_of("ppo", "method.checkpoint_every=1") if not w.startswith("tracking=")]
    undisturbed = ("tracking=none", f"outputs={tmp_path}", f"hydra.run.dir={tmp_path}/whole")
    whole = Machine(shim, tmp_path).start(*words, *undisturbed)
    told, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, told[-3000:]
    machine, folder, jumps = Machine(shim, tmp_path), outputs / "run", 0
    for attempt, offsets in enumerate(((0, -400 * DAY, 3 * DAY), (-30 * DAY, 5 * DAY, -60 * DAY))):
        machine.set(offsets[0])
        process = machine.start(*words, f"outputs={outputs}", f"hydra.run.dir={folder}")
        for number, offset in enumerate(offsets[1:]):
            wait_for_step(process, folder, 1 + 5 * attempt + 2 * number)
            machine.set(offset)
            jumps += 1
        if attempt == 0:
            process.kill()
        told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told[-3000:]
    assert differences(tmp_path / "whole", folder) == []
    seconds = [json.loads(line)["seconds"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0
    assert seconds[-1] < DAY  # the second attempt begins before the first one, as its clock has it
    result, record = (json.loads((folder / name).read_text()) for name in ("result.json", "run.json"))
    assert all(0 <= took < 600 for took in result["seconds"].values()), result["seconds"]
    assert record["ended"] >= record["started"] + seconds[-1]
    client = MlflowClient(tracking_uri=default_uri(outputs))
    run = client.get_run(record["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert 0 <= run.info.end_time - run.info.start_time < 1000 * DAY
    stamps = [m.timestamp for m in client.get_metric_history(run.info.run_id, "train/reward")]
    assert stamps == sorted(stamps)
    assert stamps[0] >= run.info.start_time
    assert stamps[-1] <= run.info.end_time
    figures["jumps of the clock"] = jumps + 1
