"""Kills runs at random moments, lets them go on, and compares them with runs that nothing has disturbed.

    python tests/kill_trials.py FOLDER --trials 20 [--seed 0]

Each trial is a run of train.py on a toy task that is killed once to three times (kill -9, or now and then SIGTERM or
Ctrl-C): after a random step, at a random time, or while it writes a checkpoint, its adapter or its last files. The
attempts are processes of their own, forked from this one, which has torch in memory already: 20 trials take a few
minutes. Exits with 1 if any file differs from that of the undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import runpy
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import nlu_ppo.methods  # noqa: F401  what every attempt needs, loaded once
from nlu_ppo.storage import SEAL, damage

ROOT = Path(__file__).parents[1]

COMMON = (
    "model=tiny", "tracking=none", "eval.bootstrap_samples=20", "task.selection=16", "task.limit.train=72",
    "task.limit.eval=24", "method.epochs=9", "method.max_steps=12", "method.batch_size=16",
)  # fmt: skip
VARIANTS: dict[str, tuple[str, ...]] = {
    "ppo": ("method=ppo", "task=toy_sentiment", "lora=paper", "method.select_every=4", "method.kl_horizon=50"),
    "sft": ("method=sft", "task=toy_sentiment", "lora=paper", "method.select_every=4"),
    "ppo, running scale, 2 rollouts": (
        "method=ppo", "task=toy_nli", "method.reward_scaling=running", "method.rollouts=2", "method.select_every=3",
        "method.optimizer=adamw", "method.keep=best", "method.kl_controller=adaptive", "method.kl_target=0.5",
    ),
    "sft, two tasks": (
        "method=sft", "task=toys", "task.mixing=temperature", "method.micro_batch_size=4", "method.select_every=5",
    ),
    "ppo, two tasks": (
        "method=ppo", "task=toys", "task.mixing=equal", "method.reward_scaling=standardized", "method.top_k=40",
        "method.target_kl=0.05", "method.select_every=0", "method.minibatch_size=8",
    ),
    "sft, all weights": (
        "method=sft", "task=toy_nli", "lora=none", "method.keep=last", "method.select_every=0",
        "method.schedule=cosine", "method.warmup=0.2", "method.loss_on=all", "method.optimizer=adafactor",
    ),
    "ppo, all weights": ("method=ppo", "task=toy_nli", "lora=none", "method.keep=last", "method.select_every=5"),
}  # fmt: skip
NOT_COMPARED = {"seconds", "samples_per_second", "peak_memory_bytes", "versions", "commit"}
TIMEOUT = 120.0


# -- attempts ------------------------------------------------------------------------------------------------


@dataclass
class Attempt:
    """A process at work on a run."""

    pid: int
    folder: Path
    log: Path
    code: int | None = None
    began: float = field(default_factory=time.monotonic)

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or `None` if it is still at work."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait_until(self, true: Callable[[], bool]) -> bool:
        """Watches for a moment, without a pause; false if the process has ended before it."""
        while self.poll() is None:
            if true():
                return True
            if time.monotonic() > self.began + TIMEOUT:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(f"{self.folder}: no end after {TIMEOUT:.0f} s; log: {self.log}")
            time.sleep(0.0005)
        return False

    def wait(self) -> int:
        self.wait_until(lambda: False)
        assert self.code is not None
        return self.code


def start(folder: Path, *arguments: str, log: Path | None = None, run_dir: bool = True) -> Attempt:
    """`train.py` with these arguments, in a process of its own."""
    log = log or folder.with_name(folder.name + ".log")
    places = [f"hydra.run.dir={folder}", f"outputs={folder.parent}"] if run_dir else []
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        run_here(log, [*arguments, *places])
    return Attempt(pid, folder, log)


def run_here(log: Path, arguments: list[str]) -> None:
    """What the forked process does; doesn't return."""
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(ROOT)
        sys.argv = ["train.py", *arguments]
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        code = 0
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException as error:
        print(f"escaped: {error!r}", flush=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# -- moments -------------------------------------------------------------------------------------------------


def last_step(folder: Path) -> int:
    """The last training step that metrics.jsonl holds; -1 before the first."""
    try:
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return -1
    steps = [json.loads(line)["step"] for line in text.split("\n")[:-1]]
    return max(steps, default=-1)


def checkpoints(folder: Path) -> list[Path]:
    return [p for p in (folder / "checkpoints").glob("*-*") if p.is_dir() and not p.name.startswith(".")]


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def newest_good(folder: Path) -> int:
    """The step that the next attempt has to go on from; 0: from the beginning."""
    return max((step_of(p) for p in checkpoints(folder) if damage(p) is None), default=0)


def writes_checkpoint(folder: Path) -> bool:
    place = folder / "checkpoints"
    return any(place.glob(".partial-*")) or any(not (p / SEAL).exists() for p in checkpoints(folder))


def writes_results(folder: Path) -> bool:
    names = (
        ".adapter.partial",
        "adapter",
        "predictions.jsonl.partial",
        "predictions.jsonl",
        "learning_curve.png",
    )
    return any((folder / name).exists() for name in names)


def moment(kind: str, attempt: Attempt, chance: random.Random, seconds: float) -> Callable[[], bool]:
    """When to kill: a function that says so."""
    folder = attempt.folder
    if kind == "step":
        step = chance.randint(max(1, last_step(folder) + 1), 12)
        return lambda: last_step(folder) >= step
    if kind == "checkpoint":
        skipped = newest_good(folder) + chance.choice((0, 0, 4))
        return lambda: last_step(folder) > skipped and writes_checkpoint(folder)
    if kind == "results":
        return lambda: writes_results(folder)
    at = attempt.began + chance.uniform(0.0, seconds)
    return lambda: time.monotonic() >= at


# -- trials --------------------------------------------------------------------------------------------------


def trial(
    name: str, whole: Path, folder: Path, chance: random.Random, kinds: list[str], seconds: float
) -> list[str]:
    """One run, killed at `kinds` of moments; returns what is wrong with it."""
    every = chance.randint(1, 5)
    arguments = (*COMMON, *VARIANTS[name], f"method.checkpoint_every={every}")
    wrong, story, expected = [], [], []
    for kind in kinds:
        number = (
            signal.SIGKILL
            if kind != "asked"
            else chance.choice((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))
        )
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
        if code == 128 + number and at > 0 and good != at:
            wrong.append(f"{number.name} after step {at} left a checkpoint of step {good}")
        if code == 128 + number and not said_interrupted(folder):
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


def said_interrupted(folder: Path) -> bool:
    """Whether result.json says so. A run that had not begun when the signal came has none."""
    if not (folder / "run.json").exists():
        return True
    return json.loads((folder / "result.json").read_text())["status"] == "interrupted"


def differences(whole: Path, folder: Path) -> list[str]:
    """What differs between two finished runs, apart from times."""
    wrong = []
    weights = ["adapter_model.safetensors", "model.safetensors"]
    a, b = ({k: v for w in weights if (p := r / "adapter" / w).exists() for k, v in load_file(p).items()}
            for r in (whole, folder))  # fmt: skip
    if not a or a.keys() != b.keys():
        wrong.append("the adapters have other tensors")
    elif odd := [name for name in a if not torch.equal(a[name], b[name])]:
        wrong.append(f"{len(odd)} of {len(a)} tensors of the adapter differ: {odd[0]}")
    if (whole / "predictions.jsonl").read_bytes() != (folder / "predictions.jsonl").read_bytes():
        wrong.append("predictions.jsonl differs")
    for name, read in (("metrics.jsonl", metrics), ("result.json", result)):
        if (x := read(whole)) != (y := read(folder)):
            wrong.append(f"{name} differs: {first_difference(x, y)}")
    return wrong


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in NOT_COMPARED} for line in lines]


