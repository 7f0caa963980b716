"""Reads what the runs of a study left behind: `outputs/<study>/<task>/<model>/<method>/<seed>-<key8>/`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

_RUN_NAME = re.compile(r"(?P<seed>\d+)-(?P<key>[0-9a-zA-Z]+)")


class Cell(NamedTuple):
    """What one row of the table shows: all that two runs share that differ in the seed only."""

    task: str
    model: str
    method: str
    reward: str | None = None
    lora: str | None = None


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        score: the task's score, 0 to 100, as are `ci95`, `majority` and `likelihood_score`.
        n: evaluated examples.
        unparsable: how many of them got no legal answer.
        seconds: of fitting and evaluating; loading is left out, since it says more of the disk than the run.
        written: modification time of `result.json`, seconds since the epoch.

    Everything but the score may be missing (`None`).
    """

    folder: Path
    cell: Cell
    seed: int
    score: float
    ci95: tuple[float, float] | None = None
    n: int | None = None
    unparsable: int | None = None
    majority: float | None = None
    likelihood_score: float | None = None
    seconds: float | None = None
    samples_per_second: float | None = None
    written: float = 0.0


@dataclass(frozen=True)
class Problem:
    """A run folder without a result that a table can use.

    Attributes:
        status: "failed", "unfinished" (no `result.json`, or one that says running), or "broken".
        error: what went wrong, in one line.
        cell: as far as the folder tells; `reward` and `lora` are unknown where `known` is false.
        known: whether `cell` comes from a `result.json`, not from the folder's path alone.
    """

    folder: Path
    status: str
    error: str
    cell: Cell
    seed: int | None
    known: bool


