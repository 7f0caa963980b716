"""Which settings tell the runs of a study apart, beyond task, model, method, reward and adapter."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Settings = Mapping[str, str]

# What a run's identity holds beside its settings, or what has a column of its own.
_OTHER = frozenset({"seed", "task.name", "task.members", "method.name", "reward.name"})
# Runs that a run builds on stand in its identity by their keys, and those differ from seed to seed. In config.yaml:
STAGES = {
    "start": "method.start",
    "reward.label_model": "reward.label_model",
    "reward.rationale_model": "reward.rationale_model",
}
_LONGEST = 24  # characters of a value in a column; what is longer shows as a hash


def flatten(identity: Mapping[str, Any]) -> dict[str, str]:
    """A run's identity (`run.json`) as dotted keys and words: `{"method.clip_range": "0.2", ...}`.

    A hash of contents is cut to 8 digits, and so is the hash of a value too long for a column.
    """
    return {key: as_word(value) for key, value in _leaves(identity) if key not in _OTHER}


def without_seeds(settings: Settings, config: Mapping[str, Any]) -> dict[str, str]:
    """Settings in which a run that this one builds on stands by its own settings, so that seeds share a row.

    Args:
        settings: as `flatten` gives them.
        config: what config.yaml holds.
    """
    found = dict(settings)
    for name, place in STAGES.items():
        node: Any = config
        for step in place.split("."):
            node = node.get(step) if isinstance(node, Mapping) else None
        if name in found and node is not None:
            found[name] = hashlib.sha256(json.dumps(node, sort_keys=True).encode()).hexdigest()[:8]
    return found


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def as_word(value: Any) -> str:
    """A setting as a column shows it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    word = (
        ",".join(map(as_word, value))
        if isinstance(value, Sequence) and not isinstance(value, str)
        else str(value)
    )
    if word.startswith("sha256:"):
        return word.removeprefix("sha256:")[:8]
    return word if len(word) <= _LONGEST else hashlib.sha256(word.encode()).hexdigest()[:8]


def telling_apart(groups: Iterable[Sequence[Settings]]) -> tuple[str, ...]:
    """The settings that have to be shown, so that no two different runs of a group look alike.

    Args:
        groups: the settings of runs that share task, model, method, reward and adapter. What differs from
            group to group only (the learning rates of two methods) needs no column.

    Settings with two or more values in some group. One that only some runs have (the target of a controller
    that others don't use) is left out where the rest already tells the runs apart.
    """
    chosen: set[str] = set()
    groups = [list(group) for group in groups]
    for group in groups:
        chosen |= {key for key in _keys(group) if len({s[key] for s in group if key in s}) > 1}
    for group in groups:
        for key in sorted(_keys(group)):
            if any(key not in s for s in group) and not _apart(group, chosen):
                chosen.add(key)
    return tuple(sorted(chosen))


def _keys(group: Iterable[Settings]) -> set[str]:
    return {key for settings in group for key in settings}


def _apart(group: Sequence[Settings], chosen: set[str]) -> bool:
    """Whether runs that look alike by `chosen` are alike in everything."""
    whole: dict[tuple[str | None, ...], Settings] = {}
    ordered = sorted(chosen)
    return all(whole.setdefault(tuple(map(s.get, ordered)), s) == s for s in group)
