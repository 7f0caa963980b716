"""Shared prefixes give the loss and the gradients of plain padded rows: in float64 to 1e-9.

Of both ways: the tree of prefixes, and the one prefix for models whose attention can't be told of a tree.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import random_policy
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from nlu_ppo.inference import reading, tree_attention
from nlu_ppo.inference.prefix import SharedPrefix
from nlu_ppo.inference.reading import reads_trees
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
    """Largest relative difference of two sets of gradients, in the norm of each tensor.

    Where a gradient is 0 (of queries that have one key to see), rounding is measured against the largest one.
    """
    assert a.keys() == b.keys()
    floor = 1e-6 * max(g.norm() for g in b.values())
    return max(((a[n] - b[n]).norm() / b[n].norm().clamp(min=floor)).item() for n in a)


def draw(n: int, seed: int) -> list[int]:
    return torch.randint(0, 256, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def three_levels() -> tuple[list, list]:
    """Instruction, then passages, then questions, of which one is asked twice; and a prompt of another task."""
    instruction = draw(25, 1)
    passages = [instruction + draw(n, n) for n in (40, 18)]
    prompts = [passage + draw(n, 100 + n) for passage in passages for n in (20, 3, 9)]
    prompts += [prompts[1], prompts[1], draw(31, 3)]
    completions = [draw(n, 200 + i) for i, n in enumerate((3, 1, 5, 2, 2, 4, 6, 1, 3))]
    completions[6][:3] = [*completions[1], 7, 8]  # rollouts of one prompt that begin alike
    return prompts, completions


CASES = {
    "ragged": rows(20, [5, 9, 1, 3], [4, 1, 6, 2], seed=1),
    "no prefix": rows(0, [6, 11], [3, 2], seed=1),
    "all but one token": rows(30, [1, 1, 1], [2, 2, 5], seed=1),
    "one row": rows(0, [12], [3], seed=1),
    "one-token answers": rows(15, [4, 7], [1, 1], seed=1),
    "long suffixes": rows(17, [70, 64, 90], [3, 5, 2], seed=1),
    "three levels": three_levels(),
    "the same prompt": ([draw(40, 1)] * 4, [[1, 2, 3], [1, 2, 4], [5], [1, 2, 3]]),
}
ARCHITECTURES = ["llama", "qwen2", "gpt2"]


def exact_policy(architecture: str) -> Policy:
    policy = random_policy(architecture, dtype=torch.float64)
    policy.add_value_head()
    with torch.no_grad():
        policy.value_head.double().linear.weight.normal_(generator=torch.Generator().manual_seed(3))
    return policy


def check(policy: Policy, prompts: list, completions: list) -> None:
    with norms_in_float64(), logits_in_float64():
        shared_loss, shared = loss_and_gradients(policy, prompts, completions, share=True)
        plain_loss, plain = loss_and_gradients(policy, prompts, completions, share=False)
    assert shared_loss == pytest.approx(plain_loss, rel=1e-12)
    assert difference(shared, plain) < 1e-9
    assert len(plain) > 6


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", ["tree", "tree, written out", "one prefix"])
def test_shared_equals_plain_in_float64(
    architecture: str, case: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, completions = CASES[case]
    policy = exact_policy(architecture)
    assert reads_trees(policy)
    if way == "one prefix":
        policy.reads_trees = False
    if way == "tree, written out":  # what other devices than the CPU run; in pieces, as long trees do
        written_out = (tree_attention._attend, tree_attention._attend_backward)
        monkeypatch.setattr(tree_attention, "_kernel", lambda q: written_out)
        monkeypatch.setattr(tree_attention, "SCORES", 200)
    monkeypatch.setattr(reading, "WORTH", 1.0)
    monkeypatch.setattr(reading, "LEAST", 4)
    check(policy, prompts, completions)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_tree_equals_plain_in_float64(data: st.DataObject) -> None:
    """Rows over an alphabet of two tokens, so that they share a lot in many ways."""
    row = st.lists(st.integers(65, 66), min_size=1, max_size=12)
    start = data.draw(st.lists(st.integers(65, 66), max_size=20))
    prompts = [start + p for p in data.draw(st.lists(row, min_size=1, max_size=6))]
    completions = data.draw(st.lists(row, min_size=len(prompts), max_size=len(prompts)))
    with mock.patch.multiple(reading, LEAST=data.draw(st.sampled_from([1, 5])), WORTH=1.0):
        check(EXACT, prompts, completions)


EXACT = exact_policy("llama")


def test_gradient_checkpointing_leaves_the_gradients() -> None:
    """transformers checkpoints in training mode only, and gives up caches then; a tree needs none."""
    prompts, completions = CASES["three levels"]
    policy = exact_policy("llama")
    with norms_in_float64(), logits_in_float64():
        loss, gradients = loss_and_gradients(policy, prompts, completions, share=True)
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        policy.model.train()
        with mock.patch.object(
            tree_attention.TreeAttention, "apply", side_effect=tree_attention.TreeAttention.apply
        ) as calls:
            again, checkpointed = loss_and_gradients(policy, prompts, completions, share=True)
    assert calls.call_count == 2 * policy.base.config.num_hidden_layers  # once forward, once again backward
    assert again == pytest.approx(loss, rel=1e-12)
    assert difference(checkpointed, gradients) < 1e-12


def test_bfloat16_within_rounding() -> None:
    """The tree is no further from float32 than plain rows are."""
    prompts, completions = CASES["three levels"]
    scores = {}
    for dtype in (torch.float32, torch.bfloat16):
        policy = random_policy("llama", dtype=dtype)
        for share in (True, False):
            with torch.no_grad():
                found = score_completions(policy, prompts, completions, share_prefix=share, with_values=False)
            scores[dtype, share] = found.logprobs
    true = scores[torch.float32, False]
    shared, plain = ((scores[torch.bfloat16, share] - true).abs().mean() for share in (True, False))
    assert (scores[torch.float32, True] - true).abs().max() < 1e-4
    assert 0 < shared < 2 * plain


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("way", ["tree", "one prefix"])
def test_a_detached_prefix_keeps_the_loss_and_loses_the_gradients(architecture: str, way: str) -> None:
    """The control: this test would not notice a missing gradient if it only compared losses."""
    prompts, completions = CASES["ragged"]
    policy = exact_policy(architecture)
    policy.reads_trees = None if way == "tree" else False
    original, add = SharedPrefix.__init__, tree_attention.Stretch.add

    def detached(self: SharedPrefix, *args: object, **kwargs: object) -> None:
        original(self, *args, **kwargs)
        self._layers = [(k.detach(), v.detach()) for k, v in self._layers]

    def without_the_root(self: tree_attention.Stretch, total: torch.Tensor, part: object, keys: bool) -> None:
        if self.causal or not keys:  # what tokens below a node say of its keys and values is dropped
            add(self, total, part, keys)

    with norms_in_float64(), logits_in_float64():
        plain_loss, plain = loss_and_gradients(policy, prompts, completions, share=False)
        with (
            mock.patch.object(SharedPrefix, "__init__", detached),
            mock.patch.object(tree_attention.Stretch, "add", without_the_root),
        ):
            cut_loss, cut = loss_and_gradients(policy, prompts, completions, share=True)
    assert cut_loss == pytest.approx(plain_loss, rel=1e-12)
    assert difference(cut, plain) > 0.3


def test_shared_equals_the_models_own_logits() -> None:
    """Against the model's plain forward on each row alone, with log_softmax over all positions."""
    prompts, completions = rows(20, [5, 9, 1, 3], [4, 1, 6, 2], seed=2)
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
