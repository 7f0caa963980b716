"""Few-shot: demonstrations before every query, the same for all, so that their cache is shared too."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from nlu_ppo.config import FewShotConfig
from nlu_ppo.errors import DataError
from nlu_ppo.methods.setting import Part, Setting, training_examples
from nlu_ppo.tasks.record import Example, Kind


def fit(setting: Setting) -> Setting:
    method = setting.config.method
    assert isinstance(method, FewShotConfig)
    return replace(setting, parts=tuple(_with_demonstrations(p, method, setting) for p in setting.parts))


def _with_demonstrations(part: Part, method: FewShotConfig, setting: Setting) -> Part:
    seed, kind = setting.config.seed, part.task.kind
    shown = demonstrations(training_examples(part), method.k, method.choice, seed, kind)
    return replace(part, prompter=part.prompter.with_demonstrations(shown))


def demonstrations(
    train: Sequence[Example], k: int, choice: str, seed: int, kind: Kind = Kind.CLASSIFY
) -> list[Example]:
    """`k` training examples to show.

    `first` takes the first k of the file, whatever the seed; `random` draws k; `balanced` draws them so that
    the counts of any two labels differ by one at most, as far as the labels reach (numbers: by thirds).

    Raises:
        DataError: there are fewer than `k` examples.
    """
    if len(train) < k:
        raise DataError(
            f"method.k={k} demonstrations are wanted and the train split has {len(train)} examples"
        )
    if choice == "first":
        return list(train[:k])
    generator = random.Random(seed)
    rows = list(range(len(train)))
    generator.shuffle(rows)
    if choice == "random":
        return [train[row] for row in rows[:k]]
    piles: dict[object, list[int]] = defaultdict(list)
    labels = [example.label for example in train]
    numbers = sorted(map(float, labels)) if kind is Kind.REGRESS else []  # type: ignore[arg-type]
    for row in rows:
        if numbers:
            third, two_thirds = numbers[len(numbers) // 3], numbers[2 * len(numbers) // 3]
            value = float(labels[row])  # type: ignore[arg-type]
            piles[(value >= third) + (value >= two_thirds)].append(row)
        else:
            piles[labels[row]].append(row)
    order = sorted(piles, key=str)
    generator.shuffle(order)
    picked: list[int] = []
    while len(picked) < k:
        for label in order:
            if piles[label] and len(picked) < k:
                picked.append(piles[label].pop())
    generator.shuffle(picked)  # or the order of labels would be a pattern to copy
    return [train[row] for row in picked]
