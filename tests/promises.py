"""What is promised under faults, and what the tests last saw of it: the table of docs/reliability.md.

    python -m pytest -m promise --full --record=benchmarks/results/faults.json
    python tests/promises.py

A test says with `@pytest.mark.promise(fault, promise)` which promise it shows, and puts what it counts into the
fixture `figures`. The record keeps the last run of every test, with the commit it ran on.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "faults.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- promises: begin -->", "<!-- promises: end -->"


@dataclass
class Seen:
    """What one test saw of a promise. `figures` are numbers or words by their names."""

    fault: str
    promise: str
    test: str
    outcome: str
    seconds: float
    figures: dict[str, Any] = field(default_factory=dict)


def words(fault: str, promise: str) -> tuple[str, str]:
    """The two arguments of the marker; a test that lacks one is stopped here."""
    return fault, promise


def record(file: Path, seen: Iterable[Seen], full: bool) -> None:
    """Puts what was seen into `file`; tests that did not run now, or were skipped, keep what they had."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    stamp = {"day": time.strftime("%Y-%m-%d"), "commit": commit(), "full": full}
    for one in seen:
        if one.outcome == "skipped":
            continue
        known[f"{one.test} ({one.fault})"] = {
            "test": one.test,
            "fault": one.fault,
            "promise": one.promise,
            "outcome": one.outcome,
            "seconds": round(one.seconds, 1),
            "figures": one.figures,
            **stamp,
        }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(known, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def commit() -> str:
    """The checkout's, short."""
    told = subprocess.run(
        ["git", "rev-parse", "--short=8", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return told.stdout.strip()


def table(known: dict[str, dict[str, Any]]) -> str:
    """One row a promise, faults in the order of their names. Tests of one promise share its row, and whole numbers
    that they have counted are added up."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name in sorted(known):
        rows.setdefault((known[name]["fault"], known[name]["promise"]), []).append(known[name])
    lines = ["| Fault | Promise | Shown by | Last run |", "|---|---|---|---|"]
    for (fault, promise), found in sorted(rows.items(), key=lambda row: (row[0][0].lower(), row[0][1])):
        functions = dict.fromkeys(re.sub(r"\[.*", "", one["test"]) for one in found)
        shown = "<br>".join(f"`{name.removeprefix('tests/')}`" for name in functions)
        lines.append(f"| {_sentence(fault)} | {_sentence(promise)} | {shown} | {_last_run(found)} |")
    return "\n".join(lines)


def _sentence(text: str) -> str:
    """With a capital in front, unless that would rename a file."""
    return text if "." in text.split()[0] else text[:1].upper() + text[1:]


def _last_run(found: list[dict[str, Any]]) -> str:
    passed = sum(one["outcome"] == "passed" for one in found)
    whole = "" if all(one["full"] for one in found) else ", short"
    said = [f"{passed} of {len(found)} passed" if passed < len(found) or len(found) > 1 else "passed"]
    figures: dict[str, Any] = {}
    for one in found:
        for name, value in one["figures"].items():
            counted = isinstance(value, int) and isinstance(figures.get(name, 0), int)
            figures[name] = figures.get(name, 0) + value if counted else value
    said += [f"{name}: {value}" for name, value in figures.items()]
    last = max(found, key=lambda one: one["day"])
    return f"{'; '.join(dict.fromkeys(said))} ({last['commit']}, {last['day']}{whole})"


def write_page(page: Path, known: dict[str, dict[str, Any]]) -> None:
    """Replaces the table between the two marks of the page."""
    text = page.read_text(encoding="utf-8")
    head, found, rest = text.partition(BEGIN)
    _, closed, tail = rest.partition(END)
    if not found or not closed:
        raise SystemExit(f"{page}: the marks {BEGIN} and {END} are missing")
    page.write_text(f"{head}{BEGIN}\n{table(known)}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    write_page(PAGE, json.loads(RECORD.read_text(encoding="utf-8")))
    sys.exit(0)
