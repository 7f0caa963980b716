"""Pairs of a better and a worse completion of one prompt, and where they come from. No torch.

Label-sensitive pairs (paper B, arXiv 2405.19763): the same input, and the answer with the right label above one with a
wrong label. Rationale-sensitive pairs: the same label, and the better analysis above the worse.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nlu_ppo.config import RewardModelConfig
from nlu_ppo.errors import ConfigError, DataError
from nlu_ppo.tasks.rationales import Rationales, read_records, with_analysis, without_open_tag
from nlu_ppo.tasks.record import CLOSE, Example, Kind, Task

LABELS, RATIONALES = "labels", "rationales"


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt, as they follow its open tag.

    Attributes:
        group: what pairs on the same input have in common.
        example: whose prompt it is; or, of a file's record,
        query: its instruction and its input.
    """

    group: str
    chosen: str
    rejected: str
    example: Example | None = None
    query: tuple[str, str] = ("", "")


def from_file(value: str) -> bool:
    """Whether `pairs` names a file."""
    return value not in (LABELS, RATIONALES)


def check_pairs(config: RewardModelConfig, task: Task, rationale: str | None, key: str = "method") -> None:
    """Raises ConfigError where a task has no such pairs, or a file isn't there.

    Args:
        rationale: `task.rationale`.
        key: under which the settings stand.
    """
    for name, value in (("pairs", config.pairs), ("held_out_pairs", config.held_out_pairs)):
        if value is not None and (name != "pairs" or from_file(value)) and not Path(value).is_file():
            there = " (or write labels or rationales)" if name == "pairs" else ""
            raise ConfigError(f"{key}.{name}={value}: there is no such file{there}")
    if config.pairs == LABELS and task.kind is not Kind.CLASSIFY:
        raise ConfigError(
            f"{key}.pairs=labels puts the right label above wrong ones, and the answers of {task.name} are no labels: "
            f"name a file of pairs, or take another reward"
        )
    if config.pairs == RATIONALES and rationale is None:
        raise ConfigError(
            f"{key}.pairs=rationales compares analyses, and the answers of {task.name} have none: set task.rationale, "
            f"or name a file of ranked answers"
        )


def label_pairs(
    task: Task, examples: Sequence[Example], wrong: str, seed: int, rationales: Rationales | None = None
) -> Iterator[Pair]:
    """The right answer above each wrong one (`wrong="all"`), or above one that is drawn.

    Args:
        rationales: gives every answer its analysis, one that argues for the wrong label where it is wrong.
    """
    for example in examples:
        assert example.label is not None
        for label in wrong_labels(task, example, wrong, seed):
            yield Pair(
                example.id,
                _completion(task, example, int(example.label), rationales),  # type: ignore[arg-type]
                _completion(task, example, label, rationales),
                example,
            )


def wrong_labels(task: Task, example: Example, wrong: str, seed: int) -> list[int]:
    """The labels that stand below the right one; arguments as of `label_pairs`."""
    others = [label for label in range(len(task.labels)) if label != example.label]
    return others if wrong == "all" else [random.Random(f"{seed}/{task.name}/{example.id}").choice(others)]


def rationale_pairs(
    task: Task, examples: Sequence[Example], seed: int, rationales: Rationales
) -> Iterator[Pair]:
    """The right answer with the example's own analysis above the same with that of another example.

    The other one is drawn among those of the same label, so that label and wording don't tell the two apart.
    """
    by_label: dict[object, list[Example]] = {}
    for example in examples:
        by_label.setdefault(example.label, []).append(example)
    for example in examples:
        assert example.label is not None
        word, own = task.verbalize(example.label), rationales(example, example.label)
        draw = random.Random(f"{seed}/{task.name}/{example.id}")
        mates = by_label[example.label]
        for _ in range(20):
            other = rationales(mate := draw.choice(mates), mate.label)  # type: ignore[arg-type]
            if other != own:
                yield Pair(example.id, with_analysis(word, own), with_analysis(word, other), example)
                break


def _completion(task: Task, example: Example, label: int, rationales: Rationales | None) -> str:
    word = task.verbalize(label)
    return word + CLOSE if rationales is None else with_analysis(word, rationales(example, label))


def file_pairs(path: Path) -> list[Pair]:
    """The pairs of a JSON file in paper B's format.

    Raises:
        DataError: it isn't one; the message names file, record and key.
    """
    return [
        Pair(
            record["instruction"] + "\n" + record["input"],
            without_open_tag(record["output"][0]),
            without_open_tag(record["output"][1]),
            query=(record["instruction"], record["input"]),
        )
        for record in read_records(path, pairs=True)
    ]


def hold_out(pairs: Sequence[Pair], inputs: int, path: Path) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and pairs held out: of so many inputs, at most a tenth, the same for every seed.

    Raises:
        DataError: there are too few inputs to hold one out.
    """
    groups = sorted({pair.group for pair in pairs})
    size = min(inputs, len(groups) // 10)
    if size == 0:
        raise DataError(
            f"{path}: its {len(groups)} inputs are too few to hold a tenth out: name another file with "
            f"method.held_out_pairs"
        )
    random.Random(0).shuffle(groups)
    held = set(groups[:size])
    return [p for p in pairs if p.group not in held], [p for p in pairs if p.group in held]
