"""Layers and the head with fewer passes over memory give what the plain ones give, gradients included."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import random_policy
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from nlu_ppo.models.lean import make_lean
from nlu_ppo.models.token_logprobs import STRETCH, token_logprobs


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- the head --------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 9),
    st.integers(2, 5000),
    st.booleans(),
    st.sampled_from([0.3, 1.0, 2.0]),
    st.sampled_from([1e-3, 1.0, 40.0]),  # of the logits: from nearly uniform to nearly certain
)
def test_log_probabilities_and_entropies_of_softmax(
    states: int, vocabulary: int, biased: bool, temperature: float, size: float
) -> None:
    hidden, weight = draw(states, 8), size * draw(vocabulary, 8, seed=1)
    bias = draw(vocabulary, seed=2) if biased else None
    which = torch.tensor([[0, states - 1], [states // 2, 0]])
    targets = torch.tensor([[0, vocabulary - 1], [vocabulary // 2, vocabulary // 3]])
    loss_of, entropy_of = draw(2, 2, seed=3), draw(states, seed=4)

    fast, plain = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    found, entropies = token_logprobs(fast, weight, bias, which, targets, temperature, entropy_gradient=True)
    table = (torch.nn.functional.linear(plain, weight, bias) / temperature).log_softmax(-1)
    expected, expected_entropies = table[which, targets], -(table.exp() * table).sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(entropies, expected_entropies, rtol=1e-9, atol=1e-9)

    ((found * loss_of).sum() + (entropies * entropy_of).sum()).backward()
    ((expected * loss_of).sum() + (expected_entropies * entropy_of).sum()).backward()
    torch.testing.assert_close(fast.grad, plain.grad, rtol=1e-8, atol=1e-8)


def test_a_vocabulary_of_several_stretches() -> None:
    """More than one stretch, the last one short, the largest logit in the first and then in the last."""
    hidden, vocabulary = draw(2, 4), STRETCH["cpu"] // 2 + 10_001
    for peak in (0, vocabulary - 1):
        weight = 0.1 * draw(vocabulary, 4, seed=1)
        weight[peak] *= 300
        x = hidden.clone().requires_grad_()
        found, _ = token_logprobs(x, weight, None, torch.tensor([0, 1]), torch.tensor([peak, 5]))
        y = hidden.clone().requires_grad_()
        expected = (y @ weight.T).log_softmax(-1)[[0, 1], [peak, 5]]
        torch.testing.assert_close(found, expected)
        found.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(x.grad, y.grad)


def test_entropies_that_are_only_watched_pass_no_gradient_on() -> None:
    hidden = draw(3, 4).requires_grad_()
    _, entropies = token_logprobs(hidden, draw(7, 4), None, torch.tensor([0]), torch.tensor([1]))
    assert not entropies.requires_grad


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_trainable_head_gets_its_gradient(architecture: str) -> None:
    policy = random_policy(architecture)
    hidden, which, targets = (
        torch.randn(3, policy.head.weight.shape[1]),
        torch.arange(3),
        torch.tensor([5, 9, 1]),
    )
    frozen, _ = policy.token_logprobs(hidden, which, targets, temperature=0.7)
    policy.head.weight.requires_grad_(True)
    trained, _ = policy.token_logprobs(hidden, which, targets, temperature=0.7)
    torch.testing.assert_close(frozen, trained)
    trained.sum().backward()
    assert policy.head.weight.grad.abs().sum() > 0


# -- layers ----------------------------------------------------------------------------------------------------


class Both(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.norm, self.linear = LlamaRMSNorm(6), nn.Linear(6, 5, bias=bias)
        nn.init.normal_(self.norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(x))


def adapted(bias: bool = False, **options: object) -> nn.Module:
    torch.manual_seed(0)
    model = get_peft_model(Both(bias), LoraConfig(r=3, lora_alpha=7, target_modules=["linear"], **options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    out = model(x)
    (out * torch.arange(out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {**found, "input": x.grad, "output": out.detach()}


@pytest.mark.parametrize("bias", [False, True])
def test_lean_layers_give_what_their_own_forward_gives(bias: bool) -> None:
    plain = adapted(bias)
    lean = copy.deepcopy(plain)
    make_lean(lean)
    make_lean(lean)  # a second time changes nothing
    x = draw(2, 4, 6).float()
    expected, found = gradients(plain, x), gradients(lean, x)
    assert expected.keys() == found.keys()
    assert len(found) == 4
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
    with plain.disable_adapter(), lean.disable_adapter():
        torch.testing.assert_close(lean(x), plain(x))


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.5}, {"use_rslora": True}])
def test_what_is_more_than_plain_lora_runs_its_own_forward(options: dict) -> None:
    plain = adapted(**options)
    lean, x = copy.deepcopy(plain), draw(2, 4, 6).float()
    make_lean(lean)
    outputs = []
    for model in (plain, lean):
        torch.manual_seed(3)
        outputs.append(model.train()(x))
    torch.testing.assert_close(*outputs)


def test_a_norm_that_becomes_trainable_gets_its_gradient() -> None:
    model = adapted()
    make_lean(model)
    weight = model.base_model.model.norm.weight.requires_grad_(True)
    gradients(model, draw(2, 4, 6).float())
    assert weight.grad.abs().sum() > 0


def test_a_copy_is_its_own() -> None:
    """A frozen reference is a deep copy: its layers must not run the trained ones' weights."""
    model, x = adapted(), draw(1, 3, 6).float()
    make_lean(model)
    frozen, before = copy.deepcopy(model), model(x).detach()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(frozen(x), before)
    assert not torch.allclose(model(x), before)
