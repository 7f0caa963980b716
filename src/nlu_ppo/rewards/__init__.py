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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from nlu_ppo.config import RewardConfig
from nlu_ppo.errors import ConfigError
from nlu_ppo.rewards.noise import check_noise
from nlu_ppo.tasks.record import Example, Label, Task

COMPOSITE = "composite"

BoundReward = Callable[..., float]


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
R = TypeVar("R", bound=Callable[..., float])


def reward(name: str, models: tuple[str, ...] = ()) -> Callable[[R], R]:
    """Registers a reward function under `name`.

    Args:
        models: keys of the config that hold the settings of reward models; the function then also takes
            `scores`, what each of them says of the completion.
    """

    def register(function: R) -> R:
        function.models = models  # type: ignore[attr-defined]
        REWARDS[name] = function
        return function

    return register


def _load_siblings() -> None:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__name__}.{module.name}")


def find_reward(name: str) -> Reward:
    """The reward function of that name.

    Raises:
        ConfigError: there is none.
    """
    _load_siblings()
    if ".py:" in name:
        return _from_file(name)
    if name not in REWARDS:
        raise ConfigError(
            f"reward.name={name} is no reward: there are {', '.join(sorted(REWARDS))}, "
            f"and path/to/file.py:function"
        )
    return REWARDS[name]


def parts_of(config: RewardConfig) -> dict[str, float]:
    """The rewards that a composite sums up, and their weights; a weight of 0 leaves a reward out."""
    return {name: weight for name, weight in config.parts.items() if weight}


def needed_models(config: RewardConfig, name: str | None = None) -> tuple[str, ...]:
    """Keys of the config that hold the reward models which the reward asks; of a composite, those of its parts."""
    name = name or config.name
    if name == COMPOSITE:
        names = dict.fromkeys(key for part in parts_of(config) for key in needed_models(config, part))
        return tuple(names)
    return tuple(getattr(find_reward(name), "models", ()))


def get_reward(config: RewardConfig, task: Task) -> BoundReward:
    """The reward of the config, bound to it and to the task; a value that is not finite is an error.

    What it returns takes completion, answer and example, and where reward models are asked (`needed_models`) what
    each of them says.

    Raises:
        ConfigError: there is no such reward, or it makes no sense for the task or with the other settings.
    """
    function = find_reward(config.name)
    _check(config, task)
    asked = needed_models(config)

    def bound(
        completion: str, answer: Label | None, example: Example, scores: Mapping[str, float] | None = None
    ) -> float:
        told = {"scores": scores or {}} if asked else {}
        value = float(function(completion, answer, example, task=task, config=config, **told))
        if not math.isfinite(value):
            raise ValueError(f"reward {config.name} gave {value} for example {example.id}: {completion!r}")
        return value

    return bound


def _check(config: RewardConfig, task: Task) -> None:
    names = [config.name]
    if config.name == COMPOSITE:
        names = list(parts_of(config))
        if not names:
            raise ConfigError("reward.name=composite needs reward.parts, for instance {label_agreement: 1}")
        if COMPOSITE in names:
            raise ConfigError("reward.parts: composite can't be a part of itself: name its parts")
    for name in names:
        function = find_reward(name)
        check = getattr(function, "check", None)
        if check is not None:
            check(task)
        check_config = getattr(function, "check_config", None)
        if check_config is not None:
            check_config(task, config)
    check_noise(config, task)
    if config.noise and all(needed_models(config, name) for name in names):
        raise ConfigError(
            f"reward.noise={config.noise:g} has no effect on reward.name={config.name}, which never looks at the gold "
            f"label: set it to 0, or put wrong labels among the reward model's pairs"
        )
    for key in needed_models(config):
        model = getattr(config, key)
        if model is None:
            raise ConfigError(
                f"reward.name={config.name} asks a reward model, and reward.{key} has no settings: take a choice of "
                f"conf/reward that has them (reward=label_sensitive, preference, mixed, composite), or put "
                f"`/method/reward_model@{key}` into the defaults list of your own"
            )


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
