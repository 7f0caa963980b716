"""Kills runs at random moments, lets them go on, and compares them with runs that nothing has disturbed.

    python tests/kill_trials.py FOLDER --trials 20 [--seed 0] [--first 0]
    unshare --map-root-user --mount python tests/kill_trials.py FOLDER --trials 0 --full-disks 20

Each trial is a run of train.py on a toy task, of any method, that is killed once to three times (kill -9, or now and
then SIGTERM, Ctrl-C or SIGUSR1): after a random step, at a random time, or while it writes a checkpoint, its adapter
or its last files. Now and then a file of its newest checkpoint is damaged before it goes on. With `--full-disks` runs
find their disk full at such moments (full_disk.py). Exits with 1 if any file differs from that of the undisturbed run.
The last line is what was counted, as JSON.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import full_disk
from attempts import (
    VARIANTS,
    Attempt,
    Undisturbed,
    all_checkpoints,
    arguments_of,
    differences,
    last_step,
    newest_good,
    outputs_of,
    start,
    step_of,
    trains,
    writes_checkpoint,
    writes_results,
)

from nlu_ppo.storage import damage

KINDS = ("step", "checkpoint", "time", "results", "asked")
KINDS_WITHOUT_STEPS = ("time", "results", "asked")
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
    name: str,
    whole: Path,
    folder: Path,
    chance: random.Random,
    kinds: list[str],
    seconds: float,
    counts: collections.Counter[str],
) -> list[str]:
    """One run, killed at `kinds` of moments; returns what is wrong with it."""
    every = chance.randint(1, 5)
    arguments = arguments_of(name, *([f"method.checkpoint_every={every}"] if trains(name) else []))
    wrong, story, expected, hurt = [], [], set(), None
    log = folder.with_name(folder.name + ".log")
    for kind in kinds:
        number = signal.SIGKILL if kind != "asked" else chance.choice(ASKING)
        before = len(log.read_text()) if log.exists() else 0
        begun = begun_at(folder)
        attempt = start(folder, *arguments)
        at_a_step = trains(name) and chance.random() < 0.5
        when = moment(kind if kind != "asked" else "step" if at_a_step else "time", attempt, chance, seconds)
        alive = attempt.wait_until(when)
        if alive:
            time.sleep(chance.choice((0.0, 0.0, chance.uniform(0, 0.01), chance.uniform(0, 0.2))))
            os.kill(attempt.pid, number)
        code, at, good = attempt.wait(), last_step(folder), newest_good(folder)
        counts["kill -9" if code == -signal.SIGKILL else "other signals" if code > 2 else "too late"] += 1
        story.append(f"{kind} {number.name if alive else '-'} at {at} (code {code}), goes on from {good}")
        nothing_said = (len(log.read_text()) if log.exists() else 0) == before  # it came before Python was up
        usual = (0, 128 + number, *([-number] if nothing_said else []))
        if alive and number != signal.SIGKILL and code not in usual:
            wrong.append(f"exit code {code} after {number.name}")
        if (
            at > 0 and good < (at - 1) // every * every and hurt is None
        ):  # what we damaged is gone, and was logged
            wrong.append(f"killed after step {at}, and the newest good checkpoint is of step {good}")
        trained = "the run writes a checkpoint" in log.read_text()[before:]
        if code == 128 + number and trained and at > 0 and good != at:
            wrong.append(f"{number.name} after step {at} left a checkpoint of step {good}")
        if code == 128 + number and begun_at(folder) != begun and not said_interrupted(folder):
            wrong.append("result.json does not say that the run was interrupted")
        done = hurt_a_checkpoint(folder, chance) if chance.random() < 0.3 else None
        if done is not None:
            hurt = done
            counts["checkpoints damaged"] += 1
            story.append(done)
        expected |= {step_of(p) for p in all_checkpoints(folder) if damage(p) is None}
    last = start(folder, *arguments)
    if last.wait() != 0:
        wrong.append(f"the last attempt ended with {last.code}")
    else:
        wrong += differences(whole, folder)
    steps = {int(found) for found in re.findall(r"going on from step (\d+)", last.log.read_text())}
    if not steps <= expected:
        wrong.append(f"attempts went on from steps {steps}, with checkpoints of {expected}")
    print(
        f"{'WRONG' if wrong else 'same '}  {name}, a checkpoint every {every}: {'; '.join(story)}", flush=True
    )
    for line in wrong:
        print(f"       {line}; log: {last.log}", flush=True)
    if not wrong:
        shutil.rmtree(folder)
        shutil.rmtree(outputs_of(folder), ignore_errors=True)
    return wrong


def hurt_a_checkpoint(folder: Path, chance: random.Random) -> str | None:
    """Damages a file of a newest checkpoint that is whole; says what was done, or `None` if there is none.

    That the damage is found is checked here: it is known to be there.
    """
    homes: dict[Path, list[Path]] = {}
    for found in all_checkpoints(folder):
        if damage(found) is None:
            homes.setdefault(found.parent, []).append(found)
    if not homes:
        return None
    checkpoint = max(homes[chance.choice(sorted(homes))], key=step_of)
    file = chance.choice(sorted(p for p in checkpoint.iterdir() if p.stat().st_size))
    how, raw = chance.choice(("flipped", "cut", "emptied", "removed")), bytearray(file.read_bytes())
    place = chance.randrange(len(raw))
    if how == "removed":
        file.unlink()
    else:
        raw[place] ^= 1 << chance.randrange(8)
        file.write_bytes({"flipped": raw, "cut": raw[:place], "emptied": b""}[how])
    assert damage(checkpoint) is not None, f"{file}, {how} at {place}, passes as whole"
    return f"{file.parent.name}/{file.name} {how}"


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
    settings = arguments_of(
        "sft", "method.checkpoint_every=3", "method.max_steps=40"
    )  # long enough to be killed
    words = ("-m", "seed=0,1", "study=s", f"outputs={folder}", *settings)
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
        name = names[number % len(names)]
        kinds = KINDS if trains(name) else KINDS_WITHOUT_STEPS
        first = kinds[number // len(names) % len(kinds)]
        plans.append((name, [first, *chance.choices(kinds, k=chance.randint(0, 2))]))
    return plans[:trials]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="leave out so many, for another process")
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
    if any(folder.iterdir()):
        parser.error(f"{folder} is not empty: runs of another version would pass for the undisturbed ones")
    undisturbed = Undisturbed(folder)
    failed, counts, chosen = 0, collections.Counter(), plan(given.first + given.trials, chance)[given.first :]
    for number, (name, kinds) in enumerate(chosen):
        whole, seconds = undisturbed(name)
        failed += bool(trial(name, whole, folder / f"trial-{number}", chance, kinds, seconds, counts))
    same = given.trials - failed
    print(f"{same} of {given.trials} trials end bitwise like runs that were not killed", flush=True)
    if given.trials:
        failed += bool(sweep(folder / "killed-sweep"))
    if given.full_disks:
        wrong = full_disk.trials(folder, given.full_disks, undisturbed, chance)
        counts["full disks"], failed = given.full_disks + 1, failed + wrong
    told = {"trials": given.trials, "bitwise equal": same}
    print(json.dumps({**told, **counts}), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
