"""Runs that were killed end like runs that were not; damaged checkpoints; a folder is one process's at a time."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from attempts import differences
from composing import ROOT
from mlflow.tracking import MlflowClient
from test_runs import start

from nlu_ppo.config import TrackingConfig
from nlu_ppo.run import Recorder
from nlu_ppo.storage import SEAL
from nlu_ppo.tracking.mirror import sync


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """At full length, several tests share the trials, so that all cores are used."""
    if "trials" in metafunc.fixturenames:
        parts, trials, full_disks = (8, 25, 5) if metafunc.config.getoption("--full") else (1, 3, 1)
        chosen = [(part * trials, trials, full_disks) for part in range(parts)]
        metafunc.parametrize("trials", chosen, ids=[f"from {first}" for first, *_ in chosen])


@pytest.mark.slow
@pytest.mark.promise(
    "kill -9, SIGTERM, Ctrl-C and SIGUSR1 at random times; damaged checkpoints; a full disk",
    "the same command ends bitwise like a run that nothing disturbed: weights, predictions, metrics, result",
)
def test_killed_runs_end_like_undisturbed_ones(
    tmp_path: Path, trials: tuple[int, int, int], figures: dict[str, Any]
) -> None:
    first, count, full_disks = trials
    script = [sys.executable, str(ROOT / "tests" / "kill_trials.py"), str(tmp_path), "--trials", str(count)]
    script += ["--first", str(first)]
    mounts = can_mount()
    if mounts:
        script = ["unshare", "--map-root-user", "--mount", *script, "--full-disks", str(full_disks)]
    told = subprocess.run(script, capture_output=True, text=True, check=False, timeout=900 + 120 * count)
    print(told.stdout, told.stderr)  # pytest shows it if the next line fails
    assert told.returncode == 0
    assert f"{count} of {count} trials end bitwise" in told.stdout
    figures |= json.loads(told.stdout.splitlines()[-1])
    if not mounts:
        pytest.skip("killed runs are well; no full disk was tried, since a tmpfs can't be mounted here")
    assert f"{full_disks + 1} of {full_disks + 1} trials with full disks" in told.stdout


def can_mount() -> bool:
    """Whether this system lets us mount a disk of our own: as root, or in a user namespace."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


STEPS = ("method.max_steps=4", "method.checkpoint_every=1", "method.select_every=2")


