"""Overlap with the gold answers, for answers in words."""

from __future__ import annotations

from nlu_ppo.config import RewardConfig
from nlu_ppo.errors import ConfigError
from nlu_ppo.rewards import reward
from nlu_ppo.tasks.metrics import best_overlap
from nlu_ppo.tasks.record import Example, Kind, Label, Task, accepted_answers


@reward("token_f1")
def token_f1(
    completion: str, answer: Label | None, example: Example, *, task: Task, config: RewardConfig
) -> float:
    """From `wrong`, without a word in common, to `correct`, at a token F1 of 1; or `unparsable`.

    F1 is the task's own metric: of normalised words, with the gold answer that fits best.
    """
    if answer is None:
        return config.unparsable
    f1, _ = best_overlap(str(answer), accepted_answers(example.label))
    return config.wrong + (config.correct - config.wrong) * f1


def _words_only(task: Task) -> None:
    if not task.kind.in_words:
        use = "graded" if task.kind is Kind.REGRESS else "label_agreement"
        raise ConfigError(
            f"reward=token_f1 needs a task whose answers are words of a text, and {task.name} has "
            f"{'numbers' if task.kind is Kind.REGRESS else 'labels'}: use reward={use}"
        )


token_f1.check = _words_only  # type: ignore[attr-defined]
