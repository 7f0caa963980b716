"""Rewards: paper A's two sets of values, the graded one, and a user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from nlu_ppo.config import RewardConfig
from nlu_ppo.errors import ConfigError, RewardError
from nlu_ppo.rewards import REWARDS, get_reward
from nlu_ppo.tasks import get_task
from nlu_ppo.tasks.record import Example

CODE = RewardConfig(name="label_agreement", correct=1, wrong=-1, unparsable=-3)
TEXT = RewardConfig(name="label_agreement", correct=1, wrong=0, unparsable=-1)
POSITIVE = Example(id="train-0", fields={}, label=1)
SIMILAR = Example(id="train-1", fields={}, label=4.2)


@pytest.mark.parametrize(("config", "expected"), [(CODE, (1, -1, -3)), (TEXT, (1, 0, -1))])
def test_label_agreement(config: RewardConfig, expected: tuple[float, ...]) -> None:
    reward = get_reward(config, get_task("sst2"))
    assert (reward("", 1, POSITIVE), reward("", 0, POSITIVE), reward("", None, POSITIVE)) == expected


@pytest.mark.parametrize(
    ("answer", "expected"), [(4.2, 2.5), (3.2, 1.5), (5.0, 1.7), (0.0, -1.7), (None, -2.5), (100.0, -2.5)]
)
@pytest.mark.parametrize("name", ["graded", "label_agreement"])
def test_graded_reward_of_a_number(answer: float | None, expected: float, name: str) -> None:
    reward = get_reward(RewardConfig(name=name), get_task("stsb"))
    assert reward("", answer, SIMILAR) == pytest.approx(expected)


def test_chosen_entities_are_compared_as_the_metric_does() -> None:
    reward = get_reward(CODE, get_task("record"))
    example = Example(
        id="train-0", fields={}, label=("The Guardian", "Guardian"), candidates=("The Guardian", "BBC")
    )
    assert reward("", "the guardian.", example) == 1
    assert reward("", "BBC", example) == -1


def test_graded_needs_numbers() -> None:
    with pytest.raises(ConfigError, match=r"graded.*sst2.*label_agreement"):
        get_reward(RewardConfig(name="graded"), get_task("sst2"))


def test_unknown_reward_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"agreemnt.*label_agreement"):
        get_reward(RewardConfig(name="agreemnt"), get_task("sst2"))


def test_a_users_reward_from_one_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def short(completion, answer, example, *, task, config):\n    return -float(len(completion))\n"
    )
    reward = get_reward(RewardConfig(name=f"{file}:short"), get_task("sst2"))
    assert reward("abc", 1, POSITIVE) == -3
    for name, message in ((f"{file}:long", "no function long"), (f"{tmp_path}/other.py:short", "no file")):
        with pytest.raises(ConfigError, match=message):
            get_reward(RewardConfig(name=name), get_task("sst2"))


def test_a_reward_that_is_not_a_number_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def broken(completion, answer, example, *, task, config):\n    return float('nan')\n")
    reward = get_reward(RewardConfig(name=f"{file}:broken"), get_task("sst2"))
    with pytest.raises(RewardError, match="gave nan for example train-0"):
        reward("abc", 1, POSITIVE)


def test_registered_names() -> None:
    get_reward(CODE, get_task("sst2"))
    assert {"label_agreement", "graded"} <= REWARDS.keys()
