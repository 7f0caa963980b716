"""Top-k and top-p: what is drawn, and that old, new and reference log-probabilities are of that distribution."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest
import torch
from composing import run_of
from models import random_policy
from transformers import TopKLogitsWarper, TopPLogitsWarper

from nlu_ppo.config import PPOConfig
from nlu_ppo.inference.decoder import generate
from nlu_ppo.inference.filters import allowed_tokens
from nlu_ppo.models.policy import Policy
from nlu_ppo.ppo.forward import score_completions
from nlu_ppo.ppo.rollout import Rollouts, collect
from nlu_ppo.ppo.update import update
from nlu_ppo.prompting import Prompt
from nlu_ppo.run import execute
from nlu_ppo.tasks.record import Example

PROMPTS = ((3, 1, 4, 1, 5), (3, 1, 4, 9), (3, 1, 4, 1, 5, 9, 2), (3, 1, 4, 1, 5))
TEMPERATURE = 0.7


def test_allowed_tokens_by_hand() -> None:
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()

    def found(top_k: int | None, top_p: float | None) -> list[int]:
        return allowed_tokens(logits, top_k, top_p).nonzero().flatten().tolist()

    assert found(None, None) == [0, 1, 2, 3]
    assert found(2, None) == [1, 3]
    assert found(None, 0.75) == [1, 3]
    assert found(None, 0.85) == [0, 1, 3]
    # the three likeliest, renormalised: 10/19 and 6/19 together are 0.842, more than 0.83, less than 0.85
    assert found(3, 0.83) == [1, 3]
    assert found(3, 0.85) == [0, 1, 3]
    assert found(None, 1e-6) == [1]
    assert found(9, 1.0) == [0, 1, 2, 3]


@pytest.mark.parametrize(("top_k", "top_p"), [(7, None), (None, 0.6), (20, 0.8)])
def test_allowed_tokens_equal_those_of_transformers(top_k: int | None, top_p: float | None) -> None:
    logits = 2 * torch.randn(50, 100, generator=torch.Generator().manual_seed(0))
    expected = logits
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p is not None:
        expected = TopPLogitsWarper(top_p)(None, expected)
    assert (allowed_tokens(logits, top_k, top_p) == expected.isfinite()).all()


def test_tokens_are_drawn_as_often_as_the_filtered_distribution_says() -> None:
    policy, count = random_policy("llama", spread=0.2), 8000
    prompt = list(PROMPTS[0])
    drawn = generate(
        policy, [prompt] * count, 1, temperature=TEMPERATURE, top_k=6, top_p=0.9, batch_size=count,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([prompt])).logits[0, -1] / TEMPERATURE
    kept = TopPLogitsWarper(0.9)(None, TopKLogitsWarper(6)(None, logits[None]))[0]
    expected = kept.softmax(-1)
    found = torch.bincount(torch.tensor(drawn).flatten(), minlength=len(expected)) / count
    assert 2 <= kept.isfinite().sum() <= 6
    assert (found[expected == 0] == 0).all()
    # four standard errors of a share of 8,000 draws are at most 0.0224
    torch.testing.assert_close(found, expected, rtol=0, atol=0.0224)


def filtered_config(**more: object) -> PPOConfig:
    return PPOConfig(
        name="ppo", learning_rate=1e-2, optimizer="adamw", batch_size=4, minibatch_size=4, ppo_epochs=3,
        micro_batch_size=2, temperature=TEMPERATURE, top_k=5, top_p=0.9, **more,
    )  # fmt: skip


def draw(policy: Policy, config: PPOConfig) -> Rollouts:
    prompts, sampling = [Prompt("", ids) for ids in PROMPTS], torch.Generator().manual_seed(0)
    example = Example("x", {}, 0)

    def judge(text: str, example: Example) -> tuple[float, int, bool]:
        return float(len(text)), 0, False

    return collect(policy, prompts, [example] * 4, judge, config, 3, 0.1, sampling)


@torch.no_grad()
def filtered_logprobs(policy: Policy, rollouts: Rollouts, row: int) -> torch.Tensor:
    """One completion's, over the tokens allowed at each position: by the model's plain forward."""
    prompt, completion = rollouts.prompts[row], rollouts.completions[row]
    logits = policy.model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0] / TEMPERATURE
    predicting = logits[len(prompt) - 1 : -1]
    assert rollouts.allowed is not None
    allowed = rollouts.allowed[row, : len(completion)]
    return predicting.masked_fill(~allowed, -torch.inf).log_softmax(-1)


@pytest.mark.parametrize("share", [True, False])
def test_old_new_and_reference_are_of_the_distribution_that_was_drawn_from(share: bool) -> None:
    policy = random_policy("llama", spread=0.2)
    policy.freeze_reference()
    policy.add_value_head()
    config = filtered_config(share_prefix=share)
    rollouts = draw(policy, config)
    assert rollouts.allowed is not None

    def check(of: Policy, logprobs: torch.Tensor) -> None:
        for row, completion in enumerate(rollouts.completions):
            expected = filtered_logprobs(of, rollouts, row)
            picked = expected[range(len(completion)), completion]
            torch.testing.assert_close(logprobs[row, : len(completion)], picked, rtol=0, atol=1e-4)

    check(policy, rollouts.logprobs)
    with policy.reference() as reference:
        check(reference, rollouts.ref_logprobs)
    assert (rollouts.logprobs - rollouts.ref_logprobs).abs().max() > 0.1
    assert rollouts.allowed[rollouts.mask.bool()].sum(-1).max() <= 5

    optimizer = torch.optim.AdamW([p for _, p in policy.trainable()], lr=1e-2)
    values = update(policy, optimizer, rollouts, config, torch.Generator().manual_seed(0))
    assert values["ppo/first_ratio_error"] < 1e-3
    # The policy has moved; its own top five may be others now, but ratios stay over the old ones.
    new = score_completions(
        policy, rollouts.prompts, rollouts.completions, temperature=TEMPERATURE, allow=rollouts.allowed
    )
    assert (new.logprobs - rollouts.logprobs).abs().max() > 0.1
    check(policy, new.logprobs.detach())
    for row, completion in enumerate(rollouts.completions):
        log_p = filtered_logprobs(policy, rollouts, row)
        entropy = torch.distributions.Categorical(logits=log_p).entropy()
        torch.testing.assert_close(new.entropy[row, : len(completion)].detach(), entropy, rtol=0, atol=1e-4)


def test_the_entropy_of_few_tokens_has_a_finite_gradient() -> None:
    policy = random_policy("llama", spread=0.2)
    policy.freeze_reference()
    policy.add_value_head()
    config = filtered_config(entropy_coef=0.1)
    values = update(
        policy,
        torch.optim.AdamW([p for _, p in policy.trainable()], lr=1e-3),
        draw(policy, config),
        config,
        torch.Generator().manual_seed(0),
    )
    assert values["ppo/optimizer_steps"] == 3
    assert 0 < values["ppo/entropy"] < torch.tensor(5.0).log()


def test_a_run_with_top_k_keeps_its_ratios_and_its_kl(tmp_path: Path) -> None:
    execute(
        run_of(
            tmp_path / "run", "method=ppo", "task=toy_nli", "tracking=none", "task.limit.eval=20",
            "task.selection=0", "eval.likelihood=false", "eval.bootstrap_samples=10", "method.max_steps=25",
            "method.top_k=3", "method.top_p=0.95",
        )
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["ppo/first_ratio_error"] < 1e-3 for line in lines)
    assert fmean(line["ppo/kl"] for line in lines[-10:]) > 0