@dataclass(frozen=True)
class Study:
    """All runs of a study.

    Attributes:
        runs: finished runs, at most one per cell and seed.
        problems: run folders without a usable result.
        notes: what a reader of the table must know about the choice of runs.
    """

    name: str
    folder: Path
    runs: tuple[Run, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


class _BrokenResultError(Exception):
    """A `result.json` that can't be read as one."""


def collect(outputs: Path, name: str) -> Study:
    """Reads all run folders of study `name` below `outputs`.

    Of several finished runs of one cell and seed, the one written last is taken, and a note says so: their
    settings differ (else they would share a folder), and a mean over them would be a mean of nothing named.
    Broken, failed and unfinished runs are returned as problems. A study without a folder has no runs.
    """
    finished: dict[tuple[Cell, int], list[Run]] = {}
    problems = []
    for folder in _run_folders(outputs / name):
        read = _read_run(folder)
        if isinstance(read, Problem):
            problems.append(read)
        else:
            finished.setdefault((read.cell, read.seed), []).append(read)
    runs, notes = [], []
    for (cell, seed), candidates in finished.items():
        # The path breaks ties, so that two copies with one time stamp give the same table everywhere.
        newest = max(candidates, key=lambda run: (run.written, run.folder.name))
        runs.append(newest)
        if len(candidates) > 1:
            others = ", ".join(sorted(run.folder.name for run in candidates if run is not newest))
            notes.append(
                f"{cell.task}, {cell.model}, {cell.method}, seed {seed}: {len(candidates)} finished runs "
                f"differ in settings without a column; the newest, {newest.folder.name}, is shown, "
                f"not {others}. A study for each setting keeps them apart."
            )
    return Study(name, outputs / name, tuple(runs), tuple(problems), tuple(notes))


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; none if there is no file.

    Lines that aren't JSON objects are left out: an interrupted run leaves half a line at the end, and the
    resumed run goes on after it.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    yield row
    except FileNotFoundError:
        return


def read_curve(run: Run, name: str) -> list[tuple[float, float]]:
    """(training examples seen, value) of one metric, in the order of training.

    A resumed run repeats the steps after its last checkpoint: the last line of a step counts.
    """
    by_step: dict[float, tuple[float, float]] = {}
    for row in read_jsonl(run.folder / "metrics.jsonl"):
        step, examples, value = (_finite(row.get(key)) for key in ("step", "examples", name))
        if step is not None and examples is not None and value is not None:
            by_step[step] = (examples, value)
    by_examples = dict(by_step[step] for step in sorted(by_step))
    return sorted(by_examples.items())


def _run_folders(study: Path) -> list[Path]:
    """Folders four levels down that hold a result or are named as runs are."""
    folders = (path for path in study.glob("*/*/*/*") if path.is_dir())
    return sorted(p for p in folders if (p / "result.json").exists() or _RUN_NAME.fullmatch(p.name))


def _read_run(folder: Path) -> Run | Problem:
    task, model, method = folder.parts[-4:-1]
    cell = Cell(task, model, method)
    match = _RUN_NAME.fullmatch(folder.name)
    seed = int(match["seed"]) if match else None
    path = folder / "result.json"
    if not path.exists():
        steps = [row["step"] for row in read_jsonl(folder / "metrics.jsonl") if "step" in row]
        progress = f"last recorded step {steps[-1]}" if steps else "no recorded step"
        return Problem(folder, "unfinished", f"no result.json; {progress}", cell, seed, known=False)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise _BrokenResultError("not a JSON object")
        cell = _cell(raw, cell)
        seed = _seed(raw, seed)
        status = raw.get("status")
        if status == "finished":
            return _finished(folder, cell, seed, raw, path.stat().st_mtime)
    except (OSError, ValueError, _BrokenResultError) as error:
        return Problem(folder, "broken", f"result.json: {error}", cell, seed, known=False)
    if status == "failed":
        return Problem(folder, "failed", _one_line(raw.get("error")), cell, seed, known=True)
    if status == "running":
        return Problem(folder, "unfinished", "result.json says running", cell, seed, known=True)
    return Problem(folder, "broken", f"result.json: unknown status {status!r}", cell, seed, known=True)


def _finished(folder: Path, cell: Cell, seed: int, raw: Mapping[str, Any], written: float) -> Run:
    score = _number(raw, "score")
    if score is None:
        raise _BrokenResultError("finished, but without a score")
    n, unparsable = _number(raw, "n"), _number(raw, "unparsable")
    if n is not None and n < 1:
        raise _BrokenResultError(f"n is {n:g}: nothing was evaluated")
    seconds = raw.get("seconds") or {}
    if not isinstance(seconds, dict):
        raise _BrokenResultError(f"seconds is {seconds!r}, not an object")
    spent = [part for part in (_number(seconds, "fit"), _number(seconds, "evaluate")) if part is not None]
    return Run(
        folder=folder,
        cell=cell,
        seed=seed,
        score=score,
        ci95=_interval(raw.get("ci95")),
        n=None if n is None else int(n),
        unparsable=None if unparsable is None else int(unparsable),
        majority=_number(raw, "majority"),
        likelihood_score=_number(raw, "likelihood_score"),
        seconds=sum(spent) if spent else None,
        samples_per_second=_number(raw, "samples_per_second"),
        written=written,
    )


def _cell(raw: Mapping[str, Any], path: Cell) -> Cell:
    """The cell as the result names it; where an old or failed result names nothing, as the path does."""
    for key in Cell._fields:
        if not isinstance(raw.get(key), (str, type(None))):
            raise _BrokenResultError(f"{key} is {raw[key]!r}, not a name")
    return Cell(
        raw.get("task") or path.task,
        raw.get("model") or path.model,
        raw.get("method") or path.method,
        raw.get("reward"),
        raw.get("lora"),
    )


def _seed(raw: Mapping[str, Any], path: int | None) -> int:
    seed = _number(raw, "seed")
    if seed is None:
        if path is None:
            raise _BrokenResultError("no seed, neither in the file nor in the folder's name")
        return path
    return int(seed)


def _interval(raw: Any) -> tuple[float, float] | None:
    if raw is None:
        return None
    ends = [_finite(end) for end in raw] if isinstance(raw, list) else []
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        raise _BrokenResultError(f"ci95 is {raw!r}, not a pair of numbers")
    return ends[0], ends[1]


def _number(raw: Mapping[str, Any], key: str) -> float | None:
    """A finite number, or `None` where it is null or absent; anything else breaks the result."""
    value = raw.get(key)
    number = _finite(value)
    if number is None and value is not None:
        raise _BrokenResultError(f"{key} is {value!r}, not a finite number")
    return number


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def _one_line(error: Any) -> str:
    """The last line of an error: of a traceback, that is the one that says what happened."""
    lines = str(error or "").strip().splitlines()
    return lines[-1].strip() if lines else "no error recorded"
