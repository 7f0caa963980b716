"""The queue of processes with any command: order, slots, deaths of all kinds, retries, and how it stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from composing import ROOT
from waiting import is_alive, wait_until

from nlu_ppo.launching.processes import Ended, Job, Queue


def shell(name: str, script: str, folder: Path, message: bytes = b"") -> Job:
    return Job(name, ("sh", "-c", script), folder / f"{name}.log", message)


def work(queue: Queue, jobs: list[Job]) -> list[Ended]:
    """All attempts, in the order in which they ended."""
    ended: list[Ended] = []
    queue.work(jobs, ended.append)
    return ended


def test_jobs_start_in_their_order(tmp_path: Path) -> None:
    ended = work(Queue([{}]), [shell(str(n), f"echo {n} >> {tmp_path}/order", tmp_path) for n in range(5)])
    assert [e.job.name for e in ended] == ["0", "1", "2", "3", "4"]
    assert (tmp_path / "order").read_text().split() == ["0", "1", "2", "3", "4"]


def test_never_more_jobs_at_a_time_than_there_are_slots(tmp_path: Path) -> None:
    script = f"cd {tmp_path}; echo + >> events; sleep 0.3; echo - >> events"
    ended = work(Queue([{}, {}]), [shell(str(n), script, tmp_path) for n in range(5)])
    assert all(e.code == 0 and e.seconds >= 0.3 for e in ended)
    at_work, most = 0, 0
    for sign in (tmp_path / "events").read_text().split():
        at_work += 1 if sign == "+" else -1
        most = max(most, at_work)
    assert (at_work, most) == (0, 2)


def test_one_that_dies_touches_no_other(tmp_path: Path) -> None:
    scripts = {
        "fails": "echo no >&2; exit 3",
        "killed": "kill -9 $$",
        "crashes": "kill -SEGV $$",
        "fine": "echo yes",
    }
    ended = {e.job.name: e for e in work(Queue([{}]), [shell(n, s, tmp_path) for n, s in scripts.items()])}
    assert {name: e.code for name, e in ended.items()} == {
        "fails": 3,
        "killed": -9,
        "crashes": -11,
        "fine": 0,
    }
    assert ended["fails"].how == "exit code 3"
    assert ended["killed"].how.startswith("killed by SIGKILL")
    assert ended["crashes"].how == "killed by SIGSEGV"
    assert (tmp_path / "fails.log").read_text().endswith("(attempt 1)\nno\n")
    assert (tmp_path / "fine.log").read_text().endswith("(attempt 1)\nyes\n")


def test_a_command_that_does_not_exist_is_told(tmp_path: Path) -> None:
    (ended,) = work(Queue([{}]), [Job("x", ("no-such-program",), tmp_path / "x.log")])
    assert "no-such-program" in ended.how
    assert ended.code != 0


def test_slots_tell_jobs_apart_and_jobs_know_better(tmp_path: Path) -> None:
    script = (
        f'cd {tmp_path}; mkdir "busy-$GPU" || exit 1; echo $GPU $OWN >> seen; sleep 0.2; rmdir "busy-$GPU"'
    )
    jobs = [
        Job(str(n), ("sh", "-c", script), tmp_path / "log", environment={"OWN": str(n)}) for n in range(6)
    ]
    ended = work(Queue([{"GPU": "a", "OWN": "x"}, {"GPU": "b"}]), jobs)
    assert [e.code for e in ended] == [0] * 6  # mkdir: no two were in the same slot at once
    seen = [line.split() for line in (tmp_path / "seen").read_text().splitlines()]
    assert {gpu for gpu, _ in seen} == {"a", "b"}
    assert sorted(own for _, own in seen) == ["0", "1", "2", "3", "4", "5"]


def test_a_failed_job_is_tried_again_behind_the_others_unless_it_is_hopeless(tmp_path: Path) -> None:
    flaky = f"cd {tmp_path}; test -e tried && exit 0; touch tried; exit 1"
    jobs = [shell(n, s, tmp_path) for n, s in {"flaky": flaky, "hopeless": "exit 2", "bad": "exit 7"}.items()]
    ended = work(Queue([{}], retries=2, hopeless=(2,)), jobs)
    assert [(e.job.name, e.code, e.again) for e in ended] == [
        ("flaky", 1, True),
        ("hopeless", 2, False),
        ("bad", 7, True),
        ("flaky", 0, False),
        ("bad", 7, True),
        ("bad", 7, False),
    ]
    assert (tmp_path / "bad.log").read_text().count("attempt") == 3


def test_what_a_job_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    work(Queue([{}]), [shell("x", f"sleep 100 & echo $! > {tmp_path}/pid", tmp_path)])
    wait_until(lambda: not is_alive(int((tmp_path / "pid").read_text())))


def test_a_job_finds_its_message_and_then_the_pipe_stays_open(tmp_path: Path) -> None:
    script = f"cd {tmp_path}; read line; echo $line > got; timeout 0.5 cat > /dev/null; echo $? > status"
    work(Queue([{}]), [shell("x", script, tmp_path, b"hello there\n")])
    assert (tmp_path / "got").read_text() == "hello there\n"
    assert (tmp_path / "status").read_text() == "124\n"  # what `timeout` says when `cat` found no end


# -- stopping ------------------------------------------------------------------------------------------------

STOPPED = """
import signal
import sys
from pathlib import Path
from nlu_ppo.launching.processes import Job, Queue

for number in (signal.SIGINT, signal.SIGHUP):  # whatever these tests were started by
    signal.signal(number, signal.SIG_DFL)

folder, grace, first = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
jobs = [Job("x", ("sh", "-c", f"cd {folder}; {s}"), folder / "log") for s in (first, "touch never")]
try:
    Queue([{}], grace=grace).work(jobs, lambda ended: print(ended.code, flush=True))
except KeyboardInterrupt:
    print("stopped", flush=True)
"""
FOR_EVER = "touch begun; while :; do sleep 0.05; done"
SAVES = f"trap 'echo saved > saved; exit 0' TERM; {FOR_EVER}"
STUBBORN = f"trap '' TERM; {FOR_EVER}"


def start_and_stop(folder: Path, grace: float, job: str, *signals: signal.Signals) -> list[str]:
    """Sends signals to a queue at work; returns its job's exit code, and that it stopped."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(folder), str(grace), job],
        stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    wait_until((folder / "begun").exists)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.5)  # one that comes at once is the same signal still
    told = process.communicate(timeout=30)[0].splitlines()
    assert not (folder / "never").exists()
    return told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_is_passed_on_and_waits_for_those_who_save(tmp_path: Path, number: signal.Signals) -> None:
    assert start_and_stop(tmp_path, 1000.0, SAVES, number) == ["0", "stopped"]
    assert (tmp_path / "saved").exists()


def test_those_who_do_not_stop_are_killed_in_the_end(tmp_path: Path) -> None:
    assert start_and_stop(tmp_path, 1.0, STUBBORN, signal.SIGTERM) == ["-9", "stopped"]


def test_a_second_ctrl_c_waits_for_nobody(tmp_path: Path) -> None:
    assert start_and_stop(tmp_path, 1000.0, STUBBORN, signal.SIGINT, signal.SIGINT) == ["-9", "stopped"]
