"""Kills runs at random moments, lets them go on, and compares them with runs that nothing has disturbed.

    python tests/kill_trials.py FOLDER --trials 20 [--seed 0]
    unshare --map-root-user --mount python tests/kill_trials.py FOLDER --trials 0 --full-disks 20

Each trial is a run of train.py on a toy task that is killed once to three times (kill -9, or now and then SIGTERM,
Ctrl-C or SIGUSR1): after a random step, at a random time, or while it writes a checkpoint, its adapter or its last
files. With `--full-disks` runs find their disk full at such moments (full_disk.py). Exits with 1 if any file differs
from that of the undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import full_disk
from attempts import (
    COMMON,
    VARIANTS,
    Attempt,
    Undisturbed,
    differences,
    last_step,
    newest_good,
    start,
    writes_checkpoint,
    writes_results,
)

KINDS = ("step", "checkpoint", "time", "results", "asked")
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def moment(kind: str, attempt: Attempt, chance: random.Random, seconds: float) -> Callable[[], bool]:
    """When to kill: a function that says so."""
    folder = attempt.folder
    if kind == "step":
        step = chance.randint(min(12, max(1, last_step(folder) + 1)), 12)
        return lambda: last_step(folder) >= step
    if kind == "checkpoint":
        skipped = newest_good(folder) + chance.choice((0, 0, 4))
        return lambda: last_step(folder) > skipped and writes_checkpoint(folder)
    if kind == "results":
        return lambda: writes_results(folder)
    at = attempt.began + chance.uniform(0.0, 0.8 * seconds)
    return lambda: time.monotonic() >= at


def trial(
    name: str, whole: Path, folder: Path, chance: random.Random, kinds: list[str], seconds: float
) -> list[str]:
    """One run, killed at `kinds` of moments; returns what is wrong with it."""
    every = chance.randint(1, 5)
    arguments = (*COMMON, *VARIANTS[name], f"method.checkpoint_every={every}")
    wrong, story, expected = [], [], []
    log = folder.with_name(folder.name + ".log")
    for kind in kinds:
        number = signal.SIGKILL if kind != "asked" else chance.choice(ASKING)
        before = len(log.read_text()) if log.exists() else 0
        begun = begun_at(folder)
        attempt = start(folder, *arguments)
        when = moment(kind if kind != "asked" else chance.choice(("step", "time")), attempt, chance, seconds)
        alive = attempt.wait_until(when)
        if alive:
            time.sleep(chance.choice((0.0, 0.0, chance.uniform(0, 0.01), chance.uniform(0, 0.2))))
            os.kill(attempt.pid, number)
        code, at, good = attempt.wait(), last_step(folder), newest_good(folder)
        expected.append(good)
        story.append(f"{kind} {number.name if alive else '-'} at {at} (code {code}), goes on from {good}")
        if alive and number != signal.SIGKILL and code not in (0, 128 + number):
            wrong.append(f"exit code {code} after {number.name}")
        if at > 0 and good < (at - 1) // every * every:
            wrong.append(f"killed after step {at}, and the newest good checkpoint is of step {good}")
        trained = "the run writes a checkpoint" in log.read_text()[before:]
        if code == 128 + number and trained and at > 0 and good != at:
            wrong.append(f"{number.name} after step {at} left a checkpoint of step {good}")
        if code == 128 + number and begun_at(folder) != begun and not said_interrupted(folder):
            wrong.append("result.json does not say that the run was interrupted")
    last = start(folder, *arguments)
    if last.wait() != 0:
        wrong.append(f"the last attempt ended with {last.code}")
    else:
        wrong += differences(whole, folder)
    steps = [int(found) for found in re.findall(r"going on from step (\d+)", last.log.read_text())]
    if not set(steps) <= set(expected):
        wrong.append(f"attempts went on from steps {steps}, with checkpoints of {expected}")
    print(
        f"{'WRONG' if wrong else 'same '}  {name}, a checkpoint every {every}: {'; '.join(story)}", flush=True
    )
    for line in wrong:
        print(f"       {line}; log: {last.log}", flush=True)
    return wrong


def begun_at(folder: Path) -> int:
    """Changes with every attempt that gets as far as to begin. Before that there is nothing to be told of its end."""
    record = folder / "run.json"
    return record.stat().st_mtime_ns if record.exists() else 0


def said_interrupted(folder: Path) -> bool:
    """Whether result.json says so."""
    result = folder / "result.json"
    return result.exists() and json.loads(result.read_text())["status"] == "interrupted"


def sweep(folder: Path) -> list[str]:
    """Two cells; kill -9 in the middle of the second. Returns what is wrong with the sweep that goes on."""
    words = (
        "-m",
        "seed=0,1",
        "study=s",
        f"outputs={folder}",
        *(word for word in COMMON if not word.startswith("method.max_steps=")),
        "method.max_steps=40",  # long enough to be killed before the end, however busy the machine is
        *VARIANTS["sft"],
        "method.checkpoint_every=3",
    )
    folder.mkdir(parents=True)

    def run(seed: int) -> Path:
        return next(folder.glob(f"s/*/*/*/{seed}-*/metrics.jsonl"), folder / "nothing" / "there").parent

    attempt = start(folder / "sweep", *words, run_dir=False)
    if not attempt.wait_until(lambda: last_step(run(1)) >= 5):
        return [f"the sweep ended with {attempt.code} before it could be killed; log: {attempt.log}"]
    os.kill(attempt.pid, signal.SIGKILL)
    attempt.wait()
    good = newest_good(run(1))
    finished = run(0) / "result.json"
    before = finished.stat().st_mtime_ns
    again = start(folder / "sweep", *words, run_dir=False)
    wrong = [] if again.wait() == 0 else [f"the sweep ended with {again.code}"]
    said = again.log.read_text()
    if finished.stat().st_mtime_ns != before or f"already finished: {run(0)}" not in said:
        wrong.append("the finished cell was run again")
    if good < 3 or f"going on from step {good}\n" not in said or not (run(1) / "result.json").exists():
        wrong.append("the other cell did not go on")
    print(f"{'WRONG' if wrong else 'fine '}  a killed sweep {wrong}; log: {again.log}", flush=True)
    return wrong


def plan(trials: int, chance: random.Random) -> list[tuple[str, list[str]]]:
    """A variant and the kinds of its kills, for each trial. The first ones are the most telling."""
    plans = [("ppo", ["checkpoint", "asked"]), ("sft", ["step", "checkpoint"]), ("sft", ["asked", "results"])]
    names = list(VARIANTS)
    for number in range(len(plans), trials):
        first = KINDS[number % len(KINDS)]
        plans.append((names[number % len(names)], [first, *chance.choices(KINDS, k=chance.randint(0, 2))]))
    return plans[:trials]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument(
        "--full-disks", type=int, default=0, help="trials with full disks; they mount a tmpfs"
    )
    parser.add_argument(
        "--seed", type=int, default=None, help="by default a new one each time; it is printed"
    )
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}", flush=True)
    chance, folder = random.Random(seed), given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    undisturbed = Undisturbed(folder)
    failed = 0
    for number, (name, kinds) in enumerate(plan(given.trials, chance)):
        whole, seconds = undisturbed(name)
        failed += bool(trial(name, whole, folder / f"trial-{number}", chance, kinds, seconds))
    same = given.trials - failed
    print(f"{same} of {given.trials} trials end bitwise like runs that were not killed", flush=True)
    if given.trials:
        failed += bool(sweep(folder / "killed-sweep"))
    if given.full_disks:
        failed += full_disk.trials(folder, given.full_disks, undisturbed, chance)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
