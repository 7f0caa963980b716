"""Attempts at runs, for scripts that disturb them: processes forked from one that has torch in memory already."""

from __future__ import annotations

import atexit
import functools
import json
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from models import save_random_bert
from safetensors.torch import load_file

import nlu_ppo.methods  # noqa: F401  what every attempt needs, loaded once
from nlu_ppo.storage import SEAL, damage

ROOT = Path(__file__).parents[1]
# Hydra looks for plugins once, and forked processes know what this one has found; train.py has this folder by itself.
sys.path.insert(0, str(ROOT))

COMMON = ("tracking=none", "eval.bootstrap_samples=20", "task.limit.train=72", "task.limit.eval=24")
TRAINING = (
    "task.selection=16", "method.epochs=9", "method.max_steps=12", "method.batch_size=16", "method.select_every=4",
)  # fmt: skip
SMALL_START = ("method.init=sft", "method.start.batch_size=16", "method.start.max_steps=12")
SMALL_JUDGE = ("reward.label_model.batch_size=16", "reward.label_model.max_steps=12")
# What is given twice counts as it was given last.
VARIANTS: dict[str, tuple[str, ...]] = {
    "ppo": (*TRAINING, "method=ppo", "task=toy_sentiment", "lora=paper", "method.kl_horizon=50"),
    "sft": (*TRAINING, "method=sft", "task=toy_sentiment", "lora=paper"),
    "ppo, running scale, 2 rollouts": (
        *TRAINING, "method=ppo", "task=toy_nli", "method.reward_scaling=running", "method.rollouts=2",
        "method.select_every=3", "method.optimizer=adamw", "method.keep=best", "method.kl_controller=adaptive",
        "method.kl_target=0.5",
    ),
    "sft, two tasks": (
        *TRAINING, "method=sft", "task=toys", "task.mixing=temperature", "method.micro_batch_size=4",
        "method.select_every=5",
    ),
    "ppo, two tasks": (
        *TRAINING, "method=ppo", "task=toys", "task.mixing=equal", "method.reward_scaling=standardized",
        "method.top_k=40", "method.target_kl=0.05", "method.select_every=0", "method.minibatch_size=8",
    ),
    "sft, all weights": (
        *TRAINING, "method=sft", "task=toy_nli", "lora=none", "method.keep=last", "method.select_every=0",
        "method.schedule=cosine", "method.warmup=0.2", "method.loss_on=all", "method.optimizer=adafactor",
    ),
    "ppo, all weights": (
        *TRAINING, "method=ppo", "task=toy_nli", "lora=none", "method.keep=last", "method.select_every=5",
    ),
    "grpo": (*TRAINING, "method=grpo", "task=toy_nli", "method.rollouts=2", "method.batch_size=8"),
    "rloo": (*TRAINING, "method=rloo", "task=toy_sentiment", "method.rollouts=2", "method.batch_size=8"),
    "reward model": (*TRAINING, "method=reward_model", "task=toy_nli"),
    "ppo, reward of a model": (
        *TRAINING, "method=ppo", "task=toy_sentiment", "reward=label_sensitive", *SMALL_JUDGE,
    ),
    "ppo from sft": (*TRAINING, "method=ppo", "task=toy_nli", *SMALL_START),
    "encoder": (*TRAINING, "method=sft", "task=toy_nli", "model=local", "model.kind=encoder", "model.path=ENCODER"),
    "zero-shot": ("method=zero_shot", "task=toy_nli", "task.limit.eval=96"),
    "few-shot": ("method=few_shot", "task=toy_sentiment", "task.selection=16", "task.limit.eval=96"),
}  # fmt: skip
NOT_COMPARED = {"seconds", "samples_per_second", "peak_memory_bytes", "versions", "commit"}
TIMEOUT = 900.0  # seconds; a run takes three, but the machine may be busy


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


def arguments_of(variant: str, *more: str) -> list[str]:
    """The words of a run of `variant`."""
    words: dict[str, str] = {}
    for word in ("model=tiny", *COMMON, *VARIANTS[variant], *more):
        name, _, value = word.partition("=")
        words[name] = value
    if words.get("model.path") == "ENCODER":
        words["model.path"] = str(encoder())
    return [f"{name}={value}" for name, value in words.items()]


def trains(variant: str) -> bool:
    """Whether there is anything to write checkpoints of."""
    return not variant.endswith("-shot")


@functools.cache
def encoder() -> Path:
    """A random encoder; it goes when this process ends."""
    folder = tempfile.mkdtemp(prefix="encoder-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return save_random_bert(Path(folder))


def outputs_of(folder: Path) -> Path:
    """Where a run has its caches, and the runs that it starts from or asks: a place of its own, to be killed in."""
    return folder.with_name(folder.name + ".outputs")


def start(folder: Path, *arguments: str, log: Path | None = None, run_dir: bool = True) -> Attempt:
    """`train.py` with these arguments, in a process of its own."""
    log = log or folder.with_name(folder.name + ".log")
    places = [f"hydra.run.dir={folder}", f"outputs={outputs_of(folder)}"] if run_dir else []
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
    except KeyboardInterrupt:  # ahead of what heeds signals: train.py by itself would end by the signal, too
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException as error:
        print(f"escaped: {error!r}", flush=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# -- what is there -------------------------------------------------------------------------------------------------


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


def all_checkpoints(folder: Path) -> list[Path]:
    """Those of the run, and of the runs that it starts from or asks."""
    homes = [path.parent for path in outputs_of(folder).glob("**/checkpoints")]
    return [found for home in (folder, *homes) for found in checkpoints(home)]


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


# -- comparing ------------------------------------------------------------------------------------------------


def differences(whole: Path, folder: Path) -> list[str]:
    """What differs between two finished runs, apart from times."""
    wrong = []
    weights = ["adapter_model.safetensors", "model.safetensors"]
    a, b = ({k: v for w in weights if (p := r / "adapter" / w).exists() for k, v in load_file(p).items()}
            for r in (whole, folder))  # fmt: skip
    if a.keys() != b.keys() or (not a and metrics(whole)):
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
    if not (folder / "metrics.jsonl").exists():  # nothing was trained
        return []
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


class Undisturbed:
    """Runs that nothing disturbs, one of each variant, made when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs: dict[str, tuple[Path, float]] = {}

    def __call__(self, variant: str) -> tuple[Path, float]:
        """The run's folder, and the seconds that it took."""
        if variant not in self._runs:
            folder = self._folder / f"whole-{len(self._runs)}"
            never = ["method.checkpoint_every=0"] if trains(variant) else []
            run = start(folder, *arguments_of(variant, *never))
            if run.wait() != 0:
                sys.exit(f"{variant}: the undisturbed run failed; log: {run.log}")
            self._runs[variant] = folder, time.monotonic() - run.began
        return self._runs[variant]
