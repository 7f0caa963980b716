"""The result file: sessions as they were measured, and what they come to."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.session import Session

RESULTS = Path(__file__).parent / "results"


@dataclass
class Results:
    """Sessions of one machine."""

    machine: dict[str, Any]
    sessions: list[Session] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Results:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return cls(raw["machine"], [Session(**session) for session in raw["sessions"]])

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self), indent=1)
        path.write_text(text + "\n", encoding="utf-8")

    def of(self, case: str) -> list[Session]:
        return [session for session in self.sessions if session.case == case]

    @property
    def cases(self) -> list[str]:
        return list(dict.fromkeys(session.case for session in self.sessions))

    def without(self, case: str) -> Results:
        return Results(self.machine, [session for session in self.sessions if session.case != case])

    def plus(self, session: Session) -> Results:
        return Results(self.machine, [*self.sessions, session])


@dataclass(frozen=True)
class Spread:
    """A median, and how far the values lie apart."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """`None` where there is nothing to summarise."""
        if not values:
            return None
        return cls(statistics.median(values), min(values), max(values), len(values))


def figures(sessions: Sequence[Session], name: str, key: str) -> list[float]:
    """A contender's figure of all rounds: `seconds`, `memory_bytes`, or a phase."""
    steps = [step[name] for session in sessions for step in session.rounds if name in step]
    return [
        step[key] if key in step else step["phases"][key]
        for step in steps
        if key in step or key in step["phases"]
    ]


def ratios(sessions: Sequence[Session], above: str, below: str, key: str = "seconds") -> list[float]:
    """`above` over `below`, round by round: what slows a round down slows both."""
    return [
        step[above][key] / step[below][key]
        for session in sessions
        for step in session.rounds
        if above in step and below in step
    ]


def why_missing(sessions: Sequence[Session], name: str) -> str | None:
    """The last reason, if the contender has no round at all."""
    if figures(sessions, name, "seconds"):
        return None
    reasons = [session.missing[name] for session in sessions if name in session.missing]
    return reasons[-1] if reasons else "not run"
