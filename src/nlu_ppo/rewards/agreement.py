"""Agreement with the gold label: paper A's rewards."""

from __future__ import annotations

from nlu_ppo.config import RewardConfig
from nlu_ppo.errors import ConfigError
from nlu_ppo.rewards import reward
from nlu_ppo.tasks.answers import is_correct
from nlu_ppo.tasks.record import Example, Kind, Label, Task


@reward("label_agreement")
def label_agreement(
    completion: str, answer: Label | None, example: Example, *, task: Task, config: RewardConfig
) -> float:
    """`correct`, `wrong` or `unparsable`. Where the answer is a number, agreement has degrees: `graded`."""
    if task.kind is Kind.REGRESS:
        return graded(completion, answer, example, task=task, config=config)
    if answer is None:
        return config.unparsable
    return config.correct if is_correct(task, answer, example.label) else config.wrong


@reward("graded")
def graded(
    completion: str, answer: Label | None, example: Example, *, task: Task, config: RewardConfig
) -> float:
    """2.5 - |answer - gold| on a scale 0 to 5 (paper A), so 2.5 at best, clipped at -2.5; unparsable -2.5.

    Clipping is ours: the released code pays -97 for an answer of "100".
    """
    if answer is None:
        return -2.5
    span = task.high - task.low
    distance = abs(float(answer) - float(example.label)) / span * 5.0  # type: ignore[arg-type]
    return max(2.5 - distance, -2.5)


def _numbers_only(task: Task) -> None:
    if task.kind is not Kind.REGRESS:
        raise ConfigError(
            f"reward=graded needs a task whose answers are numbers, and {task.name} has labels: "
            f"use reward=label_agreement"
        )


graded.check = _numbers_only  # type: ignore[attr-defined]
