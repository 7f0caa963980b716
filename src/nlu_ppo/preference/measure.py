"""How well a reward model tells pairs apart, and how far its confidence can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nlu_ppo.statistics import bootstrap_interval

BINS = 10  # of the calibration error, as Guo et al. (2017) and most after them


def pair_metrics(chosen: Sequence[float], rejected: Sequence[float]) -> dict[str, float]:
    """Fractions and means over pairs.

    * `pair_accuracy`: pairs whose better completion has the higher score; equal scores count half.
    * `pair_log_loss`: -log of the probability sigmoid(r_chosen - r_rejected) (Bradley and Terry), in nats. A model
      that knows nothing has log 2 = 0.693.
    * `calibration_error`: the model says of one of the two that it is the better with a confidence of 0.5 to 1.
      Pairs go into bins of equal width by that confidence, and the gaps between mean confidence and share of right
      ones are averaged by the bins' sizes (expected calibration error, Guo et al. 2017, arXiv 1706.04599).
    * `reward_gap`: r_chosen - r_rejected; `reward_chosen` and `reward_rejected`: the two means.
    """
    better, worse = np.asarray(chosen, dtype=float), np.asarray(rejected, dtype=float)
    gap = better - worse
    right = _right(gap)
    return {
        "pair_accuracy": float(right.mean()),
        "pair_log_loss": float(np.logaddexp(0.0, -gap).mean()),
        "calibration_error": _calibration_error(1 / (1 + np.exp(-np.abs(gap).clip(max=500))), right),
        "reward_gap": float(gap.mean()),
        "reward_chosen": float(better.mean()),
        "reward_rejected": float(worse.mean()),
    }


def accuracy_interval(
    chosen: Sequence[float], rejected: Sequence[float], groups: Sequence[str], samples: int
) -> tuple[float, float]:
    """95% bootstrap interval of the pair accuracy, percent; pairs on one input stay together.

    Args:
        groups: what each pair's input is called.
    """
    right = _right(np.asarray(chosen, dtype=float) - np.asarray(rejected, dtype=float))
    low, high = bootstrap_interval(lambda rows: float(right[rows].mean()), list(groups), samples=samples)
    return 100 * low, 100 * high


def _right(gap: np.ndarray) -> np.ndarray:
    return np.where(gap > 0, 1.0, np.where(gap == 0, 0.5, 0.0))


def _calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    places = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    error = 0.0
    for place in np.unique(places):
        held = places == place
        error += held.mean() * abs(confidence[held].mean() - right[held].mean())
    return float(error)
