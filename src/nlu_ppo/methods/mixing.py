"""Which task's examples come how often, when one model learns several tasks at once."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")  # examples, or what stands for them


def shares(sizes: Mapping[str, int], mixing: str, temperature: float) -> dict[str, float]:
    """The share of each task among the training examples; they sum to 1.

    `proportional` follows the sizes, `equal` ignores them, and `temperature` lies between: shares go with
    size^(1/temperature), as for multilingual BERT and T5 (arXiv 1910.10683, section 3.5.2).
    """
    exponent = {"proportional": 1.0, "equal": 0.0, "temperature": 1.0 / temperature}[mixing]
    weights = {name: size**exponent for name, size in sizes.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def quotas(sizes: Mapping[str, int], mixing: str, temperature: float) -> dict[str, int]:
    """Examples of each task in one epoch. An epoch is as long as all tasks together, whatever the mixing."""
    total = sum(sizes.values())
    exact = {name: total * share for name, share in shares(sizes, mixing, temperature).items()}
    counts = {name: int(value) for name, value in exact.items()}
    # The largest remainders get what rounding down has left over; the order of tasks breaks ties.
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def epoch(parts: Sequence[Sequence[T]], mixing: str, temperature: float, seed: int, number: int) -> list[T]:
    """Epoch `number` (from 0) over the tasks' training examples, in the order that follows from the seed.

    A task whose quota exceeds its examples repeats them, each as often as any other of it, but for one; of a
    task that has more than its quota, successive epochs take successive shares.
    """
    sizes = {str(i): len(part) for i, part in enumerate(parts)}
    counts = quotas(sizes, mixing, temperature)
    drawn: list[T] = []
    for i, part in enumerate(parts):
        drawn += _stretch(part, counts[str(i)], seed, number)
    random.Random(f"{seed}/{number}").shuffle(drawn)
    return drawn


def _stretch(examples: Sequence[T], count: int, seed: int, number: int) -> list[T]:
    """`count` examples from an endless sequence of passes, beginning where the epoch before has ended."""
    if count == len(examples):  # nothing to choose: the order comes from the caller's shuffle
        return list(examples)
    found: list[T] = []
    start = number * count
    for turn in range(start // len(examples), (start + count - 1) // len(examples) + 1):
        order = list(examples)
        random.Random(f"{seed}/pass {turn}").shuffle(order)
        first = max(start - turn * len(examples), 0)
        found += order[first : start + count - turn * len(examples)]
    return found
