"""Notices, in the metrics of the last steps, what a person would want to know before the night is over.

It only speaks: what it says changes no result. After a resume it begins with an empty memory.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean, stdev

from nlu_ppo.tasks.record import Label

WINDOW = 20  # steps that a judgement is made of
NO_ANSWERS = 0.9  # of the completions unparsable
ONE_LABEL = 0.95  # of the answers: the policy hardly says anything else ...
UNLESS_GOLD = 0.8  # ... though the gold labels do
NEGATIVE_KL = -0.1  # nats per completion, mean of a window: sampling noise stays well above
USELESS_VALUES = -1.0  # explained variance: errors twice as large as those of a constant
NO_GAP = 2.0  # standard errors: what right answers earn more than wrong ones could be chance
RISE, FALL = 1.0, 0.1  # of the reward, in deviations of one batch's mean; of the accuracy, as a share


class Watch:
    """Remembers the last steps; `update` returns what is new to say, each thing once until it is over.

    Args:
        words: the label words of the task, for naming them; empty where answers are no classes.
    """

    def __init__(self, words: Sequence[str] = ()) -> None:
        self._words = words
        self._answers: deque[list[Label | None]] = deque(maxlen=WINDOW)
        self._golds: deque[list[Label | None]] = deque(maxlen=WINDOW)
        self._values: deque[Mapping[str, float]] = deque(maxlen=WINDOW)
        self._first: list[Mapping[str, float]] = []
        self._said: set[str] = set()

    def update(
        self, values: Mapping[str, float], answers: Sequence[Label | None], golds: Sequence[Label | None]
    ) -> list[str]:
        """Takes one step's metrics, parsed answers and gold labels; returns the warnings that are new."""
        self._values.append(values)
        self._answers.append(list(answers))
        self._golds.append(list(golds))
        if len(self._first) < WINDOW:
            self._first.append(values)
        if len(self._values) < WINDOW:
            return []
        found = {
            "format": self._no_answers(),
            "collapse": self._collapse(),
            "kl": self._negative_kl(),
            "values": self._useless_values(),
            "indifference": self._reward_of_form_only(),
            "hacking": self._reward_without_accuracy(),
        }
        now = {name for name, said in found.items() if said}
        fresh = [said for name, said in found.items() if said and name not in self._said]
        self._said = now
        return fresh

    def _mean(self, name: str) -> float:
        return fmean(values[name] for values in self._values)

    def _no_answers(self) -> str | None:
        unparsable = self._mean("train/unparsable")
        if unparsable < NO_ANSWERS:
            return None
        return (
            f"{100 * unparsable:.0f}% of the last {WINDOW} steps' completions are no legal answer, so there is little "
            f"to learn from: start from a model that follows the format (SFT), or lower method.learning_rate if it did"
        )

    def _collapse(self) -> str | None:
        if not self._words:
            return None
        answered = Counter(a for batch in self._answers for a in batch if a is not None)
        wanted = Counter(g for batch in self._golds for g in batch)
        if not answered:
            return None
        label, count = answered.most_common(1)[0]
        share, gold = count / answered.total(), wanted.most_common(1)[0][1] / wanted.total()
        if share < ONE_LABEL or gold > UNLESS_GOLD:
            return None
        return (
            f"{100 * share:.0f}% of the last {WINDOW} steps' answers are {self._words[int(label)]!r}: the policy "  # type: ignore[arg-type]
            f"has collapsed to one label; raise method.kl_coef or method.entropy_coef, or lower "
            f"method.learning_rate"
        )

    def _negative_kl(self) -> str | None:
        kl = self._mean("ppo/kl")
        if kl > NEGATIVE_KL:
            return None
        return (
            f"the KL from the reference was {kl:.2f} nats in the mean of the last {WINDOW} steps, and it can't be "
            f"negative: completions are not drawn from the distribution that is trained (temperature, filters)"
        )

    def _useless_values(self) -> str | None:
        variance = self._mean("ppo/explained_variance")
        if variance > USELESS_VALUES:
            return None
        return (
            f"the value head explains {variance:.1f} of the returns' variance (mean of the last {WINDOW} steps): "
            f"it is worse than a constant; lower method.learning_rate or method.value_coef"
        )

    def _reward_of_form_only(self) -> str | None:
        gaps = [values["train/reward_gap"] for values in self._values if "train/reward_gap" in values]
        if len(gaps) < WINDOW / 2:
            return None
        if fmean(gaps) > NO_GAP * stdev(gaps) / math.sqrt(len(gaps)):
            return None
        return (
            f"right answers earned {fmean(gaps):+.2f} more than wrong ones of legal form in the last {WINDOW} steps: "
            f"the reward pays for the form of an answer, so that the policy need not learn the task"
        )

    def _reward_without_accuracy(self) -> str | None:
        rewards = [values["train/reward"] for values in self._first]
        # From the differences of neighbours, which a trend within these steps hardly touches (von Neumann 1941).
        noise = math.sqrt(fmean((b - a) ** 2 for a, b in pairwise(rewards)) / 2)
        rise = self._mean("train/reward") - fmean(rewards)
        fall = fmean(values["train/accuracy"] for values in self._first) - self._mean("train/accuracy")
        if rise < RISE * max(noise, 1e-6) or fall < FALL:
            return None
        return (
            f"the reward has risen by {rise:.2f} since the start while {100 * fall:.0f}% fewer answers are right: "
            f"the reward pays for something else than right answers"
        )
