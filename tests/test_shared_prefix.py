"""The shared prefix gives the loss and the gradients of plain padded rows: in float64 to 1e-9."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from models import random_policy
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from nlu_ppo.inference.prefix import SharedPrefix
from nlu_ppo.models.policy import Policy
from nlu_ppo.ppo import maths
from nlu_ppo.ppo.forward import score_completions
from nlu_ppo.prompting import common_prefix_length


@contextlib.contextmanager
def norms_in_float64() -> Iterator[None]:
    """transformers casts RMSNorm to float32 inside, which alone makes gradients differ by 1e-8."""

    def forward(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    with (
        mock.patch.object(LlamaRMSNorm, "forward", forward),
        mock.patch.object(Qwen2RMSNorm, "forward", forward),
    ):
        yield


@contextlib.contextmanager
def logits_in_float64() -> Iterator[None]:
    def logits(self: Policy, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(hidden)

    def values(self: Policy, hidden: torch.Tensor) -> torch.Tensor:
        return self.value_head.linear(hidden).squeeze(-1)

    with mock.patch.object(Policy, "logits", logits), mock.patch.object(Policy, "values", values):
        yield


def rows(prefix: int, suffixes: list[int], answers: list[int], seed: int) -> tuple[list, list]:
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> list[int]:
        return torch.randint(0, 256, (n,), generator=generator).tolist()

    common = draw(prefix)
    # rows differ in their first own token, so that the prefix is as long as asked for and no longer
    prompts = [[*common, i, *draw(n - 1)] for i, n in enumerate(suffixes)]
    return prompts, [draw(n) for n in answers]


def loss_and_gradients(policy: Policy, prompts: list, completions: list, share: bool) -> tuple[float, dict]:
    """The whole PPO loss, value term and entropy included, and the gradients of adapter and value head."""
    for _, parameter in policy.trainable():
        parameter.grad = None
    scored = score_completions(policy, prompts, completions, share_prefix=share)
    generator = torch.Generator().manual_seed(7)
    old, values, advantages, returns = (
        torch.randn(scored.mask.shape, generator=generator, dtype=scored.logprobs.dtype) for _ in range(4)
    )
    old = scored.logprobs.detach() + 0.1 * old
    terms = maths.loss_terms(
        scored.logprobs,
        scored.values,
        scored.entropy,
        old,
        values,
        advantages,
        returns,
        scored.mask,
        0.2,
        5.0,
    )
    loss = (terms.policy + 0.1 * terms.value - 0.01 * terms.entropy) / terms.tokens
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in policy.trainable()}


def difference(a: dict, b: dict) -> float:
    """Largest relative difference of two sets of gradients, in the norm of each tensor."""
    assert a.keys() == b.keys()
    return max(((a[n] - b[n]).norm() / b[n].norm().clamp(min=1e-30)).item() for n in a)


CASES = {
    "ragged": (20, [5, 9, 1, 3], [4, 1, 6, 2]),
    "no prefix": (0, [6, 11], [3, 2]),
    "all but one token": (30, [1, 1, 1], [2, 2, 5]),
    "one row": (0, [12], [3]),
    "one-token answers": (15, [4, 7], [1, 1]),
}


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("case", CASES)
def test_shared_equals_plain_in_float64(architecture: str, case: str) -> None:
    prompts, completions = rows(*CASES[case], seed=1)
    policy = random_policy(architecture, dtype=torch.float64)
    policy.add_value_head()
    with torch.no_grad():
        policy.value_head.double().linear.weight.normal_(generator=torch.Generator().manual_seed(3))
    with norms_in_float64(), logits_in_float64():
        shared_loss, shared = loss_and_gradients(policy, prompts, completions, share=True)
        plain_loss, plain = loss_and_gradients(policy, prompts, completions, share=False)
    assert shared_loss == pytest.approx(plain_loss, rel=1e-12)
    assert difference(shared, plain) < 1e-9
    assert len(plain) > 10
    assert all(g.norm() > 0 for n, g in plain.items() if "bias" not in n)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_detached_prefix_keeps_the_loss_and_loses_the_gradients(architecture: str) -> None:
    """The control: this test would not notice a missing gradient if it only compared losses."""
    prompts, completions = rows(*CASES["ragged"], seed=1)
    policy = random_policy(architecture, dtype=torch.float64)
    policy.add_value_head()
    policy.value_head.double()
    original = SharedPrefix.__init__

    def detached(self: SharedPrefix, *args: object, **kwargs: object) -> None:
        original(self, *args, **kwargs)
        self._layers = [(k.detach(), v.detach()) for k, v in self._layers]

    with norms_in_float64(), logits_in_float64():
        plain_loss, plain = loss_and_gradients(policy, prompts, completions, share=False)
        with mock.patch.object(SharedPrefix, "__init__", detached):
            cut_loss, cut = loss_and_gradients(policy, prompts, completions, share=True)
    assert cut_loss == pytest.approx(plain_loss, rel=1e-12)
    assert difference(cut, plain) > 0.3


def test_shared_equals_the_models_own_logits() -> None:
    """Against the model's plain forward on each row alone, with log_softmax over all positions."""
    prompts, completions = rows(*CASES["ragged"], seed=2)
    policy = random_policy("llama")
    policy.add_value_head()
    scored = score_completions(policy, prompts, completions, temperature=0.7)
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        logits = policy.model(input_ids=torch.tensor([prompt + completion])).logits[0] / 0.7
        expected = logits.log_softmax(-1)
        for t, token in enumerate(completion):
            row = expected[len(prompt) - 1 + t]
            assert scored.logprobs[i, t].item() == pytest.approx(row[token].item(), abs=1e-4)
            assert scored.entropy[i, t].item() == pytest.approx(-(row.exp() * row).sum().item(), abs=1e-4)
        assert scored.mask[i].sum() == len(completion)
        assert (scored.logprobs[i, len(completion) :] == 0).all()


def test_common_prefix_leaves_every_row_a_token() -> None:
    assert common_prefix_length([]) == 0
    assert common_prefix_length([[1, 2, 3]]) == 2
    assert common_prefix_length([[1, 2, 3], [1, 2, 3]]) == 2
    assert common_prefix_length([[1, 2], [1, 2, 3]]) == 1
    assert common_prefix_length([[1, 2, 9], [1, 2, 3, 4]]) == 2
    assert common_prefix_length([[5], [5, 6]]) == 0
    assert common_prefix_length([[1, 2], [3, 4]]) == 0