def result(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {k: v for k, v in found.items() if k not in NOT_COMPARED}


def first_difference(a: Any, b: Any) -> str:
    if isinstance(a, list) and len(a) != len(b):
        return f"{len(a)} lines and {len(b)}"
    pairs = zip(a, b, strict=True) if isinstance(a, list) else ((a, b),)
    for line, (x, y) in enumerate(pairs, start=1):
        for key in x.keys() | y.keys():
            if x.get(key) != y.get(key):
                return f"line {line}, {key}: {x.get(key)} and {y.get(key)}"
    return "in the order of keys"


KINDS = ("step", "checkpoint", "time", "results", "asked")


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
        "--seed", type=int, default=None, help="by default a new one each time; it is printed"
    )
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}", flush=True)
    chance, folder = random.Random(seed), given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    undisturbed: dict[str, tuple[Path, float]] = {}
    failed = 0
    for number, (name, kinds) in enumerate(plan(given.trials, chance)):
        if name not in undisturbed:
            whole = start(
                folder / f"whole-{len(undisturbed)}", *COMMON, *VARIANTS[name], "method.checkpoint_every=0"
            )
            if whole.wait() != 0:
                print(f"{name}: the undisturbed run failed; log: {whole.log}")
                return 1
            undisturbed[name] = whole.folder, time.monotonic() - whole.began
        whole_folder, seconds = undisturbed[name]
        failed += bool(trial(name, whole_folder, folder / f"trial-{number}", chance, kinds, seconds))
    print(f"{given.trials - failed} of {given.trials} trials end bitwise like runs that were not killed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
