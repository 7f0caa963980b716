"""Rewards that reward models give: paper B's RLHF, RLLR and their mix. The models themselves: `nlu_ppo.preference`.

`scores` has what each model says of the completion, by the key that holds the model's settings.
"""

from __future__ import annotations

from collections.abc import Mapping

from nlu_ppo.config import RewardConfig
from nlu_ppo.errors import ConfigError
from nlu_ppo.rewards import reward
from nlu_ppo.tasks.record import Example, Label, Task

LABEL, RATIONALE = "label_model", "rationale_model"


@reward("label_sensitive", models=(LABEL,))
def label_sensitive(
    completion: str,
    answer: Label | None,
    example: Example,
    *,
    task: Task,
    config: RewardConfig,
    scores: Mapping[str, float],
) -> float:
    """What the model of label-sensitive pairs says (paper B's RLLR); of no legal answer at most `unparsable`."""
    return _legal(scores[LABEL], answer, config)


@reward("preference", models=(RATIONALE,))
def preference(
    completion: str,
    answer: Label | None,
    example: Example,
    *,
    task: Task,
    config: RewardConfig,
    scores: Mapping[str, float],
) -> float:
    """What the model of preferred analyses says (RLHF); of no legal answer at most `unparsable`."""
    return _legal(scores[RATIONALE], answer, config)


@reward("mixed", models=(LABEL, RATIONALE))
def mixed(
    completion: str,
    answer: Label | None,
    example: Example,
    *,
    task: Task,
    config: RewardConfig,
    scores: Mapping[str, float],
) -> float:
    """min(r_label, threshold) + r_rationale (paper B's RLLR mixed); of no legal answer at most `unparsable`."""
    assert config.threshold is not None
    return _legal(min(scores[LABEL], config.threshold) + scores[RATIONALE], answer, config)


def _legal(score: float, answer: Label | None, config: RewardConfig) -> float:
    """Reward models have seen whole answers only, and what they say of others can't be trusted."""
    return score if answer is not None else min(score, config.unparsable)


def _needs_threshold(task: Task, config: RewardConfig) -> None:
    if config.threshold is None:
        raise ConfigError("reward.name=mixed needs reward.threshold, the most that the label's model may add")


mixed.check_config = _needs_threshold  # type: ignore[attr-defined]
