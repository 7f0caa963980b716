"""Fills the disk under runs at random moments, makes room again, and compares with runs that had room all along.

The disk is a tmpfs, which takes root or a user namespace. Each trial is a run of train.py that finds no room (or a
random few KB) from the start, from a random step on, or while it writes a checkpoint or its results. It has to end
with one error that names the file and the disk, and to leave the newest checkpoint intact; with room again it has to
end like a run that was not disturbed. At last comes a sweep, one of whose cells has no room: the other one has to end
well. kill_trials.py runs them.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
from pathlib import Path

from attempts import (
    COMMON,
    VARIANTS,
    Attempt,
    Undisturbed,
    arguments_of,
    differences,
    last_step,
    newest_good,
    outputs_of,
    start,
    trains,
    writes_checkpoint,
    writes_results,
)
from composing import config_of

from nlu_ppo.identity import run_key, subfolder

MOMENTS = ("checkpoint", "results", "step", "start")


def mount(folder: Path, size: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    return folder


def fill(disk: Path, leave: int) -> None:
    """Takes all room but `leave` bytes."""
    with (disk / "ballast").open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):  # no space left on device
                while True:
                    file.write(bytes(size))
        file.truncate(max(0, file.tell() - leave))


def make_room(disk: Path) -> None:
    (disk / "ballast").unlink()


def fill_at(moment: str, attempt: Attempt, disk: Path, chance: random.Random) -> None:
    folder = attempt.folder
    leave = chance.choice((0, 0, chance.randrange(100_000), chance.randrange(700_000)))
    if moment == "start":
        return
    step = chance.randint(1, 11)
    when = {
        "step": lambda: last_step(folder) >= step,
        "checkpoint": lambda: writes_checkpoint(folder),
        "results": lambda: writes_results(folder),
    }[moment]
    if attempt.wait_until(when):
        fill(disk, leave)


def trial(name: str, whole: Path, disk: Path, number: int, moment: str, chance: random.Random) -> list[str]:
    """What is wrong with a run whose disk is full from `moment` on."""
    folder, wrong = disk / f"trial-{number}", []
    every = chance.randint(1, 5)
    arguments = arguments_of(name, f"method.checkpoint_every={every}")
    if moment == "start":
        fill(disk, chance.choice((0, 20_000, 200_000, 700_000)))
    attempt = start(folder, *arguments, log=disk.parent / f"disk-{number}.log")
    fill_at(moment, attempt, disk, chance)
    code, at, good = attempt.wait(), last_step(folder), newest_good(folder)
    said = [line for line in attempt.log.read_text().splitlines() if line.startswith("error: ")]
    if code not in (0, 2):
        wrong.append(f"exit code {code}")
    if code == 2 and not (len(said) == 1 and str(disk) in said[0] and "MB left" in said[0]):
        wrong.append(f"said {said}")
    if "Traceback" in attempt.log.read_text():
        wrong.append("a traceback")
    if at > 0 and good < (at - 1) // every * every:
        wrong.append(f"ended after step {at}, and the newest good checkpoint is of step {good}")
    if (disk / "ballast").exists():
        make_room(disk)
    last = start(folder, *arguments, log=attempt.log)
    if last.wait() != 0:
        wrong.append(f"with room again it ended with {last.code}")
    else:
        wrong += differences(whole, folder)
    subprocess.run(["rm", "-rf", str(folder), str(outputs_of(folder))], check=True)
    ended = said[0].removeprefix("error: ")[:110] if said else f"code {code}"
    print(f"{'WRONG' if wrong else 'same '}  {name}, full at {moment}, step {at}: {ended}", flush=True)
    for line in wrong:
        print(f"       {line}; log: {last.log}", flush=True)
    return wrong


def sweep(folder: Path) -> list[str]:
    """Two cells, of which the first has a full disk of its own."""
    words = [
        f"outputs={folder}",
        "study=s",
        "method=zero_shot",
        "model=tiny",
        *COMMON,
        "hydra.sweep.dir=${outputs}/${study}",
    ]
    place = {}
    for seed in (0, 1):
        config = config_of(*words[:-1], f"seed={seed}")
        place[seed] = folder / "s" / subfolder(config, run_key(config))
    mount(place[0], "4k")  # room for one file of a few lines
    attempt = start(folder / "unused", "-m", "seed=0,1", *words, log=folder / "sweep.log", run_dir=False)
    attempt.wait()
    said = attempt.log.read_text()
    wrong = [] if attempt.code == 1 else [f"the sweep ended with {attempt.code}"]
    if not (place[1] / "result.json").exists():
        wrong.append("the cell that had room has no result")
    summary = said[said.find("error: 1 of 2 cells failed:\n  seed=0\n") :]
    if f"{place[0]}/" not in summary or "could not be written (No space left on device)" not in summary:
        wrong.append("the cell without room is not named")
    print(
        f"{'WRONG' if wrong else 'fine '}  a sweep, one of whose cells has no room: {wrong}; log: {attempt.log}"
    )
    return wrong


def trials(folder: Path, count: int, undisturbed: Undisturbed, chance: random.Random) -> int:
    """How many of them went wrong."""
    disk, failed = mount(folder / "disk", "32m"), 0
    names = [name for name in VARIANTS if trains(name)] if count > len(MOMENTS) else ["ppo", "sft"]
    for number in range(count):
        name, moment = names[number % len(names)], MOMENTS[number % len(MOMENTS)]
        failed += bool(trial(name, undisturbed(name)[0], disk, number, moment, chance))
    failed += bool(sweep(folder / "full-sweep"))
    print(f"{count + 1 - failed} of {count + 1} trials with full disks end as they should", flush=True)
    return failed
