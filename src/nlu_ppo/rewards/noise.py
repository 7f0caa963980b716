"""Rewards that err: some training examples are rewarded by a wrong label."""

from __future__ import annotations

import random
from dataclasses import replace

from nlu_ppo.config import RewardConfig
from nlu_ppo.errors import ConfigError
from nlu_ppo.tasks.record import Example, Kind, Task


def check_noise(config: RewardConfig, task: Task) -> None:
    """Raises ConfigError where `reward.noise` is asked for and the task has no other label to take."""
    if config.noise and (task.kind is not Kind.CLASSIFY or len(task.labels) < 2):
        raise ConfigError(
            f"reward.noise={config.noise:g} needs a task with labels, and the answers of {task.name} are none"
        )


def mislabelled(example: Example, task: Task, share: float, seed: int) -> Example:
    """The example, or with probability `share` the same with another label, each of the others as likely.

    What an example gets follows from seed and example alone, so that it errs alike in every epoch, and a run
    that goes on from a checkpoint sees the same.
    """
    draw = random.Random(f"{seed}/{example.task}/{example.id}")
    if draw.random() >= share:
        return example
    return replace(example, label=draw.choice([i for i in range(len(task.labels)) if i != example.label]))
