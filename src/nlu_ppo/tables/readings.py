"""Takes the metrics of a `result.json` apart: what was scored on which set of examples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Beside the metrics of a set that the run was not trained for stand these; no metric has such a name.
_COUNTS = ("n", "unparsable", "shortened")
_ENDS = ("ci95_low", "ci95_high")
_LIKELIHOOD = "likelihood"


@dataclass(frozen=True)
class Reading:
    """What a run scored on one set of examples.

    Attributes:
        on: which set, as `result.json` prefixes its metrics: `None` for the headline, else a further split
            (`validation_mismatched`), a task (`financial_news`) or both (`mnli/validation_mismatched`).
        task: the task that the set belongs to; of a headline over several tasks, the name of the group.
        split: the further split; `None` for a task's first.
        metrics: official metrics by name, 0 to 100, in the leaderboard's order, without the score.
        score: their mean, or the task's one metric for it; 0 to 100, as are `likelihood`, `majority`, `ci95`.
    """

    on: str | None
    task: str
    split: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
    score: float | None = None
    ci95: tuple[float, float] | None = None
    likelihood: float | None = None
    majority: float | None = None
    n: int | None = None
    unparsable: int | None = None


def read_metrics(
    raw: Mapping[str, Any], task: str, tasks: Iterable[str]
) -> tuple[dict[str | None, Reading], dict[str, float]]:
    """Readings by set (the headline's metrics under `None`), and numbers that are of no set.

    Args:
        raw: `metrics` of `result.json`, fractions: `accuracy`, `likelihood/score`, `cb/f1_macro`,
            `validation_mismatched/accuracy`, `mnli/validation_mismatched/score`, `perplexity/wikitext`.
        task: the run's own.
        tasks: names that are known to be tasks, so that `cb/...` is told from a split's `test/...`. A set
            with an interval of its own is a task's, too: one that the run was not trained for.

    Numbers of no set come as they are: perplexities under `perplexity/<text>`, averages in percent.
    """
    known = set(tasks) | {key.rpartition("/")[0].partition("/")[0] for key in raw if key.endswith(_ENDS[0])}
    values: dict[str | None, dict[str, float]] = {}
    others: dict[str, float] = {}
    for key, value in raw.items():
        number = finite(value)
        *prefix, name = key.split("/")
        if number is None or prefix[:1] == ["submission"]:
            continue
        if prefix[:1] == ["perplexity"]:
            others[key] = number
        elif not prefix and name.endswith("_average"):
            others[key] = 100 * number
        else:
            likely = _LIKELIHOOD in prefix
            on = "/".join(part for part in prefix if part != _LIKELIHOOD) or None
            values.setdefault(on, {})[f"{_LIKELIHOOD}/{name}" if likely else name] = number
    return {on: _reading(on, found, task, known) for on, found in values.items()}, others


def _reading(on: str | None, found: Mapping[str, float], task: str, known: set[str]) -> Reading:
    first, _, rest = (on or "").partition("/")
    if on is None or first not in known:
        named, split = task, on
    else:
        named, split = first, rest or None
    ends = [found.get(end) for end in _ENDS]
    metrics = {
        name: 100 * value
        for name, value in found.items()
        if not name.startswith(f"{_LIKELIHOOD}/") and name not in (*_COUNTS, *_ENDS, "score", "majority")
    }
    return Reading(
        on=on,
        task=named,
        split=split,
        metrics=metrics,
        score=_percent(found.get("score")),
        ci95=None if ends[0] is None or ends[1] is None else (100 * ends[0], 100 * ends[1]),
        likelihood=_percent(found.get(f"{_LIKELIHOOD}/score")),
        majority=_percent(found.get("majority")),
        n=_whole(found.get("n")),
        unparsable=_whole(found.get("unparsable")),
    )


def finite(value: Any) -> float | None:
    """`value` if it is a finite number, else `None`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number of more than 308 digits
        return None


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
