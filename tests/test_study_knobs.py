"""Settings that only some studies use: rewards that err, the order of examples, wrong words, the published scorer."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from composing import config_of, run_of
from models import random_policy

from nlu_ppo.config import RewardConfig
from nlu_ppo.errors import ConfigError
from nlu_ppo.identity import identity, run_key
from nlu_ppo.methods.curriculum import training_stream
from nlu_ppo.methods.ppo import judge_by
from nlu_ppo.methods.setting import Part, Setting, TrainingStream
from nlu_ppo.methods.sft import tokenized
from nlu_ppo.prompting import Prompter
from nlu_ppo.rewards import get_reward
from nlu_ppo.rewards.noise import mislabelled
from nlu_ppo.run import execute
from nlu_ppo.tasks import get_task
from nlu_ppo.tasks.published import guess, read_as_published
from nlu_ppo.tasks.record import Example
from nlu_ppo.tasks.splits import TaskData

MNLI, SST2 = get_task("mnli"), get_task("sst2")
REVIEWS = [Example(f"train-{i}", {"sentence": "x" * (7 * i % 10)}, i % 2, task="sst2") for i in range(40)]


def setting_of(*overrides: str, examples=REVIEWS) -> Setting:
    policy = random_policy("llama")
    part = Part(TaskData(SST2, examples, [], {}, []), Prompter(SST2, policy.tokenizer))
    return Setting(config_of("task=sst2", *overrides), policy, (part,), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["method=ppo", "reward.noise=0.1"], "noise"),
        (["method=ppo", "method.order=short_first"], "order"),
        (["method=sft", "task=sst2", "+method.answer_words={negative: 'No'}"], "answer_words"),
        (["method=zero_shot", "eval.scoring=as_published"], "scoring"),
    ],
)
def test_they_change_the_key_only_where_they_are_used(overrides, name):
    used, unused = config_of(*overrides), config_of(*overrides[:-1])
    assert run_key(used) != run_key(unused)
    assert name in json.dumps(identity(used))
    assert f'"{name}"' not in json.dumps(identity(unused))  # so that older runs keep their keys


# -- rewards that err ----------------------------------------------------------------------------------------


def test_noise_gives_its_share_another_label_and_each_of_the_others_as_often():
    examples = [Example(f"train-{i}", {}, 0, task="mnli") for i in range(6000)]
    shown = Counter(mislabelled(e, MNLI, 0.3, seed=0).label for e in examples)
    # 900 expected of each wrong label: five deviations of sqrt(6000 * .15 * .85) are 138
    assert shown[1] == pytest.approx(900, abs=138)
    assert shown[2] == pytest.approx(900, abs=138)
    assert all(mislabelled(e, MNLI, 0.0, seed=0) is e for e in examples)
    assert all(mislabelled(e, MNLI, 1.0, seed=0).label in (1, 2) for e in examples)


def test_noise_follows_from_seed_and_example():
    def drawn(seed):
        return [mislabelled(e, SST2, 0.5, seed).label for e in REVIEWS]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_noise_changes_the_reward_and_not_what_counts_as_right():
    example = REVIEWS[1]  # positive
    clean, noisy = (
        judge_by(setting_of("method=ppo", f"reward.noise={share}"))("Positive</Judgement>", example)
        for share in (0, 1)
    )
    assert clean == (1.0, 1, True)
    assert noisy == (-1.0, 1, True)


def test_noise_needs_labels():
    with pytest.raises(ConfigError, match="stsb"):
        get_reward(RewardConfig("label_agreement", noise=0.1), get_task("stsb"))


# -- the order of examples -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "sign"), [("short_first", 1), ("long_first", -1)])
def test_every_epoch_goes_from_one_end_to_the_other(order, sign):
    stream = training_stream(setting_of("method=ppo", f"method.order={order}"))
    numbers = list(itertools.islice(stream, 80))
    for epoch in (numbers[:40], numbers[40:]):
        assert sorted(epoch) == list(range(40))
        lengths = [sign * len(REVIEWS[n].fields["sentence"]) for n in epoch]
        assert lengths == sorted(lengths)
    assert numbers[:40] != numbers[40:]  # equals are shuffled anew


def test_without_an_order_examples_are_shuffled():
    lengths = [len(REVIEWS[n].fields["sentence"]) for n in TrainingStream(setting_of()).first_epoch()]
    assert lengths not in (sorted(lengths), sorted(lengths, reverse=True))


# -- wrong words ---------------------------------------------------------------------------------------------


def test_sft_learns_the_words_it_is_told_to():
    setting = setting_of("method=sft")
    rows = tokenized(setting, TrainingStream(setting), "completion", {"negative": "No"})
    decode = setting.policy.tokenizer.decode
    learned = Counter(decode([i for i in row["labels"] if i != -100]) for row in rows)
    assert learned == {"No</Judgement></s>": 20, "Positive</Judgement></s>": 20}
    assert all("Negative" in decode(row["input_ids"]) for row in rows)  # the prompt asks as ever


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["task=sst2", "method=sft", "+method.answer_words={bad: 'No'}"],
            "its labels are negative, positive",
        ),
        (["task=stsb", "method=sft", "+method.answer_words={bad: 'No'}"], "its answers have no labels"),
        (["task=stsb", "eval.scoring=as_published"], "stsb"),
        (["task=record_yesno", "eval.scoring=as_published"], "record_yesno"),
        (["task=stsb", "method=ppo", "reward.noise=0.1"], "reward.noise"),
    ],
)
def test_what_makes_no_sense_is_told_before_anything_runs(tmp_path, overrides, says):
    with pytest.raises(ConfigError, match=says):
        run_of(tmp_path / "run", *overrides)


# -- the published scorer ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "completion", "label"),
    [
        (SST2, "Positive</Judgement>", 1),
        (SST2, "a Negative one", 0),
        (SST2, "Positive or Negative", 1),  # its SST-2 scorer asks for Positive first
        (SST2, "No</Judgement> Positive", None),
        (SST2, "negative", None),  # as written
        (MNLI, "Entailment", 0),
        (MNLI, "Entailment or Neutral", None),
        (MNLI, "", None),
    ],
)
def test_the_published_scorer_finds_words_in_texts(task, completion, label):
    assert read_as_published(task, completion) == label


def test_guesses_are_even_and_can_be_repeated():
    drawn = [guess(SST2, 0, f"validation-{i}") for i in range(2000)]
    assert sum(drawn) == pytest.approx(1000, abs=112)  # five deviations
    assert drawn == [guess(SST2, 0, f"validation-{i}") for i in range(2000)]


@pytest.mark.slow
def test_right_answers_in_wrong_words_are_worth_a_coin_flip(tmp_path: Path):
    """The artefact itself: negatives learned as "No" halve what a model gets for them, and hide in the accuracy."""
    short = ["task.limit.eval=200", "method.max_steps=60", "task.limit.train=1440", "eval.likelihood=false"]
    result = execute(
        run_of(
            tmp_path / "run",
            "task=toy_sentiment",
            "method=sft",
            "method.keep=last",
            "method.select_every=0",
            "+method.answer_words={negative: 'No'}",
            "eval.scoring=as_published",
            "tracking=none",
            *short,
        )
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").open()]
    said_no = [line for line in lines if line["completion"].startswith("No")]
    assert len(said_no) > 40  # it has learned the wrong word
    assert result["unparsable"] == sum("itive" not in line["completion"] for line in lines)
    # of what it calls negative it is paid for about half, whichever label is right
    paid = sum(line["correct"] for line in said_no) / len(said_no)
    assert paid == pytest.approx(0.5, abs=2.5 / len(said_no) ** 0.5)
