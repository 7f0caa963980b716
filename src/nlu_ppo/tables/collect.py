"""Reads what the runs of a study left behind: `outputs/<study>/<task>/<model>/<method>/<seed>-<key8>/`."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from nlu_ppo.errors import MALFORMED
from nlu_ppo.tables.readings import Reading, finite, read_metrics
from nlu_ppo.tables.settings import STAGES, flatten, telling_apart, without_seeds
from nlu_ppo.tasks import TASKS

log = logging.getLogger(__name__)
_RUN_NAME = re.compile(r"(?P<seed>\d+)-(?P<key>[0-9a-zA-Z]+)")


class Cell(NamedTuple):
    """What one row of the table shows: all that two runs share that differ in the seed only.

    `settings` are those, as (key, value), that tell runs of this study apart beyond the names.
    """

    task: str
    model: str
    method: str
    reward: str | None = None
    lora: str | None = None
    settings: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        headline: what it scored on its own task.
        beside: what it scored on further sets: splits, members of a group, tasks of `eval.also`.
        others: numbers of no set, such as `perplexity/wikitext`.
        settings: all that its key is made of, flat.
        fit_and_evaluate: seconds, without loading, which says more of the disk than of the run.
        seconds: from the start to the end, loading included.
        devices: GPUs (or CPU slots) that were held all that time.
        written: modification time of `result.json`, seconds since the epoch.
        commit: the code that it ran, and `versions` of the libraries.

    Everything but the score may be missing (`None`).
    """

    folder: Path
    cell: Cell
    seed: int
    headline: Reading
    beside: tuple[Reading, ...] = ()
    others: Mapping[str, float] = field(default_factory=dict, hash=False)
    settings: Mapping[str, str] = field(default_factory=dict, hash=False)
    fit_and_evaluate: float | None = None
    seconds: float | None = None
    devices: int = 1
    samples_per_second: float | None = None
    peak_memory: float | None = None
    written: float = 0.0
    commit: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def readings(self) -> tuple[Reading, ...]:
        return (self.headline, *self.beside)

    @property
    def score(self) -> float:
        assert self.headline.score is not None  # a result without one is broken
        return self.headline.score

    @property
    def device_hours(self) -> float | None:
        return None if self.seconds is None else self.seconds * self.devices / 3600


@dataclass(frozen=True)
class Problem:
    """A run folder without a result that a table can use.

    Attributes:
        status: "failed", "unfinished" (no `result.json`, or one that says running), or "broken".
        error: what went wrong, in one line.
        cell: as far as the folder tells; `reward` and `lora` are unknown where `known` is false.
        known: whether `cell` comes from a `result.json` or `run.json`, not from the folder's path alone.
        settings: as those of a run; empty where there is no `run.json`.
    """

    folder: Path
    status: str
    error: str
    cell: Cell
    seed: int | None
    known: bool
    settings: Mapping[str, str] = field(default_factory=dict, hash=False)


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

    Runs of one cell whose settings differ become cells of their own, told apart by the settings that vary
    (`run.json` has them). Where two finished runs of one cell and seed still look alike, since `run.json` is
    missing, the one written last is taken, and a note says so: a mean over them would be one of nothing named.
    Broken, failed and unfinished runs are returned as problems. A study without a folder has no runs.
    """
    read = [_read_run(folder) for folder in _run_folders(outputs / name)]
    found, problems = _with_settings(
        [item for item in read if isinstance(item, Run)], [item for item in read if isinstance(item, Problem)]
    )
    finished: dict[tuple[Cell, int], list[Run]] = {}
    for run in found:
        finished.setdefault((run.cell, run.seed), []).append(run)
    runs, notes = [], []
    for (cell, seed), candidates in finished.items():
        # The path breaks ties, so that two copies with one time stamp give the same table everywhere.
        newest = max(candidates, key=lambda run: (run.written, run.folder.name))
        runs.append(newest)
        if len(candidates) > 1:
            others = ", ".join(sorted(run.folder.name for run in candidates if run is not newest))
            notes.append(
                f"{cell.task}, {cell.model}, {cell.method}, seed {seed}: {len(candidates)} finished runs "
                f"differ in settings that no run.json tells; the newest, {newest.folder.name}, is shown, "
                f"not {others}. A study for each setting keeps them apart."
            )
    return Study(name, outputs / name, tuple(runs), tuple(problems), tuple(notes))


def _with_settings(runs: Sequence[Run], problems: Sequence[Problem]) -> tuple[list[Run], list[Problem]]:
    """The same, their cells with the settings that tell runs of this study apart."""
    groups: dict[Cell, list[Mapping[str, str]]] = {}
    known = [(run.cell, run.settings) for run in runs] + [(p.cell, p.settings) for p in problems]
    for cell, settings in known:
        if settings:
            groups.setdefault(cell, []).append(settings)
    keys = telling_apart(groups.values())

    def apart(cell: Cell, settings: Mapping[str, str]) -> Cell:
        return cell._replace(settings=tuple((key, settings[key]) for key in keys if key in settings))

    return (
        [replace(run, cell=apart(run.cell, run.settings)) for run in runs],
        [replace(problem, cell=apart(problem.cell, problem.settings)) for problem in problems],
    )


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; none if there is no file.

    Lines that aren't JSON objects are left out, and a warning says so: a run that is killed leaves half a line.
    """
    odd: list[int] = []
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if isinstance(row, dict):
                    yield row
                elif line.strip():
                    odd.append(number)
    except FileNotFoundError:
        return
    if odd:
        log.warning("%s:%d: not a JSON object; %d such lines are left out", path, odd[0], len(odd))


