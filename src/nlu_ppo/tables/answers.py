"""What a run answered, example by example, from its `predictions.jsonl`: for tests, intervals and matrices."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nlu_ppo.errors import MALFORMED, ConfigError, DataError, first_words
from nlu_ppo.statistics import bootstrap_interval
from nlu_ppo.tables.collect import Run, read_jsonl
from nlu_ppo.tables.readings import Reading
from nlu_ppo.tasks import Scorer, Task, get_task

FloatArray = npt.NDArray[np.float64]
Line = Mapping[str, Any]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Answers:
    """A run's answers to one set of examples.

    Attributes:
        ids: of the examples that have a grade, after their task's name where there are several.
        correct: shape (len(ids),), 0 to 1.
        references: per id the gold answer as a hash, to see whether two runs had the same data.
        groups: per id its group (`None`: one of its own); `None` for all where examples don't belong together.
        confusion: how often which gold answer was answered how (`None`: unparsable); of lists, nothing.
        intervals: by metric and for `score`, percent, as far as `result.json` leaves them open.
        n: examples, graded or not, and how many of them got no legal answer.
    """

    ids: tuple[str, ...]
    correct: FloatArray
    references: tuple[int, ...]
    groups: tuple[str | None, ...] | None
    confusion: Mapping[tuple[Any, Any], int] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    n: int = 0
    unparsable: int = 0


def read_answers(run: Run) -> dict[str | None, Answers]:
    """A run's answers by set, named as its readings are; none if there is no `predictions.jsonl`.

    The headline's are those to the first split; of a group of tasks, those to all of its members.
    """
    sets: dict[str | None, list[Line]] = {}
    names: dict[tuple[bool, str, str], str | None] = {}
    first: set[tuple[bool, str]] = set()
    for line in read_jsonl(run.folder / "predictions.jsonl"):
        if "id" not in line:
            continue
        also, task = bool(line.get("also")), line.get("task") or ""
        split = str(line["id"]).partition("-")[0]
        place = also, task, split
        if place not in names:
            names[place] = _set_name(task, split, is_first=(also, task) not in first)
            first.add((also, task))
        sets.setdefault(names[place], []).append(line)
        if task and not also:  # a member of a group: the headline is of all of them
            sets.setdefault(None, []).append(line)
    readings = {reading.on: reading for reading in run.readings}
    try:
        return {on: _answers(lines, readings.get(on)) for on, lines in sets.items()}
    except MALFORMED as error:
        odd = next(
            (line["id"] for lines in sets.values() for line in lines if not _is_sound(line)), "unknown"
        )
        raise DataError(
            f"{run.folder / 'predictions.jsonl'}, id {str(odd)[:80]}: not as a run writes it ({first_words(error)}): "
            f"remove the folder, and run it again"
        ) from error


def _is_sound(line: Line) -> bool:
    """Whether an answer alone can be read."""
    try:
        _answers([line], None)
    except MALFORMED:
        return False
    return True


def _set_name(task: str, split: str, is_first: bool) -> str | None:
    """As `nlu_ppo.results` prefixes metrics: a task's first split goes by the task alone."""
    if is_first:
        return task or None
    return f"{task}/{split}" if task else split


def _answers(lines: Sequence[Line], reading: Reading | None) -> Answers:
    graded = [line for line in lines if isinstance(line.get("correct"), (bool, int, float))]
    grouped = any(line.get("group") is not None for line in graded)
    return Answers(
        # interned, since all runs of a task have the same ids; tasks of a group number theirs alike
        ids=tuple(sys.intern(f"{line.get('task', '')}/{line['id']}") for line in graded),
        correct=np.array([float(line["correct"]) for line in graded]),
        references=tuple(hash(_canonical(line.get("reference"))) for line in graded),
        groups=tuple(_group(line) for line in graded) if grouped else None,
        confusion=_confusion(lines),
        intervals=_intervals(lines, reading) if reading is not None else {},
        n=len(lines),
        unparsable=sum(line.get("label") is None for line in lines),
    )


def _group(line: Line) -> str | None:
    """Tasks of a group of tasks may call groups of examples alike, too."""
    group = line.get("group")
    return None if group is None else f"{line.get('task', '')}/{_canonical(group)}"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _confusion(lines: Iterable[Line]) -> Counter[tuple[Any, Any]]:
    return Counter(
        (line["reference"], line.get("label"))
        for line in lines
        if isinstance(line.get("reference"), (str, int, float))
        and isinstance(line.get("label"), (str, int, float, type(None)))
    )


def _intervals(lines: Sequence[Line], reading: Reading) -> dict[str, Interval]:
    """Bootstrap intervals of all metrics, where `result.json` has none for them.

    It has that of the score, which with one metric is that metric's.
    """
    if reading.ci95 is not None and len(reading.metrics) < 2:
        return dict.fromkeys(("score", *reading.metrics), reading.ci95)
    task = known_task(reading.task)
    if task is None or any(line.get("reference") is None for line in lines):
        return {}
    groups = [_frozen(line.get("group")) for line in lines]
    labels, references = ([_frozen(line.get(key)) for line in lines] for key in ("label", "reference"))
    try:
        scorer = Scorer(task, labels, references, groups)
    except (TypeError, ValueError):
        return {}  # answers that aren't of this task: the table shows that there is no interval
    drawn: list[dict[str, float]] = []

    def score(*indices: Any) -> float:
        drawn.append(scorer.metrics(*indices))
        return drawn[-1]["score"]

    grouped = groups[0] is not None
    bootstrap_interval(score, groups if grouped else len(lines), fresh_groups=grouped)
    ends = {name: np.quantile([100 * d[name] for d in drawn], [0.025, 0.975]) for name in drawn[0]}
    found = {name: (float(low), float(high)) for name, (low, high) in ends.items()}
    return found | ({} if reading.ci95 is None else {"score": reading.ci95})


def known_task(name: str) -> Task | None:
    """The record of a task; `None` for a group, or a user's task whose file is no longer there."""
    try:
        return get_task(name)
    except ConfigError:
        return None


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
