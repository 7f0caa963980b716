"""Uncertainty of scores: bootstrap intervals, paired tests, mean and deviation over seeds.

Needs numpy only, so that evaluation, tables and tests can all import it at no cost.

Sources:
    Efron & Tibshirani (1993), An Introduction to the Bootstrap, ch. 13: the percentile interval.
    Cameron, Gelbach & Miller (2008), Bootstrap-Based Improvements for Inference with Clustered Errors: whole
        groups are resampled where examples of a group depend on each other.
    McNemar (1947), Note on the sampling error of the difference between correlated proportions.
    Dror et al. (2018), The Hitchhiker's Guide to Testing Statistical Significance in NLP, section 3: paired
        permutation (sign-flip) tests for two systems on the same examples.
    Holm (1979), A simple sequentially rejective multiple test procedure: correction for the number of tests.
    Phipson & Smyth (2010), Permutation p-values should never be zero: the `+ 1` of the sampled p-value.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# Numbers of one block of random draws: keeps memory flat (8 MB) whatever the size of the split.
_BLOCK = 1_000_000
# Beyond so many states, while it is built, the exact sign-flip distribution is sampled instead.
_EXACT_STATES = 4_000_000
# Sums that differ by less are the same number, reached by another order of additions.
_SAME = 1e-9


@dataclass(frozen=True)
class PairedTest:
    """What `paired_test` found.

    Attributes:
        difference: mean of a minus mean of b, in the unit of the inputs (fractions for 0/1 values).
        p_value: two-sided, in (0, 1].
        method: "mcnemar" (exact, 0/1 values, no groups), "permutation" (exact), or "permutation (sampled)".
        n: examples compared.
        better: units (examples, or groups where grouped) on which a is ahead.
        worse: units on which b is ahead.
    """

    difference: float
    p_value: float
    method: str
    n: int
    better: int
    worse: int


def bootstrap_interval(
    score_fn: Callable[..., float],
    items: int | Sequence[Hashable],
    *,
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    fresh_groups: bool = False,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a score over examples (Efron & Tibshirani 1993, ch. 13).

    Args:
        score_fn: takes an int64 array of example indices (with repetitions), returns the score on them.
        items: the number of examples; or the group of each example, and then whole groups are drawn (`None`
            is a group of its own, so that ungrouped examples can stand among grouped ones).
        samples: resamples.
        seed: of the draws; the same seed gives the same interval.
        confidence: mass between the two ends.
        fresh_groups: call `score_fn(indices, draws)` with a second int64 array that numbers the draw each
            index came with. A metric that groups by itself (exact match per question, parity per pair) must
            group by `draws`: by the original ids, a group drawn twice would melt into one, and the interval
            would come out too narrow.

    Returns:
        (low, high) in the unit of `score_fn`. If all examples score the same, both ends are that score: the
        bootstrap knows nothing beyond its sample, so read such an interval with the number of examples.
        Resamples on which the score is undefined (NaN) are left out.

    Raises:
        ValueError: no examples, `samples < 1`, `confidence` outside (0, 1), or a score that is undefined on
            all resamples and on the examples themselves.
    """
    members = _members(items)
    _check(samples, confidence)
    scores = np.empty(samples)
    for i, drawn in enumerate(row for block in _draws(len(members), samples, seed) for row in block):
        indices = np.concatenate([members[g] for g in drawn]) if _is_grouped(items) else drawn
        if fresh_groups:
            draws = np.repeat(np.arange(len(drawn)), [len(members[g]) for g in drawn])
            scores[i] = score_fn(indices, draws)
        else:
            scores[i] = score_fn(indices)
    if np.isnan(scores).all():
        everything = np.concatenate(members)
        owner = np.repeat(np.arange(len(members)), [len(m) for m in members])
        whole = float(score_fn(everything, owner) if fresh_groups else score_fn(everything))
        if math.isnan(whole):
            raise ValueError("the score is undefined (NaN) on these examples, so it has no interval")
        return whole, whole
    return _percentiles(scores[~np.isnan(scores)], confidence)


