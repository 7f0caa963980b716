"""The decoder behind a shared prefix against transformers' own generate and plain forwards."""

from __future__ import annotations

import pytest
import torch
from float64 import in_float64
from models import ARCHITECTURES, SHAPE, random_policy

from nlu_ppo.errors import ModelError
from nlu_ppo.inference import reading
from nlu_ppo.inference.decoder import draw, generate, random_numbers, score_answers
from nlu_ppo.inference.reading import read_tree
from nlu_ppo.models.policy import Policy
from nlu_ppo.ppo.forward import score_completions, score_drawn


@pytest.fixture(scope="module")
def policy() -> Policy:
    made = random_policy("llama", lora=False, spread=0.3)
    assert reading.reads_trees(made)
    return made


def prompts(lengths: list[int], common: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(0, 256, (common,), generator=generator).tolist()
    return [first + torch.randint(0, 256, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("common", [0, 25])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_greedy_equals_transformers_row_by_row(policy: Policy, common: int, batch_size: int) -> None:
    rows = prompts([3, 17, 8, 1, 30], common)
    ours = generate(policy, rows, 12, batch_size=batch_size)
    for row, completion in zip(rows, ours, strict=True):
        theirs = policy.model.generate(
            torch.tensor([row]),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=policy.tokenizer.pad_token_id,
        )[0, len(row) :].tolist()
        assert completion == theirs[: len(completion)]
        assert len(completion) == 12 or completion[-1] == policy.tokenizer.eos_token_id


def test_rows_stop_at_the_closing_tag_and_leave_the_others_alone(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tag is planted: one row is made to spell it, its neighbours' completions must not change."""
    rows = prompts([5, 9, 7], 10)
    free = generate(policy, rows, 30)
    tag = policy.tokenizer.decode(free[1][:4])
    monkeypatch.setattr(policy, "closing", tag)
    stopped = generate(policy, rows, 30)
    assert stopped[1] == free[1][:4]
    for i in (0, 2):
        text = policy.tokenizer.decode(free[i])
        assert tag in text or stopped[i] == free[i]


def test_samples_follow_the_policys_distribution(policy: Policy) -> None:
    """First tokens of many samples against softmax(logits / T), by a chi-squared statistic."""
    row, count, temperature = prompts([6], 0)[0], 4000, 1.5
    drawn = generate(
        policy,
        [row] * count,
        1,
        temperature=temperature,
        generator=torch.Generator().manual_seed(0),
        batch_size=500,
    )
    logits = policy.model(input_ids=torch.tensor([row])).logits[0, -1]
    expected = torch.softmax(logits / temperature, 0) * count
    observed = torch.bincount(torch.tensor([d[0] for d in drawn]), minlength=len(expected)).float()
    common = expected > 5
    observed = torch.cat([observed[common], observed[~common].sum().unsqueeze(0)])
    expected = torch.cat([expected[common], expected[~common].sum().unsqueeze(0)])
    statistic = ((observed - expected) ** 2 / expected.clamp(min=1e-9)).sum().item()
    degrees = len(expected) - 1
    assert degrees >= 3
    assert statistic < degrees + 4 * (2 * degrees) ** 0.5  # four standard deviations above the mean


def test_same_seed_same_samples(policy: Policy) -> None:
    rows = prompts([5, 9, 7], 10)

    def draw(seed: int) -> list[list[int]]:
        return generate(policy, rows, 8, temperature=1.0, generator=torch.Generator().manual_seed(seed))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_what_is_drawn_for_a_row_does_not_depend_on_its_batch(policy: Policy) -> None:
    rows = prompts([5, 9, 7, 2, 30, 4, 4], 10)

    def draw(batch_size: int) -> list[list[int]]:
        source = torch.Generator().manual_seed(3)
        return generate(policy, rows, 8, temperature=1.0, generator=source, batch_size=batch_size)

    assert draw(1) == draw(3) == draw(64)
    assert len(set(map(tuple, draw(64)))) > 3


@pytest.mark.parametrize("common", [0, 12])
@pytest.mark.parametrize("tree", [True, False])
def test_answer_likelihoods_equal_plain_forwards(
    policy: Policy, common: int, tree: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "reads_trees", tree)
    rows = prompts([4, 11, 6], common)
    answers = [[[65], [66, 67, 68], [65, 66]], [[70, 71], [72]], [[1, 2, 3, 4, 5]]]
    got = score_answers(policy, rows, answers, batch_size=2)
    assert [len(g) for g in got] == [3, 2, 1]
    for row, choices, scores in zip(rows, answers, got, strict=True):
        for choice, score in zip(choices, scores, strict=True):
            logprobs = policy.model(input_ids=torch.tensor([row + choice])).logits[0].log_softmax(-1)
            expected = sum(logprobs[len(row) - 1 + i, token].item() for i, token in enumerate(choice))
            assert score == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_decodes_and_scores_as_it_does_row_by_row(architecture: str) -> None:
    """Rows of unequal length behind a common beginning, longer than the sliding windows, in one batch.

    Against forwards of each row alone, without a cache: windows and ALiBi must not count what is padding.
    """
    policy = random_policy(architecture, lora=False, spread=0.3, dtype=torch.float64)
    rows, answers = prompts([3, 17, 8, 1], 9), [[65, 66, 67, 68], [70]]
    with in_float64(), torch.inference_mode():
        completions = generate(policy, rows, 5)
        scores = score_answers(policy, rows, [answers] * len(rows))
        for row, completion, found in zip(rows, completions, scores, strict=True):
            for end, token in enumerate(completion):
                so_far = torch.tensor([row + completion[:end]])
                assert policy.base(input_ids=so_far, use_cache=False).logits[0, -1].argmax() == token
            for answer, score in zip(answers, found, strict=True):
                whole = torch.tensor([row + answer])
                log_p = policy.base(input_ids=whole, use_cache=False).logits[0].log_softmax(-1)
                places = range(len(row) - 1, len(row) + len(answer) - 1)
                expected = sum(log_p[p, t].item() for p, t in zip(places, answer, strict=True))
                assert score == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("model_type", "shape"),
    [
        ("lfm2", {**SHAPE, "layer_types": ["conv", "full_attention", "conv"]}),
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    ],
)
def test_layers_with_a_running_state_are_refused(
    model_type: str, shape: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, model_type, (model_type, shape))
    with pytest.raises(ModelError, match="running state in place of keys and values"):
        random_policy(model_type, lora=False)


def nested() -> list[list[int]]:
    """Three passages behind one instruction, with several questions each, not in order; one is asked twice."""
    passages = prompts([60, 45, 33], 20)
    rows = [passage + prompts([n], 0, seed=n)[0] for n in (9, 4, 17) for passage in passages]
    return [*rows, rows[4]]


@pytest.mark.parametrize("tree", [True, False])
@pytest.mark.parametrize("batch_size", [4, 64])
def test_passages_with_several_questions(
    policy: Policy, tree: bool, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy completions and answer likelihoods of every row alone, and each passage run once per batch."""
    rows, tokens = nested(), []
    monkeypatch.setattr(policy, "reads_trees", tree)

    def counted(policy: Policy, tree: object, *others: object) -> torch.Tensor:
        tokens.append(len(tree))
        return read_tree(policy, tree, *others)

    monkeypatch.setattr(reading, "read_tree", counted)
    completions = generate(policy, rows, 8, batch_size=batch_size)
    ran, answers = sum(tokens), [[65, 66], [67], [65, 68, 69]]
    scores = score_answers(policy, rows, [answers] * len(rows), batch_size=3 * batch_size)
    for row, completion, found in zip(rows, completions, scores, strict=True):
        (alone,) = generate(policy, [row], 8)
        assert completion == alone
        (expected,) = score_answers(policy, [row], [answers])
        assert found == pytest.approx(expected, abs=1e-4)
    if tree and batch_size == 64:
        own = 3 * (9 + 4 + 17)
        assert ran == 60 + 45 + 33 + own


def test_nothing_in_nothing_out(policy: Policy) -> None:
    assert generate(policy, [], 5) == []
    assert score_answers(policy, [], []) == []


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_drawing_says_what_scoring_says(architecture: str, temperature: float) -> None:
    """Log-probabilities and values that come with drawing are those of a forward over the whole rows."""
    policy = random_policy(architecture, dtype=torch.float64)
    policy.add_value_head()
    with torch.no_grad():
        policy.value_head.linear.weight.normal_(generator=torch.Generator().manual_seed(3))
    prompts = [[5, 6, 7, i, *range(20, 20 + 3 * i)] for i in range(6)]
    numbers = random_numbers(policy, len(prompts), 5, torch.Generator().manual_seed(1))
    drawn = draw(policy, prompts, 5, temperature=temperature, numbers=numbers)
    assert [d.row for d in drawn] == list(range(6))
    with torch.no_grad():
        found = score_drawn(policy, drawn)
        expected = score_completions(policy, prompts, [d.ids for d in drawn], temperature=temperature)
    torch.testing.assert_close(found.mask, expected.mask, check_dtype=False)
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=1e-5, atol=1e-5, check_dtype=False)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-5, atol=1e-5, check_dtype=False)
