"""Reward models' pairs, losses and measures, against numbers worked out by hand and against transformers' own head."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification

from nlu_ppo.config import LoraConfig, ModelConfig, RewardModelConfig
from nlu_ppo.errors import ConfigError, DataError
from nlu_ppo.methods.reward_model import pair_loss, tokenized
from nlu_ppo.preference.loading import new_reward_model
from nlu_ppo.preference.losses import divergence_loss, first_divergence, last_scores, last_token_loss
from nlu_ppo.preference.measure import accuracy_interval, pair_metrics
from nlu_ppo.preference.pairs import check_pairs, file_pairs, hold_out, label_pairs, rationale_pairs
from nlu_ppo.prompting import Prompter
from nlu_ppo.tasks import get_task
from nlu_ppo.tasks.rationales import load_rationales, with_analysis
from nlu_ppo.tasks.record import Example
from nlu_ppo.tasks.toy import generate, toy_rationale

SST2, MNLI = get_task("sst2"), get_task("mnli")


def minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x))


# -- losses --------------------------------------------------------------------------------------------------


def test_the_last_token_is_the_last_real_one():
    scores = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert last_scores(scores, mask).tolist() == [2.0, 6.0]


def test_the_loss_at_the_last_token_by_hand():
    chosen, rejected = torch.tensor([1.0, -0.5]), torch.tensor([0.0, 1.5])
    wanted = (minus_log_sigmoid(1.0) + minus_log_sigmoid(-2.0)) / 2
    assert last_token_loss(chosen, rejected).item() == pytest.approx(wanted, rel=1e-6)
    halved = (minus_log_sigmoid(0.5) + minus_log_sigmoid(-1.0)) / 2
    assert last_token_loss(chosen, rejected, temperature=2.0).item() == pytest.approx(halved, rel=1e-6)


def test_the_loss_from_the_first_divergence_by_hand():
    # pair 1: differs from token 1 on, equally long; pair 2: differs at token 2, where the chosen one has ended
    chosen_ids = torch.tensor([[7, 8, 9], [7, 8, -1]])
    rejected_ids = torch.tensor([[7, 5, 9], [7, 8, 6]])
    chosen_mask = torch.tensor([[True, True, True], [True, True, False]])
    rejected_mask = torch.tensor([[True, True, True], [True, True, True]])
    chosen = torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, -99.0]])
    rejected = torch.tensor([[9.0, 0.5, 4.0], [9.0, 3.0, 1.0]])
    first = first_divergence(chosen_ids, rejected_ids, chosen_mask | rejected_mask)
    assert first.tolist() == [1, 2]
    wanted = ((minus_log_sigmoid(0.5) + minus_log_sigmoid(-2.0)) / 2 + minus_log_sigmoid(2.0)) / 2
    found = divergence_loss(chosen, rejected, chosen_mask, rejected_mask, first)
    assert found.item() == pytest.approx(wanted, rel=1e-6)
    cooler = ((minus_log_sigmoid(0.25) + minus_log_sigmoid(-1.0)) / 2 + minus_log_sigmoid(1.0)) / 2
    found = divergence_loss(chosen, rejected, chosen_mask, rejected_mask, first, temperature=2.0)
    assert found.item() == pytest.approx(cooler, rel=1e-6)


def test_a_pair_that_is_the_same_twice_has_no_loss():
    ids, mask = torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="same completion twice"):
        first_divergence(ids, ids.clone(), mask)


@pytest.mark.parametrize("loss", ["last_token", "divergence"])
def test_scores_are_those_of_the_saved_classifier(tmp_path: Path, model_dir: Path, loss: str):
    """transformers pools the last token by the padding id; the same files, read by it, must give our rewards."""
    model = new_reward_model(ModelConfig("m", str(model_dir)), LoraConfig("none", enabled=False), seed=1)
    rows = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 7], [5, 6, 10, 11]]
    ours = model.rewards(rows, batch_size=3)
    model.save(tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert theirs.config.num_labels == 1
    with torch.no_grad():
        for row, found in zip(rows, ours, strict=True):
            assert theirs(input_ids=torch.tensor([row])).logits.item() == pytest.approx(found, abs=1e-5)

    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 0], [5, 6, 7, 0], [5, 6, 10, 11]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    found, rewards = pair_loss(
        model, {"input_ids": ids, "attention_mask": mask}, RewardModelConfig(loss=loss)
    )
    assert rewards.flatten().tolist() == pytest.approx(ours, abs=1e-5)
    if loss == "last_token":
        wanted = -logsigmoid(torch.tensor([ours[0] - ours[2], ours[1] - ours[3]])).mean().item()
        assert found.item() == pytest.approx(wanted, abs=1e-5)


# -- measures ------------------------------------------------------------------------------------------------


def test_measures_by_hand():
    found = pair_metrics([2.0, 0.0, 1.0, -1.0], [0.0, 0.0, 3.0, -3.0])
    assert found["pair_accuracy"] == (1 + 0.5 + 0 + 1) / 4
    sigma = 1 / (1 + math.exp(-2.0))
    wanted = (-2 * math.log(sigma) + math.log(2) - math.log(1 - sigma)) / 4
    assert found["pair_log_loss"] == pytest.approx(wanted)
    # three pairs at a confidence of 0.88, two of which are right; one at 0.5, which counts half
    assert found["calibration_error"] == pytest.approx(3 / 4 * abs(sigma - 2 / 3) + 0)
    assert found["reward_gap"] == pytest.approx(0.5)


def test_the_interval_draws_whole_inputs():
    chosen, rejected = [1.0] * 40 + [0.0] * 40, [0.0] * 40 + [1.0] * 40
    alone = accuracy_interval(chosen, rejected, [str(i) for i in range(80)], 200)
    twins = accuracy_interval(chosen, rejected, [str(i // 10) for i in range(80)], 200)
    assert twins[1] - twins[0] > 2 * (alone[1] - alone[0])  # eight inputs say less than eighty


# -- pairs from labels ---------------------------------------------------------------------------------------


def test_every_wrong_label_stands_below_the_right_one():
    example = Example("train-3", {"premise": "p", "hypothesis": "h"}, 1, task="mnli")
    pairs = list(label_pairs(MNLI, [example], "all", 0))
    assert {(p.chosen, p.rejected) for p in pairs} == {
        ("Neutral</Judgement>", "Entailment</Judgement>"),
        ("Neutral</Judgement>", "Contradiction</Judgement>"),
    }
    many = [Example(f"train-{i}", {}, 1, task="mnli") for i in range(400)]
    drawn = Counter(p.rejected for p in label_pairs(MNLI, many, "one", 0))
    assert sum(drawn.values()) == 400
    assert drawn["Entailment</Judgement>"] == pytest.approx(200, abs=50)  # five deviations of sqrt(400/4)
    assert drawn == Counter(p.rejected for p in label_pairs(MNLI, many, "one", 0))


@pytest.mark.parametrize("name", ["toy_sentiment", "toy_nli"])
def test_toy_analyses_argue_for_their_label(name: str):
    task, examples = get_task(name), generate(name, "validation")[:60]
    rationales = load_rationales(task, "generated")
    for example in examples:
        told = {label: rationales(example, label) for label in range(len(task.labels))}
        assert len(set(told.values())) == len(task.labels)
        text = " ".join(example.fields.values()).casefold()
        if name == "toy_sentiment":
            words = told[example.label].removeprefix("I agree that ").removeprefix("I disagree that ")
            assert words.casefold() in text  # the words that decide are words of the review
        else:
            assert example.fields["hypothesis"].casefold().rstrip(".") in told[0].casefold()
    pairs = list(rationale_pairs(task, examples, 0, rationales))
    assert len(pairs) == len(examples)
    for pair in pairs:
        assert pair.example is not None
        word = task.verbalize(pair.example.label)
        assert pair.chosen == with_analysis(word, toy_rationale(pair.example, pair.example.label))
        assert pair.rejected.startswith(f"{word}</Judgement><Analysis>")


# -- pairs from files ----------------------------------------------------------------------------------------


def record(**changes):
    return {
        "instruction": "Judge.",
        "input": "A text.",
        "output": ["<Judgement>Yes</Judgement>", "No"],
    } | changes


def test_a_file_of_pairs_is_read(tmp_path: Path):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([record(input=f"Text {i}.", history=[]) for i in range(30)]))
    pairs = file_pairs(path)
    assert (pairs[0].chosen, pairs[0].rejected) == ("Yes</Judgement>", "No")  # prompts end in the open tag
    assert pairs[0].query == ("Judge.", "Text 0.")
    train, held = hold_out(pairs, 200, path)
    assert (len(train), len(held)) == (27, 3)
    assert not {p.group for p in train} & {p.group for p in held}
    with pytest.raises(DataError, match="too few"):
        hold_out(pairs[:9], 200, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("{}", "a JSON list of records is wanted, and this is an object"),
        ("[]", "a list of 0"),
        ("[3]", "record 0: an object is wanted, and this is a number"),
        (
            json.dumps([record(), {"input": "x", "output": ["a", "b"]}]),
            "record 1, key instruction: a text is wanted",
        ),
        (json.dumps([record(input=None)]), "record 0, key input: a text is wanted, and this is missing"),
        (
            json.dumps([record(output="one")]),
            "record 0, key output: a list of the better and the worse answer",
        ),
        (json.dumps([record(output=["a"])]), "key output: .* this is a list of 1"),
        (json.dumps([record(output=["a", ""])]), "one of the two answers is empty"),
        (json.dumps([record(output=["<Judgement>a", "a"])]), "are the same"),
        (json.dumps([record(history=[["q", "a"]])]), "key history: earlier turns"),
    ],
)
def test_a_malformed_file_is_told_by_record_and_key(tmp_path: Path, content: str, message: str):
    path = tmp_path / "pairs.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        file_pairs(path)
    assert str(path) in str(caught.value)


def test_analyses_of_a_file_go_by_text_and_label(tmp_path: Path):
    path = tmp_path / "sft.json"
    answers = ["<Judgement>Positive</Judgement><Analysis>it shines</Analysis>",
               "<Judgement>Negative</Judgement><Analysis>it drags</Analysis>"]  # fmt: skip
    example = Example("train-0", {"sentence": "fine"}, 1, task="sst2")
    query = SST2.template.format_map(example.fields)
    path.write_text(json.dumps([record(input=query, output=answers)]))
    rationales = load_rationales(SST2, str(path))
    assert (rationales(example, 1), rationales(example, 0)) == ("it shines", "it drags")
    pairs = list(label_pairs(SST2, [example], "all", 0, rationales))
    assert pairs[0].rejected == "Negative</Judgement><Analysis>it drags</Analysis>"
    with pytest.raises(DataError, match="example train-1 of sst2 with the answer Positive"):
        rationales(Example("train-1", {"sentence": "other"}, 1, task="sst2"), 1)
    path.write_text(json.dumps([record(output="<Judgement>Positive</Judgement>")]))
    with pytest.raises(DataError, match="record 0: the output has no <Analysis>"):
        load_rationales(SST2, str(path))


def test_prompts_of_a_file_look_like_the_tasks_own(model_dir: Path):
    model = new_reward_model(ModelConfig("m", str(model_dir)), LoraConfig("none", enabled=False), seed=1)
    prompter = Prompter(SST2, model.tokenizer)
    example = Example("train-0", {"sentence": "fine"}, 1, task="sst2")
    assert prompter.render_query(prompter.instruction, prompter.query(example)) == prompter.render(example)
    (pair,) = tokenized(model, prompter, list(label_pairs(SST2, [example], "all", 0)))
    text = model.tokenizer.decode(pair.chosen)
    assert text.endswith("<Judgement>Positive</Judgement>")
    model.context_length = 20
    with pytest.raises(DataError, match="more than the model's context of 20"):
        tokenized(model, prompter, [pair.pair])


def test_a_task_must_have_such_pairs():
    with pytest.raises(ConfigError, match="answers of stsb are no labels"):
        check_pairs(RewardModelConfig(), get_task("stsb"), None)
    with pytest.raises(ConfigError, match=r"reward\.x\.pairs=rationales .* set task.rationale"):
        check_pairs(RewardModelConfig(pairs="rationales"), SST2, None, "reward.x")
    with pytest.raises(ConfigError, match=r"method\.held_out_pairs=none.json: there is no such file"):
        check_pairs(RewardModelConfig(held_out_pairs="none.json"), SST2, None)
