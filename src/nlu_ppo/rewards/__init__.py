"""Rewards: plain functions of (completion, answer, example), chosen by `reward.name`.

To add one, put a file beside this one (or anywhere: `reward.name=path/to/file.py:function`) with

    from nlu_ppo.rewards import reward

    @reward("brevity")
    def brevity(completion, answer, example, *, task, config):
        return 1.0 if len(completion) < 20 else 0.0
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from nlu_ppo.config import RewardConfig
from nlu_ppo.errors import ConfigError
from nlu_ppo.rewards.noise import check_noise
from nlu_ppo.tasks.record import Example, Label, Task


class Reward(Protocol):
    """What a reward function looks like."""

    def __call__(
        self, completion: str, answer: Label | None, example: Example, *, task: Task, config: RewardConfig
    ) -> float:
        """The reward of one completion.

        Args:
            completion: the text that the policy wrote after the open tag.
            answer: its parsed answer, `None` if it is none of the legal ones.
            example: the example, gold label included.
        """


REWARDS: dict[str, Reward] = {}


def reward(name: str) -> Callable[[Reward], Reward]:
    """Registers a reward function under `name`."""

    def register(function: Reward) -> Reward:
        REWARDS[name] = function
        return function

    return register


def _load_siblings() -> None:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__name__}.{module.name}")


def get_reward(config: RewardConfig, task: Task) -> Callable[[str, Label | None, Example], float]:
    """The reward of the config, bound to it and to the task; a value that is not finite is an error.

    Raises:
        ConfigError: there is no such reward, or it makes no sense for the task.
    """
    _load_siblings()
    if ".py:" in config.name:
        function = _from_file(config.name)
    elif config.name in REWARDS:
        function = REWARDS[config.name]
    else:
        raise ConfigError(
            f"reward.name={config.name} is no reward: there are {', '.join(sorted(REWARDS))}, "
            f"and path/to/file.py:function"
        )
    check = getattr(function, "check", None)
    if check is not None:
        check(task)
    check_noise(config, task)

    def bound(completion: str, answer: Label | None, example: Example) -> float:
        value = float(function(completion, answer, example, task=task, config=config))
        if not math.isfinite(value):
            raise ValueError(f"reward {config.name} gave {value} for example {example.id}: {completion!r}")
        return value

    return bound


def _from_file(name: str) -> Reward:
    path, _, attribute = name.rpartition(":")
    spec = importlib.util.spec_from_file_location("nlu_ppo_user_reward", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ConfigError(f"reward.name={name}: there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ConfigError(f"reward.name={name}: {path} defines no function {attribute}")
    return function