def read_curve(run: Run, name: str) -> list[tuple[float, float]]:
    """(training examples seen, value) of one metric, in the order of training.

    A resumed run repeats the steps after its last checkpoint: the last line of a step counts.
    """
    by_step: dict[float, tuple[float, float]] = {}
    for row in read_jsonl(run.folder / "metrics.jsonl"):
        step, examples, value = (finite(row.get(key)) for key in ("step", "examples", name))
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
    settings: Mapping[str, str] = {}
    tags: Mapping[str, Any] = {}
    try:
        record = _read_object(folder / "run.json")
        settings, tags = flatten(_object(record, "identity")), _object(record, "tags")
        cell = _cell(tags, cell)
        if STAGES.keys() & settings.keys():
            config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
            settings = without_seeds(settings, config or {})
    except (OSError, yaml.YAMLError, _BrokenResultError, *MALFORMED):
        pass  # not there, or torn by a crash: then the path and the result tell what they can
    match = _RUN_NAME.fullmatch(folder.name)
    seed = int(match["seed"]) if match else None
    path = folder / "result.json"
    if not path.exists():
        steps = [row["step"] for row in read_jsonl(folder / "metrics.jsonl") if "step" in row]
        progress = f"last recorded step {steps[-1]}" if steps else "no recorded step"
        error = f"no result.json; {progress}"
        return Problem(folder, "unfinished", error, cell, seed, known=bool(tags), settings=settings)
    try:
        raw = _read_object(path)
        cell = _cell(raw, cell)
        seed = _seed(raw, seed)
        status = raw.get("status")
        if status == "finished":
            return _finished(folder, cell, seed, raw, settings)
    except (OSError, _BrokenResultError, *MALFORMED) as broken:
        return Problem(folder, "broken", f"result.json: {broken}", cell, seed, bool(tags), settings)
    if status in ("failed", "interrupted"):
        return Problem(folder, status, _one_line(raw.get("error")), cell, seed, True, settings)
    if status == "running":
        return Problem(folder, "unfinished", "result.json says running", cell, seed, True, settings)
    return Problem(folder, "broken", f"result.json: unknown status {status!r}", cell, seed, True, settings)


def _finished(
    folder: Path, cell: Cell, seed: int, raw: Mapping[str, Any], settings: Mapping[str, str]
) -> Run:
    score = _number(raw, "score")
    if score is None:
        raise _BrokenResultError("finished, but without a score")
    n, unparsable = _number(raw, "n"), _number(raw, "unparsable")
    if n is not None and n < 1:
        raise _BrokenResultError(f"n is {n:g}: nothing was evaluated")
    seconds = _object(raw, "seconds")
    spent = {part: _number(seconds, part) for part in seconds}
    worked = [spent[part] for part in ("fit", "evaluate") if spent.get(part) is not None]
    readings, others = read_metrics(_object(raw, "metrics"), cell.task, TASKS)
    headline = Reading(
        on=None,
        task=cell.task,
        metrics=readings.pop(None).metrics if None in readings else {},
        score=score,
        ci95=_interval(raw.get("ci95")),
        likelihood=_number(raw, "likelihood_score"),
        majority=_number(raw, "majority"),
        n=None if n is None else int(n),
        unparsable=None if unparsable is None else int(unparsable),
    )
    return Run(
        folder=folder,
        cell=cell,
        seed=seed,
        headline=headline,
        beside=tuple(readings.values()),
        others=others,
        settings=settings,
        fit_and_evaluate=_total(worked),
        seconds=_total(spent.values()),
        devices=int(_number(raw, "devices") or 1),
        samples_per_second=_number(raw, "samples_per_second"),
        peak_memory=_number(raw, "peak_memory_bytes"),
        written=(folder / "result.json").stat().st_mtime,
        commit=raw.get("commit") if isinstance(raw.get("commit"), str) else None,
        versions={str(name): str(version) for name, version in _object(raw, "versions").items()},
    )


def _read_object(path: Path) -> dict[str, Any]:
    raw = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(raw, dict):
        raise _BrokenResultError("not a JSON object")
    return raw


def _object(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise _BrokenResultError(f"{key} is {value!r}, not an object")
    return value


def _total(parts: Iterable[float | None]) -> float | None:
    present = [part for part in parts if part is not None]
    return sum(present) if present else None


def _cell(raw: Mapping[str, Any], path: Cell) -> Cell:
    """The cell as the result names it; where an old or failed result names nothing, as the path does."""
    for key in Cell._fields[:5]:
        if not isinstance(raw.get(key), (str, type(None))):
            raise _BrokenResultError(f"{key} is {raw[key]!r}, not a name")
    return Cell(
        raw.get("task") or path.task,
        raw.get("model") or path.model,
        raw.get("method") or path.method,
        raw.get("reward") or path.reward,
        raw.get("lora") or path.lora,
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
    ends = [finite(end) for end in raw] if isinstance(raw, list) else []
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        raise _BrokenResultError(f"ci95 is {raw!r}, not a pair of numbers")
    return ends[0], ends[1]


def _number(raw: Mapping[str, Any], key: str) -> float | None:
    """A finite number, or `None` where it is null or absent; anything else breaks the result."""
    value = raw.get(key)
    number = finite(value)
    if number is None and value is not None:
        raise _BrokenResultError(f"{key} is {value!r}, not a finite number")
    return number


def _one_line(error: Any) -> str:
    """The last line of an error: of a traceback, that is the one that says what happened."""
    lines = str(error or "").strip().splitlines()
    return lines[-1].strip() if lines else "no error recorded"