def interrupt_after(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """Runs are killed, as far as they can tell, in the middle of the step after `last`."""
    original = Recorder.log

    def stop(self: Recorder, step: int, examples: int, values: Any) -> None:
        if step > last:
            raise KeyboardInterrupt
        original(self, step, examples, values)

    monkeypatch.setattr(Recorder, "log", stop)


@pytest.fixture(scope="module", params=["ppo", "sft"])
def halves(request: Any, tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> tuple[str, Path, Path]:
    """A method, a run of it, and one like it that was stopped in its fourth step, with checkpoints of 2 and 3."""
    folder = tmp_path_factory.mktemp("halves")
    start(folder / "whole", model_dir, request.param, *STEPS)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            start(folder / "half", model_dir, request.param, *STEPS)
    return request.param, folder / "whole", folder / "half"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[-50] ^= 1  # of a weight: safetensors would load it without a word
    file.write_bytes(raw)


@pytest.mark.parametrize("hurt", [cut, flip, Path.unlink], ids=["cut short", "a bit flipped", "missing"])
@pytest.mark.promise(
    "the newest checkpoint cut short, one bit of it flipped, or a file of it missing",
    "its checksums tell; it is named, and the run goes on from the one before, to the same end",
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    halves: tuple[str, Path, Path],
    tmp_path: Path,
    model_dir: Path,
    hurt: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    method, whole, half = halves
    shutil.copytree(half, tmp_path / "half")
    newest = max((tmp_path / "half" / "checkpoints").glob("*-*3"))
    hurt(newest / {"ppo": "state.safetensors", "sft": "optimizer.pt"}[method])
    start(tmp_path / "half", model_dir, method, *STEPS)
    assert f"{newest} is not used" in caplog.text
    assert "going on from step 2" in caplog.text
    assert differences(whole, tmp_path / "half") == []


@pytest.mark.parametrize("method", ["ppo", "sft"])
def test_a_step_is_scored_once_however_often_the_run_is_ended(
    tmp_path: Path, model_dir: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal in step 2, whose weights are then not scored; the next attempt scores them, and is killed in step 3."""
    more = ("method.max_steps=4", "method.checkpoint_every=0", "method.select_every=2")
    start(tmp_path / "whole", model_dir, method, *more)
    original = Recorder.log

    def ask(self: Recorder, step: int, examples: int, values: Any) -> None:
        if step == 2 and "train/learning_rate" in values:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, step, examples, values)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "log", ask)
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            start(tmp_path / "run", model_dir, method, *more)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path / "run", model_dir, method, *more)
    start(tmp_path / "run", model_dir, method, *more)
    assert differences(tmp_path / "whole", tmp_path / "run") == []


@pytest.mark.promise(
    "all checkpoints damaged",
    "each is named, and the run begins anew, to the same end",
)
def test_without_any_good_checkpoint_a_run_begins_anew(
    halves: tuple[str, Path, Path], tmp_path: Path, model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    method, whole, half = halves
    shutil.copytree(half, tmp_path / "half")
    for file in (tmp_path / "half" / "checkpoints").glob(f"*/{SEAL}"):
        file.write_text("{")
    start(tmp_path / "half", model_dir, method, *STEPS)
    assert caplog.text.count("is not used: it can't be read") == 2
    assert differences(whole, tmp_path / "half") == []


def test_time_that_steps_took_before_a_kill_counts(
    halves: tuple[str, Path, Path], tmp_path: Path, model_dir: Path
) -> None:
    """Or the speed of a run that was resumed near its end would look fabulous."""
    method, _, half = halves
    shutil.copytree(half, tmp_path / "half")
    state = (
        max((tmp_path / "half" / "checkpoints").glob("*-*3"))
        / {"ppo": "state.json", "sft": "selected.json"}[method]
    )
    found = json.loads(state.read_text())
    spent = (found["selected"] if method == "ppo" else found)["recorded"]["fit_seconds"]
    result = start(tmp_path / "half", model_dir, method, *STEPS)
    assert spent > 0
    assert result["seconds"]["fit"] > spent
    examples = 4 * {"ppo": 16, "sft": 24}[method]
    assert result["samples_per_second"] == pytest.approx(examples / result["seconds"]["fit"], rel=1e-3)


@pytest.mark.parametrize("method", ["sft", "ppo"])
def test_an_interrupted_evaluation_trains_nothing_again(
    tmp_path: Path, model_dir: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an epoch, where transformers' trainer would take another step."""
    import nlu_ppo.results

    more = ("method.max_steps=3", "method.keep=last")
    start(tmp_path / "whole", model_dir, method, *more)
    with monkeypatch.context() as patch:
        patch.setattr(nlu_ppo.results, "evaluate", lambda *_, **__: os.kill(os.getpid(), 15))
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            start(tmp_path / "broken", model_dir, method, *more)
    at_the_end = (tmp_path / "broken" / "metrics.jsonl").read_bytes()
    start(tmp_path / "broken", model_dir, method, *more)
    assert (tmp_path / "broken" / "metrics.jsonl").read_bytes() == at_the_end
    assert differences(tmp_path / "whole", tmp_path / "broken") == []


@pytest.mark.promise(
    "SIGTERM in the middle of a step",
    "a checkpoint of just that step; folder and MLflow say that the run was interrupted; it finishes later",
)
def test_a_signal_is_recorded_and_the_same_run_finishes_later(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM in the middle of the second of four steps: a checkpoint of just that step, KILLED in MLflow."""
    original = Recorder.log

    def send(self: Recorder, step: int, examples: int, values: Any) -> None:
        if step == 2 and "train/reward" in values:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, step, examples, values)

    more = (
        "method.max_steps=4",
        "method.checkpoint_every=0",
        "method.select_every=2",
        "tracking.experiment=tests",
    )
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "log", send)
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            start(tmp_path / "run", model_dir, "ppo", *more)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["error"]) == ("interrupted", "Interrupted: SIGTERM")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]

    end_mirror(tmp_path)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"
    assert start(tmp_path / "run", model_dir, "ppo", *more)["status"] == "finished"
    end_mirror(tmp_path)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"


def end_mirror(outputs: Path) -> None:
    """What didn't arrive while the run waited for MLflow (a few seconds, if it was interrupted) is brought over."""
    for thread in threading.enumerate():
        if thread.name == "mlflow":  # in a process of its own it would have ended with the run
            thread.join(timeout=300)
    sync(outputs, TrackingConfig(experiment="tests"))


HOLD = """
import sys, time
from pathlib import Path
from nlu_ppo.tracking.folder import RunFolder
folder = RunFolder(Path(sys.argv[1]), "abc")
try:
    folder.open()
    folder.begin({}, "")
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
except Exception as error:
    print(error)
"""


@pytest.mark.promise(
    "two processes on one run folder", "the second refuses with one line; after a kill it is free"
)
def test_a_folder_is_held_by_one_process_and_free_again_after_a_kill(tmp_path: Path) -> None:
    def hold(seconds: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(tmp_path / "run"), str(seconds)]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": PATH}
        )

    first = hold(60)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    second, _ = hold(0).communicate(timeout=60)
    assert "another process is at work on this run" in second
    first.kill()
    first.wait()
    third, _ = hold(0).communicate(timeout=60)
    assert third == "held\n"


PATH = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
