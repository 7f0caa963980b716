"""Signals: what they end, when, and with which exit code; real ones, sent to this process or to one of ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from composing import ROOT

from nlu_ppo import stopping
from nlu_ppo.stopping import Interrupted


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.05)  # Python runs the handler between two of its instructions


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)],
)
def test_a_signal_ends_a_run_at_once_where_there_is_nothing_to_save(number: int, code: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stop, stopping.signals_heeded():
        send(number)
    assert stop.value.exit_code == code
    assert signal.getsignal(number) is before
    assert not stopping.requested()


def test_training_goes_on_to_the_end_of_its_step() -> None:
    done = []

    def train() -> None:
        with stopping.signals_heeded(), stopping.at_step_ends():
            send(signal.SIGTERM)
            done.append("step")
            assert stopping.requested()
            send(signal.SIGTERM)  # the same request, passed on by two
            done.append("checkpoint")
            stopping.leave_if_requested()
            done.append("another step")

    with pytest.raises(Interrupted, match="SIGTERM"):
        train()
    assert done == ["step", "checkpoint"]


def test_a_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "TOGETHER", 0.02)
    with stopping.signals_heeded(), stopping.at_step_ends():
        send(signal.SIGINT)
        time.sleep(0.05)
        with pytest.raises(Interrupted):
            send(signal.SIGINT)


def test_sigterm_behind_slurms_warning_is_no_second_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "TOGETHER", 0.0)
    with stopping.signals_heeded(), stopping.at_step_ends():
        send(signal.SIGUSR1)
        send(signal.SIGTERM)
        assert stopping.requested()
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)


def test_what_can_be_done_again_does_not_wait() -> None:
    done = []

    def select() -> None:
        with stopping.at_once():
            done.append("began")
            send(signal.SIGTERM)
            done.append("ended")

    with stopping.signals_heeded(), stopping.at_step_ends():
        with pytest.raises(Interrupted):
            select()
        with pytest.raises(Interrupted):  # and with a request waiting it doesn't begin
            select()
    assert done == ["began"]


def test_what_a_library_makes_of_it_is_still_an_interruption() -> None:
    def load() -> None:
        with stopping.at_once():
            try:
                send(signal.SIGTERM)
            except Interrupted:
                raise ValueError("could not determine the shape") from None

    with stopping.signals_heeded(), stopping.at_step_ends(), pytest.raises(Interrupted):
        load()
    with stopping.signals_heeded(), pytest.raises(ValueError, match="of its own"), stopping.at_once():
        raise ValueError("of its own")


def test_an_earlier_handler_has_its_turn_behind_ours() -> None:
    """submitit's: it puts the job back into the queue, when the checkpoint is written, and leaves."""
    order = []

    def requeue(number: int, frame: object) -> None:
        order.append("requeue")
        sys.exit(-1)

    def train() -> None:
        with stopping.signals_heeded(), stopping.at_step_ends():
            send(signal.SIGUSR2)
            order.append("checkpoint")
            stopping.leave_if_requested()

    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(SystemExit) as left:
            train()
        assert isinstance(left.value.__context__, Interrupted)  # by which cli.one_run knows it
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert order == ["checkpoint", "requeue"]


def test_what_is_ignored_stays_ignored() -> None:
    """nohup, and jobs that a script starts in the background."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.signals_heeded():
            send(signal.SIGHUP)
            assert not stopping.requested()
    finally:
        signal.signal(signal.SIGHUP, before)


SWEEP = """
import sys, time
sys.path[:0] = [{root!r}, {source!r}]
import hydra
from nlu_ppo.cli import command_line, one_run
from nlu_ppo.composition import register_schemas, to_config

register_schemas()


@hydra.main(version_base="1.3", config_path={conf!r}, config_name="config")
@one_run
def main(tree):
    print("at work on", to_config(tree).seed, flush=True)
    time.sleep(60)


command_line(main)
"""


@pytest.mark.parametrize(
    ("number", "code", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]
)
def test_a_stopped_sweep_says_how_to_go_on(tmp_path: Path, number: int, code: int, name: str) -> None:
    script = tmp_path / "sweep.py"
    script.write_text(SWEEP.format(root=str(ROOT), source=str(ROOT / "src"), conf=str(ROOT / "conf")))
    process = subprocess.Popen(
        [sys.executable, str(script), "-m", "seed=0,1", "method=zero_shot", "overwrite=true"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    while process.stdout.readline() != "at work on 0\n":  # before it Hydra says what it does
        assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")  # the second cell was not begun
    assert err == (
        f"interrupted by {name}: the same command, without overwrite=true, goes on where this one stopped\n"
    )
