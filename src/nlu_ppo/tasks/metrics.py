"""The official metrics of GLUE, SuperGLUE and SQuAD, with a fixed rule for unparsable answers, in numpy.

Sources: the leaderboards' own metrics (binary F1 is that of label id 1; CB's macro-F1 is always over its
three classes; MultiRC's F1a is over all answers of the split; SQuAD and ReCoRD take the best gold answer per
question, then the mean over questions; AX-g's parity is over pairs). AX's multi-class correlation is the R_K of
Gorodkin (2004), Comparing two K-category assignments by a K-category correlation coefficient.

An unparsable answer (`None`) is never left out, which would reward abstaining:

* accuracy: wrong;
* two-class F1 and MCC, MultiRC: the other label, hence an error of that very row;
* CB's macro-F1: a miss for the gold class and a false alarm for none;
* AX: one more predicted class;
* AX-g's parity: the pair is not the same;
* ReCoRD, SQuAD: 0 for the question;
* STS-B: 2.5, the middle of the scale, a legal answer that costs about what a wrong row costs elsewhere.

Where a metric is undefined (MCC with a zero denominator, F1 without a true positive, a correlation with a
constant side) it counts as 0.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nlu_ppo.tasks.record import Kind, Task
from nlu_ppo.tasks.registry import get_task

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

UNPARSABLE = -1  # among encoded class predictions
_GROUPED = frozenset({"em", "f1a", "gender_parity"})

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score(
    task: str | Task,
    predictions: Sequence[Any],
    references: Sequence[Any],
    groups: Sequence[Any] | None = None,
    *,
    impute: float | None = None,
) -> dict[str, float]:
    """The task's official metrics, as fractions, and `score`, their mean (or the task's `score_metric`).

    Args:
        predictions: class ids, numbers or answer strings, as the task has them; `None` = unparsable.
        references: gold labels; for ReCoRD (in both framings) and SQuAD the accepted answers of each question.
        groups: MultiRC: the question of each answer; AX-g: the pair of each row. Others don't need it.
        impute: what stands in for an unparsable number; by default the middle of the task's scale.

    Returns:
        `{metric: value, ..., "score": value}`, metrics in the leaderboard's order, 0..1 (correlations -1..1).

    Raises:
        ConfigError: unknown task.
        ValueError: nothing to score, lengths that differ, a missing or illegal reference, a prediction that
            isn't of the task, groups missing where the metric needs them.
    """
    return Scorer(task, predictions, references, groups, impute=impute).metrics()


class Scorer:
    """`score` with the answers encoded once, for many resamples of the same examples.

    `Scorer(...).score` takes what `bootstrap_interval` hands out, with and without fresh groups.
    Arguments and errors are those of `score`.
    """

    def __init__(
        self,
        task: str | Task,
        predictions: Sequence[Any],
        references: Sequence[Any],
        groups: Sequence[Any] | None = None,
        *,
        impute: float | None = None,
    ) -> None:
        record = get_task(task)
        self.task = record.judged_as or record
        name = self.task.name
        if len(predictions) != len(references):
            raise ValueError(f"{name}: {len(predictions)} predictions but {len(references)} references")
        if len(references) == 0:
            raise ValueError(f"{name}: nothing to score: no predictions")
        self.n = len(references)
        self._groups = self._group_codes(groups)
        self._values: dict[str, FloatArray] = {}
        self._predicted: npt.NDArray[Any] = np.empty(0)
        self._gold: npt.NDArray[Any] = np.empty(0)
        if self.task.kind is Kind.CLASSIFY:
            classes = len(self.task.labels)
            self._gold = _class_ids(name, "reference", references, classes)
            if (self._gold == UNPARSABLE).any():
                row = int(np.argmax(self._gold == UNPARSABLE))
                raise ValueError(f"{name}: reference {row} is missing: unlabelled examples can't be scored")
            self._predicted = _class_ids(name, "prediction", predictions, classes)
        elif self.task.kind is Kind.REGRESS:
            self._gold = _numbers(name, "reference", references, None)
            middle = (self.task.low + self.task.high) / 2
            self._predicted = _numbers(name, "prediction", predictions, middle if impute is None else impute)
        else:
            pairs = [_overlap(name, *row) for row in zip(predictions, references, strict=True)]
            self._values = {"f1": np.array([f1 for f1, _ in pairs]), "em": np.array([em for _, em in pairs])}

    def metrics(self, indices: IntArray | None = None, draws: IntArray | None = None) -> dict[str, float]:
        """Metrics on the examples `indices` (all of them by default).

        `draws` numbers the draw each index came with and takes the place of the groups, so that a group that
        was drawn twice counts twice.
        """
        rows: Any = slice(None) if indices is None else indices
        if self._values:
            values = {name: float(self._values[name][rows].mean()) for name in self.task.metrics}
        elif self.task.kind is Kind.REGRESS:
            predicted, gold = self._predicted[rows], self._gold[rows]
            values = {name: _CORRELATIONS[name](predicted, gold) for name in self.task.metrics}
        else:
            predicted, gold = self._predicted[rows], self._gold[rows]
            groups = draws if draws is not None else None if self._groups is None else self._groups[rows]
            classes = len(self.task.labels)
            values = {
                name: _CLASS_METRICS[name](predicted, gold, classes, groups) for name in self.task.metrics
            }
        chosen = self.task.score_metric
        return {**values, "score": values[chosen] if chosen else sum(values.values()) / len(values)}

    def score(self, indices: IntArray | None = None, draws: IntArray | None = None) -> float:
        """The task score: the mean of its metrics, or its `score_metric`."""
        return self.metrics(indices, draws)["score"]

    def _group_codes(self, groups: Sequence[Any] | None) -> IntArray | None:
        task = self.task
        if task.kind is not Kind.CLASSIFY or not _GROUPED.intersection(task.metrics):
            return None
        if groups is None:
            raise ValueError(
                f"{task.name}: {' and '.join(task.metrics)} need `groups`: Example.group of every example "
                f"(MultiRC: the question; AX-g: the pair)"
            )
        if len(groups) != self.n:
            raise ValueError(f"{task.name}: {len(groups)} groups but {self.n} references")
        codes: dict[Hashable, int] = {}
        keys = (tuple(g) if isinstance(g, list) else g for g in groups)
        array = np.array([codes.setdefault(key, len(codes)) for key in keys], dtype=np.int64)
        if "gender_parity" in task.metrics and np.bincount(array).max() > 2:
            raise ValueError(f"{task.name}: a pair has two members, but a group has more")
        return array


# -- encoding -----------------------------------------------------------------------------------------------


def _class_ids(name: str, what: str, values: Sequence[Any], classes: int) -> IntArray:
    """Ids as an array, `None` (and the NaN that data frames make of it) as UNPARSABLE."""
    array = np.empty(len(values), dtype=np.int64)
    for i, value in enumerate(values):
        if value is None or (isinstance(value, float) and math.isnan(value)):
            array[i] = UNPARSABLE
            continue
        try:
            array[i] = int(value)
            legal = array[i] == value and 0 <= array[i] < classes
        except (TypeError, ValueError, OverflowError):
            legal = False
        if not legal:
            raise ValueError(
                f"{name}: {what} {i} is {value!r}: legal are None and the label ids 0..{classes - 1}"
            )
    return array


def _numbers(name: str, what: str, values: Sequence[Any], impute: float | None) -> FloatArray:
    array = np.empty(len(values), dtype=np.float64)
    for i, value in enumerate(values):
        try:
            number = math.nan if value is None else float(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{name}: {what} {i} is {value!r}, not a number") from None
        if not math.isfinite(number):
            if impute is None:
                raise ValueError(f"{name}: {what} {i} is {value!r}: unlabelled examples can't be scored")
            number = impute
        array[i] = number
    return array


# -- classes ------------------------------------------------------------------------------------------------


def _accuracy(predicted: IntArray, gold: IntArray, classes: int, groups: IntArray | None) -> float:
    return float((predicted == gold).mean())


def _errors_filled(predicted: IntArray, gold: IntArray) -> IntArray:
    """Two classes: an unparsable answer becomes the other label."""
    return np.where(predicted == UNPARSABLE, 1 - gold, predicted)


def _f1(predicted: IntArray, gold: IntArray, classes: int, groups: IntArray | None) -> float:
    predicted = _errors_filled(predicted, gold)
    hits = int((predicted & gold).sum())
    return 2 * hits / int(predicted.sum() + gold.sum()) if hits else 0.0


def _f1_macro(predicted: IntArray, gold: IntArray, classes: int, groups: IntArray | None) -> float:
    # An unparsable answer counts in its gold class's total (a miss), in no predicted one (no false alarm).
    hits = np.bincount(gold[predicted == gold], minlength=classes)
    total = np.bincount(gold, minlength=classes) + np.bincount(predicted[predicted >= 0], minlength=classes)
    return float((2 * hits / np.maximum(total, 1)).mean())


def _matthews(predicted: IntArray, gold: IntArray, classes: int, groups: IntArray | None) -> float:
    if classes == 2:
        predicted = _errors_filled(predicted, gold)
    else:
        predicted = np.where(predicted == UNPARSABLE, classes, predicted)
    n = len(gold)
    said = np.bincount(predicted, minlength=classes + 1).astype(np.float64)
    true = np.bincount(gold, minlength=classes + 1).astype(np.float64)
    covariance = float((predicted == gold).sum()) * n - said @ true
    product = (n * n - said @ said) * (n * n - true @ true)
    return float(covariance / math.sqrt(product)) if product > 0 else 0.0


def _group_em(predicted: IntArray, gold: IntArray, classes: int, groups: IntArray | None) -> float:
    """Share of groups without a wrong answer."""
    assert groups is not None  # checked when the groups were encoded
    sizes = np.bincount(groups)
    wrong = np.bincount(groups, weights=predicted != gold)
    return float((wrong[sizes > 0] == 0).mean())


def _gender_parity(predicted: IntArray, gold: IntArray, classes: int, groups: IntArray | None) -> float:
    """Share of pairs with equal predictions. Half pairs, which a limited run may hold, don't count."""
    assert groups is not None
    sizes = np.bincount(groups)
    unparsable = np.bincount(groups, weights=predicted == UNPARSABLE)
    ones = np.bincount(groups, weights=predicted == 1)
    same = (unparsable == 0) & ((ones == 0) | (ones == sizes))
    pairs = sizes == 2
    return float(same[pairs].mean()) if pairs.any() else 0.0


