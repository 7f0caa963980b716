"""Rewards: plain functions of (completion, answer, example), chosen by `reward.name`.

To add one, put a file beside this one (or anywhere: `reward.name=path/to/file.py:function`) with

    from nlu_ppo.rewards import reward

    @reward("brevity")
    def brevity(completion, answer, example, *, task, config):
        return 1.0 if len(completion) < 20 else 0.0
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import pkgutil
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from nlu_ppo.config import RewardConfig
from nlu_ppo.errors import ConfigError, RewardError, UserError
from nlu_ppo.rewards.noise import check_noise
from nlu_ppo.tasks.record import Example, Label, Task

COMPOSITE = "composite"
LARGEST = 3.4e38  # what float32 holds, in which training computes

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
    """The reward of the config, bound to it and to the task; what is no finite number is a RewardError.

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
        return _number(
            config,
            example,
            completion,
            function(completion, answer, example, task=task, config=config, **told),
        )

    return bound


def _number(config: RewardConfig, example: Example, completion: str, value: object) -> float:
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last: a tensor of several numbers
        number = math.nan
    if not abs(number) <= LARGEST:
        raise RewardError(
            f"reward.name={config.name} gave {repr(value)[:80]} for example {example.id}, completion "
            f"{completion[:80]!r}: a reward is one finite number. Mend the function, and start again"
        )
    return number


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
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"reward.name={name}: the file can't be loaded: {_told(error, path)}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ConfigError(f"reward.name={name}: {path} defines no function {attribute}")
    return _guarded(function, name, path)


def _guarded(function: Callable[..., float], name: str, path: str) -> Reward:
    """A user's function, whose errors are told as what they are: not ours."""

    @functools.wraps(function)
    def guarded(completion: str, answer: Label | None, example: Example, **told: object) -> float:
        try:
            return function(completion, answer, example, **told)
        except UserError:
            raise
        except Exception as error:
            raise RewardError(
                f"reward.name={name} fails for example {example.id}, completion {completion[:80]!r}: "
                f"{_told(error, path)}. Mend the function, and start again (it is called with completion, "
                f"answer, example, task= and config=)"
            ) from error

    return guarded


def _told(error: Exception, path: str) -> str:
    """An error in a user's file, with the last line of it that was at work."""
    lines = [step.lineno for step in traceback.extract_tb(error.__traceback__) if step.filename == path]
    where = f"{path}:{lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {error}"