def accuracy_interval(
    correct: Sequence[float] | npt.NDArray[Any],
    groups: Sequence[Hashable] | None = None,
    *,
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """`bootstrap_interval` of a mean, without a Python call per resample.

    Has the draws of `bootstrap_interval(lambda i: correct[i].mean(), ...)`, hence gives the same numbers.

    Args:
        correct: shape (n,), a value per example (0/1, or a fraction of credit).
        groups: the group of each example; see `bootstrap_interval`.
        samples: resamples.
        seed: of the draws.
        confidence: mass between the two ends.

    Returns:
        (low, high) in the unit of `correct`.

    Raises:
        ValueError: no examples, NaN among them, lengths that differ, `samples` or `confidence` out of range.
    """
    values = _values(correct)
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"{len(values)} values but {len(groups)} groups")
    _check(samples, confidence)
    members = _members(len(values) if groups is None else groups)
    sums = np.array([values[m].sum() for m in members]) if groups is not None else values
    sizes = np.array([len(m) for m in members], dtype=np.float64)
    blocks = (
        sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1) for drawn in _draws(len(sums), samples, seed)
    )
    return _percentiles(np.concatenate(list(blocks)), confidence)


def paired_test(
    correct_a: Sequence[float] | npt.NDArray[Any],
    correct_b: Sequence[float] | npt.NDArray[Any],
    groups: Sequence[Hashable] | None = None,
    *,
    samples: int = 10_000,
    seed: int = 0,
) -> PairedTest:
    """Two-sided paired test: do two methods differ in their mean on the same examples?

    Under the null hypothesis the two methods are exchangeable on every example, so each difference could as
    well have the other sign (sign-flip permutation test; Dror et al. 2018). For 0/1 values the flipped sum is
    `2 * Binomial(discordant, 1/2) - discordant`, which makes it the exact test of McNemar (1947). Values with
    few distinct differences (means over seeds) have a small lattice of sums, and the test stays exact; else
    `samples` sign flips are drawn and p = (1 + hits) / (1 + samples) (Phipson & Smyth 2010). Differences are
    summed within a group first, and a group flips as a whole.

    Args:
        correct_a: shape (n,), the value of each example under method a.
        correct_b: shape (n,), the same examples in the same order under method b.
        groups: the group of each example, if examples of one group depend on each other.
        samples: sign flips, where they are sampled.
        seed: of the sign flips.

    Returns:
        The difference of means (a minus b) and its p-value. Without any differing example, p is 1.

    Raises:
        ValueError: no examples, NaN among them, or lengths that differ.
    """
    a, b = _values(correct_a), _values(correct_b)
    if len(a) != len(b) or (groups is not None and len(groups) != len(a)):
        sizes = f"{len(a)} and {len(b)} values" + ("" if groups is None else f", {len(groups)} groups")
        raise ValueError(f"a paired test needs the same examples on both sides, got {sizes}")
    _check(samples, 0.5)
    units = a - b if groups is None else np.array([(a - b)[m].sum() for m in _members(groups)])
    units = np.where(np.abs(units) < _SAME, 0.0, units)
    magnitudes, where = _merge(np.abs(units[units != 0]))
    counts = np.bincount(where, minlength=len(magnitudes))
    p_value = _exact_sign_flip(magnitudes, counts, abs(units.sum()))
    method = "permutation"
    if p_value is None:
        p_value, method = (
            _sampled_sign_flip(magnitudes, counts, abs(units.sum()), samples, seed),
            "permutation (sampled)",
        )
    elif groups is None and np.isin(np.concatenate([a, b]), (0.0, 1.0)).all():
        method = "mcnemar"
    return PairedTest(
        difference=float(a.mean() - b.mean()),
        p_value=p_value,
        method=method,
        n=len(a),
        better=int((units > 0).sum()),
        worse=int((units < 0).sum()),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): rejecting where one is at most a keeps the chance of any
    false rejection among all tests at most a, whatever the tests depend on.

    The i-th smallest of m is multiplied by m - i + 1, is at least as large as those before it, and at most 1.

    Raises:
        ValueError: a p-value outside of 0 to 1.
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values lie between 0 and 1, got {list(p_values)}")
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, (len(p_values) - rank) * p_values[place])
        corrected[place] = min(1.0, highest)
    return corrected


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample deviation (divisor n - 1); the deviation is `None` for a single value.

    Raises:
        ValueError: no values: a mean of nothing is missing, not 0.
    """
    if len(values) == 0:
        raise ValueError("no values, so no mean")
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None


def _is_grouped(items: int | Sequence[Hashable]) -> bool:
    return not isinstance(items, (int, np.integer))


def _members(items: int | Sequence[Hashable]) -> list[IntArray]:
    """Example indices of each group, groups in order of first appearance."""
    if isinstance(items, (int, np.integer)):
        count = int(items)
        groups: list[IntArray] = list(np.arange(count, dtype=np.int64).reshape(count, 1)) if count > 0 else []
    else:
        found: dict[Hashable, list[int]] = {}
        for i, group in enumerate(items):
            # The marker is of a type that no caller's group id has, so it can't collide with one.
            found.setdefault((_members, i) if group is None else group, []).append(i)
        groups = [np.array(m, dtype=np.int64) for m in found.values()]
    if not groups:
        raise ValueError("no examples, so nothing to resample")
    return groups


def _values(values: Sequence[float] | npt.NDArray[Any]) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"expected a non-empty list of values, got shape {array.shape}")
    if np.isnan(array).any():
        raise ValueError("NaN among the values: leave out examples without a value, or score them 0")
    return array


def _check(samples: int, confidence: float) -> None:
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")


def _draws(units: int, samples: int, seed: int) -> Iterator[IntArray]:
    """Blocks of shape (rows, units), `samples` rows in all: unit indices drawn with replacement."""
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // units)
    for start in range(0, samples, rows):
        yield rng.integers(0, units, size=(min(rows, samples - start), units))


def _percentiles(scores: FloatArray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _binomial_pmf(n: int) -> FloatArray:
    """P(k heads in n fair tosses) for k = 0..n; by logarithms, since 2**n overflows from n = 1024 on."""
    logs = np.cumsum(np.log(np.concatenate([[1.0], np.arange(1, n + 1)])))  # log k!
    return np.exp(logs[n] - logs - logs[::-1] - n * math.log(2))


def _exact_sign_flip(magnitudes: FloatArray, counts: IntArray, observed: float) -> float | None:
    """P(|sum of randomly signed magnitudes| >= observed); `None` if the distribution has too many states.

    Units of equal magnitude are taken together: of `count` of them, Binomial(count, 1/2) keep a plus.
    """
    sums: FloatArray = np.zeros(1)
    weights: FloatArray = np.ones(1)
    for magnitude, count in zip(magnitudes, counts.tolist(), strict=True):
        if len(sums) * (count + 1) > _EXACT_STATES:
            return None
        steps = magnitude * (2 * np.arange(count + 1) - count)
        sums, where = _merge(np.add.outer(sums, steps).ravel())
        products = np.multiply.outer(weights, _binomial_pmf(count)).ravel()
        weights = np.bincount(where, weights=products).astype(np.float64)
    p_value = float(weights[np.abs(sums) >= observed - _SAME].sum())
    return min(1.0, max(p_value, sys.float_info.min))  # an exact p is never 0, but may underflow


def _sampled_sign_flip(
    magnitudes: FloatArray, counts: IntArray, observed: float, samples: int, seed: int
) -> float:
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // len(magnitudes))
    hits = 0
    for start in range(0, samples, rows):
        heads = rng.binomial(counts, 0.5, size=(min(rows, samples - start), len(counts)))
        sums = (2 * heads - counts) @ magnitudes
        hits += int((np.abs(sums) >= observed - _SAME).sum())
    return (1 + hits) / (1 + samples)


def _merge(values: FloatArray) -> tuple[FloatArray, IntArray]:
    """Distinct values, ascending, and the place of each input among them.

    Compares rounded values but keeps unrounded ones, so that rounding errors don't add up over many sums.
    """
    _, first, where = np.unique(np.round(values / _SAME), return_index=True, return_inverse=True)
    return values[first], where.ravel()