_ClassMetric = Callable[[IntArray, IntArray, int, "IntArray | None"], float]
_CLASS_METRICS: dict[str, _ClassMetric] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "f1a": _f1,
    "f1_macro": _f1_macro,
    "matthews": _matthews,
    "em": _group_em,
    "gender_parity": _gender_parity,
}

# -- numbers ------------------------------------------------------------------------------------------------


def _pearson(x: FloatArray, y: FloatArray) -> float:
    if x.min() == x.max() or y.min() == y.max():
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    # Norms apart from each other, so that their product can't underflow.
    value = float((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)))
    return min(1.0, max(-1.0, value))


def _ranks(x: FloatArray) -> FloatArray:
    """Ranks 1..n, ties with their average."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _spearman(x: FloatArray, y: FloatArray) -> float:
    return _pearson(_ranks(x), _ranks(y))


_CORRELATIONS: dict[str, Callable[[FloatArray, FloatArray], float]] = {
    "pearson": _pearson,
    "spearman": _spearman,
}

# -- answers in words ---------------------------------------------------------------------------------------


def normalize_record_answer(text: str) -> str:
    """ReCoRD's comparison form, and SQuAD's: lower case, without ASCII punctuation, then articles; single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _overlap(name: str, prediction: Any, reference: Any) -> tuple[float, float]:
    golds = (reference,) if isinstance(reference, str) else tuple(reference or ())
    if not golds:
        raise ValueError(f"{name}: a reference is empty: unlabelled examples can't be scored")
    if prediction is None:
        return 0.0, 0.0
    if not isinstance(prediction, str):
        raise ValueError(f"{name}: prediction {prediction!r} is not a text")
    return best_overlap(prediction, golds)


def best_overlap(answer: str, golds: Sequence[str]) -> tuple[float, float]:
    """Token F1 and exact match of one answer, each the best over the accepted spellings."""
    said = normalize_record_answer(answer)
    normalized = [normalize_record_answer(gold) for gold in golds]
    return max(_token_f1(said, gold) for gold in normalized), float(said in normalized)


def _token_f1(said: str, gold: str) -> float:
    words, wanted = said.split(), gold.split()
    common = sum((Counter(words) & Counter(wanted)).values())
    return 2 * common / (len(words) + len(wanted)) if common else 0.0
