"""train.py as processes for tests that break them: forked from one that has the libraries in memory already.

A process of its own does the forking, since pytest's have threads, which a fork can't take along.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composing import ROOT

TIMEOUT = 300.0  # seconds; a run takes three, but the machine may be busy


@dataclass
class Forked:
    """A process at work on a run."""

    pid: int
    log: Path
    source: Forge
    code: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or `None` if it is still at work."""
        if self.code is None:
            self.code = self.source.ask({"poll": self.pid})
        return self.code

    def wait(self, seconds: float = TIMEOUT) -> int:
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, 9)
                raise TimeoutError(f"no end after {seconds:.0f} s:\n{self.said()[-3000:]}")
            time.sleep(0.02)
        assert self.code is not None
        return self.code

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def errors(self) -> list[str]:
        """What it said behind `error: `, which has to be one line, or none."""
        return [line for line in self.said().splitlines() if line.startswith("error: ")]


class Forge:
    """Where runs are forked."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], cwd=ROOT / "tests", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])},
        )  # fmt: skip

    def ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self, log: Path, *arguments: str, before: str = "", env: dict[str, str] | None = None
    ) -> Forked:
        """`train.py` with these arguments.

        Args:
            log: what it says is added there.
            before: Python code that the process runs first.
        """
        pid = self.ask({"log": str(log), "arguments": arguments, "before": before, "env": env or {}})
        return Forked(pid, log, self)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


@contextlib.contextmanager
def forge() -> Iterator[Forge]:
    """Forks as long as the block lasts; what still runs then is killed."""
    source = Forge()
    try:
        yield source
    finally:
        source.close()


def _serve() -> None:
    """Reads questions, a line each, and answers them; at the end of its input it kills what it has started."""
    import mlflow.tracking  # noqa: F401  loaded once for all
    from attempts import run_here

    answers, running = os.fdopen(os.dup(1), "w"), dict[int, int | None]()
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        if "poll" in asked:
            pid = asked["poll"]
            done, status = os.waitpid(pid, os.WNOHANG) if running[pid] is None else (0, 0)
            if done:
                running[pid] = os.waitstatus_to_exitcode(status)
            answer = running[pid]
        else:
            answer = os.fork()
            if answer == 0:
                os.setpgid(0, 0)
                os.environ.update(asked["env"])
                exec(asked["before"], {})
                run_here(Path(asked["log"]), asked["arguments"])
            running[answer] = None
        print(json.dumps(answer), file=answers, flush=True)
    for pid, code in running.items():
        if code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, 9)


if __name__ == "__main__":
    _serve()
