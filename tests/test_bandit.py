"""PPO where the best policy is known in closed form: one prompt, one token, two answers that pay.

With a fixed weight b of the KL from the reference, the policy that maximises reward minus b times KL is
pi(a) = ref(a) exp(r(a) / b) / Z (for instance arXiv 1909.08593, section 2.2). With a bonus of c times the entropy,
r + b log ref is what is maximised on average beside (b + c) times the entropy, so that
pi(a) = exp((r(a) + b log ref(a)) / (b + c)) / Z. The engine has to find both.
"""

from __future__ import annotations

import math
import string
from itertools import pairwise

import pytest
import torch
from models import random_policy

from nlu_ppo.config import PPOConfig
from nlu_ppo.models.policy import Policy
from nlu_ppo.ppo.forward import score_completions
from nlu_ppo.ppo.rollout import collect
from nlu_ppo.ppo.update import update
from nlu_ppo.prompting import Prompt
from nlu_ppo.tasks.record import Example

BETA = 0.5
PAYS = (2.0, 2.5)  # of two letters; all other tokens pay nothing


def full_policy() -> Policy:
    """All weights train: so small an adapter couldn't express the optimum."""
    policy = random_policy("llama", spread=0.2, lora=False)
    policy.freeze_reference()
    policy.model.requires_grad_(True)
    policy.add_value_head()
    policy.model.eval()
    return policy


@pytest.mark.slow
@pytest.mark.parametrize(("bonus", "far"), [(0.0, 0.9), (0.2, 0.3)])
def test_ppo_finds_the_optimum_of_a_bandit(bonus: float, far: float) -> None:
    policy = full_policy()
    prompt = Prompt("Pay:", tuple(policy.tokenizer("Pay:")["input_ids"]))
    vocabulary = len(policy.tokenizer)
    arms = [[token] for token in range(vocabulary)]

    @torch.no_grad()
    def logprobs() -> torch.Tensor:
        return score_completions(policy, [prompt.ids] * vocabulary, arms).logprobs[:, 0]

    with policy.reference():
        reference = logprobs()
    assert reference.exp().sum() == pytest.approx(1.0, abs=1e-4)
    letters = [policy.tokenizer.convert_tokens_to_ids(letter) for letter in string.ascii_uppercase]
    chosen = sorted(letters, key=lambda token: -reference[token])[:2]
    pays = torch.zeros(vocabulary)
    pays[chosen] = torch.tensor(PAYS)
    best = ((pays + BETA * reference) / (BETA + bonus)).softmax(0)
    assert best[chosen].min() > 0.1, "the optimum should be a mixture"
    assert best[chosen].sum() < 0.95

    config = PPOConfig(
        name="ppo", learning_rate=3e-3, optimizer="adamw", batch_size=64, minibatch_size=64, ppo_epochs=2,
        micro_batch_size=64, kl_coef=BETA, kl_controller="fixed", lam=1.0, whiten_advantages=False,
        entropy_coef=bonus,
    )  # fmt: skip
    optimizer = torch.optim.AdamW([p for _, p in policy.trainable()], lr=config.learning_rate, weight_decay=0)
    sampling, shuffling = (torch.Generator().manual_seed(s) for s in (0, 1))
    example = Example("x", {}, 0)
    worth = {policy.tokenizer.decode([token]): pay for token, pay in zip(chosen, PAYS, strict=True)}

    def judge(text: str, example: Example) -> tuple[float, int, bool]:
        return worth.get(text, 0.0), 0, False

    steps = 300
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = config.learning_rate * (1 - step / steps)
        rollouts = collect(policy, [prompt] * 64, [example] * 64, judge, config, 1, BETA, sampling)
        update(policy, optimizer, rollouts, config, shuffling)

    found = logprobs()
    distance = (found.exp() * (found - best.log())).sum().item()
    start = (reference.exp() * (reference - best.log())).sum().item()
    assert start > far  # nats
    assert distance < 0.005
    torch.testing.assert_close(found[chosen].exp(), best[chosen], rtol=0, atol=0.01)


def test_an_entropy_bonus_alone_spreads_the_policy() -> None:
    """Where nothing pays, nothing moves the policy but the bonus, towards the uniform one."""
    prompt, example = Prompt("Pay:", (3, 1, 4, 1, 5)), Example("x", {}, 0)

    def entropies(bonus: float) -> list[float]:
        policy = full_policy()
        config = PPOConfig(
            name="ppo", learning_rate=1e-3, optimizer="adamw", minibatch_size=16, ppo_epochs=1,
            micro_batch_size=16, kl_coef=0.0, value_coef=0.0, whiten_advantages=False, lam=1.0, entropy_coef=bonus,
        )  # fmt: skip
        with torch.no_grad():
            for parameter in policy.value_head.parameters():
                parameter.zero_()  # advantages are 0 then, as returns are
        optimizer = torch.optim.AdamW([p for _, p in policy.trainable()], lr=1e-3, weight_decay=0)
        sampling, shuffling = (torch.Generator().manual_seed(s) for s in (0, 1))
        found = []
        for _ in range(10):
            rollouts = collect(
                policy, [prompt] * 16, [example] * 16, lambda *_: (0.0, 0, False), config, 1, 0.0, sampling
            )
            found.append(update(policy, optimizer, rollouts, config, shuffling)["ppo/entropy"])
        return found

    still, spreading = entropies(0.0), entropies(0.1)
    assert still == pytest.approx([still[0]] * 10, abs=1e-5)
    assert spreading[0] == pytest.approx(still[0], abs=1e-5)
    assert all(later > earlier for earlier, later in pairwise(spreading))
    assert spreading[0] < spreading[-1] < math.log(259)  # that of the uniform policy


def test_a_clipped_gradient_moves_the_weights_by_no_more() -> None:
    """One step of plain gradient descent at rate 1 is as long as the gradient: 0.01 once clipped, more if not."""
    prompt, example = Prompt("Pay:", (3, 1, 4, 1, 5)), Example("x", {}, 0)
    moved = {}
    for bound in (None, 0.01):
        policy = full_policy()
        config = PPOConfig(
            name="ppo", learning_rate=1.0, batch_size=16, minibatch_size=16, ppo_epochs=1, max_grad_norm=bound
        )
        before = torch.cat([p.detach().flatten().clone() for _, p in policy.trainable()])
        optimizer = torch.optim.SGD([p for _, p in policy.trainable()], lr=1.0)
        sampling, shuffling = (torch.Generator().manual_seed(s) for s in (0, 1))

        def judge(text: str, example: Example) -> tuple[float, int, bool]:
            return float(len(text.encode()) > 1), 0, False

        rollouts = collect(policy, [prompt] * 16, [example] * 16, judge, config, 2, 0.0, sampling)
        norm = update(policy, optimizer, rollouts, config, shuffling)["ppo/grad_norm"]
        after = torch.cat([p.detach().flatten() for _, p in policy.trainable()])
        moved[bound] = (after.double() - before.double()).norm().item()
        assert norm > 0.05  # what is logged is the norm before clipping
    assert moved[None] == pytest.approx(norm, rel=1e-3)
    assert moved[0.01] == pytest.approx(0.01, rel=1e-3)
