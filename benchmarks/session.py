"""A session: contenders of one case, each in a process of its own, stepping in turns."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contenders import OURS, ROOT, Contender
from benchmarks.flops import needed, needed_for_labels
from benchmarks.machine import matmul_rate
from benchmarks.workload import Workload

PATIENCE = 900.0  # seconds that a step, or loading a model, may take
STEADY = 0.8  # the slower over the faster matrix rate of a session, below which a reader should doubt it
NOISE = 1e-4  # nats; two labels nearer than this may change places by rounding


class ContenderError(Exception):
    """A contender that can't take part: not installed, failed, or doing other work than the others."""


class Process:
    """A running contender. Ends with the `with` block."""

    def __init__(self, contender: Contender, workload_file: Path, threads: int, folder: Path) -> None:
        if not contender.python.exists():
            raise ContenderError("not installed: make bench-peers")
        self.log = folder / f"{contender.name}.log"
        search = str(ROOT)
        if contender.peer is None:  # this environment, with all that it was told to look at
            search = os.pathsep.join([str(ROOT / "src"), search, os.environ.get("PYTHONPATH", "")])
        environment = {
            **os.environ,
            "PYTHONPATH": search,
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TRL_EXPERIMENTAL_SILENCE": "1",
            **dict.fromkeys(contender.flags, "1"),
        }
        self._process = subprocess.Popen(
            [str(contender.python), "-m", contender.module, str(workload_file)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
        )
        self._replies: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._replies.put(line)
        self._replies.put("")

    def receive(self) -> dict[str, Any]:
        """The next reply.

        Raises:
            ContenderError: the process ended, or said nothing for too long.
        """
        try:
            line = self._replies.get(timeout=PATIENCE)
        except queue.Empty:
            raise ContenderError(f"gave no answer within {PATIENCE:.0f} s") from None
        if not line:
            raise ContenderError(f"failed: {self._last_words()}")
        return json.loads(line)

    def ask(self, request: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then `receive` says why
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        return self.receive()

    def _last_words(self) -> str:
        self._process.wait()
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:200] if lines else f"exit status {self._process.returncode}"

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass
class Session:
    """What came out; JSON holds all of it.

    Attributes:
        needed: operations that a step needs, with prefixes shared and with plain rows.
        rounds: per round, every contender's step.
        watched: per contender, the step before the rounds, under counters.
        missing: per contender that took no part, why.
        matmul_flops: the machine's rate before the first round and after the last.
        agreement: for `eval`, how far the contenders' scores and choices are ours.
    """

    case: str
    about: str
    samples: int
    rounds: list[dict[str, dict[str, Any]]] = field(default_factory=list)
    watched: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    matmul_flops: list[float] = field(default_factory=list)
    needed: dict[str, dict[str, int]] = field(default_factory=dict)
    agreement: dict[str, dict[str, float]] = field(default_factory=dict)


def run_session(
    workload: Workload,
    chosen: Sequence[Contender],
    rounds: int,
    budget: float | None = None,
    say: Any = print,
    save: Callable[[Session], None] = lambda session: None,
) -> Session:
    """Runs the contenders in turns: a, b, c, a, b, c, ... so that a slow minute of the machine hits all.

    Args:
        budget: seconds; no round begins that would probably end later, but one is always run.
        save: takes the session after every round, so that an interruption loses one round at most.
    """
    session = Session(workload.name, workload.about, len(workload.prompts), needed=_needed(workload))
    started = time.monotonic()
    with _processes(workload, chosen, session, say) as running:
        _compare_scores(session)
        session.matmul_flops.append(matmul_rate(workload.threads))
        for number in range(rounds if running else 0):
            begun = time.monotonic()
            session.rounds.append(_round(running, session, say, f"round {number + 1} of {rounds}"))
            save(session)
            now = time.monotonic()
            if budget is not None and now - started + (now - begun) > budget:
                if number + 1 < rounds:
                    say(f"  no further round fits into {budget:.0f} s")
                break
        session.matmul_flops.append(matmul_rate(workload.threads))
    if min(session.matmul_flops) < STEADY * max(session.matmul_flops):
        say("  the machine's speed changed meanwhile; something else may have run: better measure again")
    save(session)
    return session


def _compare_scores(session: Session) -> None:
    """Keeps how far scores agree in place of the scores."""
    scores = {name: step.pop("scores") for name, step in session.watched.items()}
    ours = scores.pop(OURS, None)
    if ours:
        session.agreement = {name: agreement(ours, theirs) for name, theirs in scores.items()}


def agreement(ours: list[list[float]], theirs: list[list[float]]) -> dict[str, float]:
    """Whether both choose the same label wherever the choice is more than rounding."""
    decided = same = 0
    for a, b in zip(ours, theirs, strict=True):
        best, second = sorted(a, reverse=True)[:2]
        if best - second > NOISE:
            decided += 1
            same += a.index(max(a)) == b.index(max(b))
    gap = max(abs(x - y) for a, b in zip(ours, theirs, strict=True) for x, y in zip(a, b, strict=True))
    return {"examples": len(ours), "decided": decided, "same": same, "largest_difference": gap}


def _needed(workload: Workload) -> dict[str, dict[str, int]]:
    if workload.kind == "eval":
        return {"shared": {"total": needed_for_labels(workload)}}
    steps = {"shared": needed(workload), "plain": needed(workload, share=False)}
    return {name: {**asdict(step), "total": step.total} for name, step in steps.items()}


@contextlib.contextmanager
def _processes(
    workload: Workload, chosen: Sequence[Contender], session: Session, say: Any
) -> Iterator[dict[str, Process]]:
    """Starts the contenders one after the other, each with one watched step, which also warms it up."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workload.write(folder / "workload.json")
        running: dict[str, Process] = {}
        for contender in chosen:
            try:
                process = Process(contender, folder / "workload.json", workload.threads, folder)
                stack.callback(process.close)
                session.versions[contender.name] = process.receive()["versions"]
                watched = process.ask("watch")
                fault = contender.fault(workload, watched)
                if fault:
                    raise ContenderError(fault)
            except ContenderError as error:
                session.missing[contender.name] = str(error)
                say(f"  {contender.name}: {error}")
                continue
            session.watched[contender.name] = watched
            running[contender.name] = process
            say(f"  {contender.name}: ready, first step {watched['seconds']:.1f} s")
        yield running


def _round(running: dict[str, Process], session: Session, say: Any, title: str) -> dict[str, dict[str, Any]]:
    found = {}
    for name, process in list(running.items()):
        try:
            step = process.ask("step")
            found[name] = {key: step[key] for key in ("seconds", "cpu_seconds", "memory_bytes", "phases")}
        except ContenderError as error:
            session.missing[name] = str(error)
            del running[name]
    say(f"  {title}: " + ", ".join(f"{name} {step['seconds']:.2f} s" for name, step in found.items()))
    return found
