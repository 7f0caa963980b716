"""A weighted sum of other rewards."""

from __future__ import annotations

from collections.abc import Mapping

from nlu_ppo.config import RewardConfig
from nlu_ppo.rewards import find_reward, needed_models, parts_of, reward
from nlu_ppo.tasks.record import Example, Label, Task


@reward("composite")
def composite(
    completion: str,
    answer: Label | None,
    example: Example,
    *,
    task: Task,
    config: RewardConfig,
    scores: Mapping[str, float] | None = None,
) -> float:
    """The rewards in `parts`, each times its weight. All read the same keys of the config."""
    total = 0.0
    for name, weight in parts_of(config).items():
        told = {"scores": scores} if needed_models(config, name) else {}
        part = find_reward(name)
        total += weight * part(completion, answer, example, task=task, config=config, **told)
    return total
