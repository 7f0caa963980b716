"""Shared prefixes give the loss and the gradients of plain padded rows: in float64 to 1e-9.

Of both ways: the tree of prefixes, and the one prefix for models whose attention can't be told of a tree. Plain
padded rows are held, in turn, to the model's own forward of each row alone.
"""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import torch
from float64 import in_float64
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ARCHITECTURES, random_policy

from nlu_ppo.inference import reading, tree_attention
from nlu_ppo.inference.decoder import score_answers
from nlu_ppo.inference.prefix import SharedPrefix
from nlu_ppo.inference.reading import reads_trees
from nlu_ppo.inference.tree import TokenTree
from nlu_ppo.models.policy import Policy
from nlu_ppo.ppo import maths
from nlu_ppo.ppo.forward import Scored, score_completions
from nlu_ppo.prompting import common_prefix_length


def rows(prefix: int, suffixes: list[int], answers: list[int], seed: int) -> tuple[list, list]:
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> list[int]:
        return torch.randint(0, 256, (n,), generator=generator).tolist()

    common = draw(prefix)
    # rows differ in their first own token, so that the prefix is as long as asked for and no longer
    prompts = [[*common, i, *draw(n - 1)] for i, n in enumerate(suffixes)]
    return prompts, [draw(n) for n in answers]


def score_each_alone(policy: Policy, prompts: list, completions: list) -> Scored:
    """By the model's own forward of every row, with all logits: no padding, no split into trunk and head."""
    shape = (len(completions), max(map(len, completions)))
    logprobs, values, entropy, mask = (torch.zeros(shape, dtype=torch.float64) for _ in range(4))
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        out = policy.model(
            input_ids=torch.tensor([prompt + completion]), use_cache=False, output_hidden_states=True
        )
        own = slice(len(prompt) - 1, len(prompt) + len(completion) - 1)
        log_p, tokens = out.logits[0, own].log_softmax(-1), slice(0, len(completion))
        logprobs[i, tokens] = log_p.gather(-1, torch.tensor(completion).unsqueeze(-1)).squeeze(-1)
        entropy[i, tokens] = -(log_p.exp() * log_p).sum(-1)
        if policy.value_head is not None:
            values[i, tokens] = policy.value_head.linear(out.hidden_states[-1][0, own]).squeeze(-1)
        mask[i, tokens] = 1
    return Scored(logprobs, values, entropy, mask)


def loss_and_gradients(
    policy: Policy, prompts: list, completions: list, share: bool | None
) -> tuple[float, dict]:
    """The whole PPO loss, value term and entropy included, and the gradients of adapter and value head.

    Args:
        share: whether prefixes are shared; with `None` each row is run alone, by the model's own forward.
    """
    for _, parameter in policy.trainable():
        parameter.grad = None
    if share is None:
        scored = score_each_alone(policy, prompts, completions)
    else:
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
THREE = ["llama", "qwen2", "gpt2"]
READ_TREES = {"llama", "qwen2", "qwen3", "mistral", "phi3", "gpt2", "gpt_neox", "opt"}


def exact_policy(architecture: str) -> Policy:
    policy = random_policy(architecture, dtype=torch.float64)
    policy.add_value_head()
    with torch.no_grad():
        policy.value_head.double().linear.weight.normal_(generator=torch.Generator().manual_seed(3))
    return policy


def check(policy: Policy, prompts: list, completions: list) -> None:
    with in_float64():
        shared_loss, shared = loss_and_gradients(policy, prompts, completions, share=True)
        plain_loss, plain = loss_and_gradients(policy, prompts, completions, share=False)
    assert shared_loss == pytest.approx(plain_loss, rel=1e-12)
    assert difference(shared, plain) < 1e-9
    assert len(plain) > 6


@pytest.mark.parametrize("architecture", THREE)
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
    if way == "tree, written out":
        write_out(monkeypatch)
    monkeypatch.setattr(reading, "WORTH", 1.0)
    monkeypatch.setattr(reading, "LEAST", 4)
    check(policy, prompts, completions)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("case", ["ragged", "all but one token", "three levels"])
def test_every_architecture_equals_its_own_forward_of_each_row(
    architecture: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whatever way it takes, and by both where it reads trees; prompts are longer than the sliding windows."""
    monkeypatch.setattr(reading, "WORTH", 1.0)
    monkeypatch.setattr(reading, "LEAST", 4)
    prompts, completions = CASES[case]
    policy = exact_policy(architecture)
    assert reads_trees(policy) == (architecture in READ_TREES)
    with in_float64():
        loss, alone = loss_and_gradients(policy, prompts, completions, share=None)
        for trees in {reads_trees(policy), False}:
            policy.reads_trees = trees
            for share in (True, False):
                found, gradients = loss_and_gradients(policy, prompts, completions, share=share)
                assert found == pytest.approx(loss, rel=1e-12)
                assert difference(gradients, alone) < 1e-9
        cut, _ = loss_and_gradients(policy, [p[-1:] for p in prompts], completions, share=None)
    assert abs(cut - loss) > 1e-4  # what is shared matters
    assert len(alone) > 6


@pytest.mark.parametrize("tree", [True, False])
def test_long_rope_has_one_prefix_for_short_rows_and_another_for_long_ones(
    tree: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows are longer than the short length, and what they share is not."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 20}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 8.0}
    shape = ARCHITECTURES["phi3"][1] | {"rope_parameters": rope, "original_max_position_embeddings": 20}
    monkeypatch.setitem(ARCHITECTURES, "phi3", ("phi3", {**shape, "sliding_window": None}))
    policy = exact_policy("phi3")
    assert reads_trees(policy)
    policy.reads_trees = tree
    assert policy.short_length == 20
    prompts, completions = CASES["ragged"]
    assert common_prefix_length(prompts) == 20
    with in_float64():
        loss, alone = loss_and_gradients(policy, prompts, completions, share=None)
        found, gradients = loss_and_gradients(policy, prompts, completions, share=True)
        assert found == pytest.approx(loss, rel=1e-12)
        assert difference(gradients, alone) < 1e-9
        scores = score_answers(policy, prompts, [[c] for c in completions])
        with torch.no_grad():
            expected = score_each_alone(policy, prompts, completions).logprobs.sum(1)
    assert [s for (s,) in scores] == pytest.approx(expected.tolist(), rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_tree_equals_plain_in_float64(data: st.DataObject) -> None:
    """Rows over an alphabet of two tokens, so that they share a lot in many ways, or nothing."""
    row = st.lists(st.integers(65, 66), min_size=1, max_size=12)
    start = data.draw(st.lists(st.integers(65, 66), max_size=20))
    prompts = [start + p for p in data.draw(st.lists(row, min_size=1, max_size=6))]
    completions = data.draw(st.lists(row, min_size=len(prompts), max_size=len(prompts)))
    with (
        mock.patch.multiple(reading, LEAST=data.draw(st.sampled_from([1, 5])), WORTH=1.0),
        mock.patch.object(EXACT, "reads_trees", data.draw(st.booleans())),
    ):
        check(EXACT, prompts, completions)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_prefix_from_none_to_all_but_one_token(data: st.DataObject) -> None:
    """Prompts of one length, of which a given number of tokens is common: also one prompt alone."""
    count, length = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 24))
    common = data.draw(st.integers(0, length - 1))
    prompts, _ = rows(common, [length - common] * count, [], seed=data.draw(st.integers(0, 99)))
    assert count == 1 or common_prefix_length(prompts) == common
    completions = [draw(data.draw(st.integers(1, 5)), seed=i) for i in range(count)]
    with (
        mock.patch.multiple(reading, LEAST=1, WORTH=1.0),
        mock.patch.object(EXACT, "reads_trees", data.draw(st.booleans())),
    ):
        check(EXACT, prompts, completions)


EXACT = exact_policy("llama")
assert reads_trees(EXACT)


@pytest.mark.parametrize("case", ["ragged", "no prefix", "all but one token", "one row", "three levels"])
@pytest.mark.parametrize("architecture", [*THREE, "mpt"])
@pytest.mark.parametrize("way", ["tree", "one prefix", "plain"])
def test_gradient_checkpointing_leaves_the_gradients(
    architecture: str, case: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers checkpoints in training mode only, and drops caches then: a tree needs none, and where attention
    can't be told of one, rows are run plainly."""
    monkeypatch.setattr(reading, "WORTH", 1.0)
    prompts, completions = CASES[case]
    policy = exact_policy(architecture)
    assert reads_trees(policy) == (architecture in READ_TREES)
    policy.reads_trees = policy.reads_trees and way == "tree"
    both = {"use_reentrant": False, "context_fn": lambda: (contextlib.nullcontext(), in_float64())}
    with in_float64():
        loss, alone = loss_and_gradients(policy, prompts, completions, share=None)
        policy.model.gradient_checkpointing_enable(
            both
        )  # what runs again in backward must be told of float64
        policy.model.train()
        forwards = []
        layer = policy.trunk.get_submodule({"gpt2": "h.0", "mpt": "blocks.0"}.get(architecture, "layers.0"))
        layer.register_forward_hook(lambda *_: forwards.append("layer"))
        attention = next(m for n, m in layer.named_modules() if n in ("self_attn", "attn"))
        attention.register_forward_hook(lambda *_: forwards.append("attention"))
        found, checkpointed = loss_and_gradients(policy, prompts, completions, share=way != "plain")
    # once forward, once again backward, up to the point that backward needs
    assert (forwards.count("layer"), forwards.count("attention")) == (1, 2)
    assert found == pytest.approx(loss, rel=1e-12)
    assert difference(checkpointed, alone) < 1e-9


def test_a_cache_that_checkpointed_layers_would_ignore_is_refused() -> None:
    policy = random_policy("llama")
    policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    assert (
        SharedPrefix(policy, [[1, 2, 3], [1, 2, 4]]).length == 2
    )  # in evaluation mode nothing is checkpointed
    policy.model.train()
    prefix = SharedPrefix(policy, [[1, 2, 3], [1, 2, 4]])
    assert prefix.length == 0
    with pytest.raises(AssertionError, match="cache"):
        policy.hidden(torch.tensor([[3]]), cache=prefix.expand(1))


def write_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other devices than the CPU run; in pieces, as long trees do."""
    written_out = (tree_attention._attend, tree_attention._attend_backward)
    monkeypatch.setattr(tree_attention, "_kernel", lambda q: written_out)
    monkeypatch.setattr(tree_attention, "SCORES", 200)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("way", ["its own", "tree, written out", "one prefix"])
def test_bfloat16_within_rounding(architecture: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared rows are hardly further from float32 than plain rows are: log-probabilities of 243 tokens."""
    prompts, _ = three_levels()
    prompts, completions = prompts * 3, [draw(9, seed=300 + i) for i in range(3 * len(prompts))]
    monkeypatch.setattr(reading, "LEAST", 4)
    if way == "tree, written out":
        write_out(monkeypatch)
    scores = {}
    for dtype in (torch.float32, torch.bfloat16):
        policy = random_policy(architecture, dtype=dtype)
        assert reads_trees(policy) == (
            architecture in READ_TREES
        )  # rounding is no reason to run rows plainly
        policy.reads_trees = policy.reads_trees and way != "one prefix"
        for share in (True, False):
            with torch.no_grad():
                found = score_completions(policy, prompts, completions, share_prefix=share, with_values=False)
            scores[dtype, share] = found.logprobs
    true = scores[torch.float32, False]
    shared, plain = ((scores[torch.bfloat16, share] - true).abs() for share in (True, False))
    assert (scores[torch.float32, True] - true).abs().max() < 1e-4
    assert 0 < shared.mean() < 1.5 * plain.mean()
    assert shared.max() < 2 * plain.max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", sorted(READ_TREES))
def test_attention_that_gets_a_tree_wrong_is_found_out(architecture: str, dtype: torch.dtype) -> None:
    def sees_siblings(tree: TokenTree, cached: int, device: torch.device) -> tree_attention.Plan:
        everything = slice(0, len(tree))
        return tree_attention.Plan((tree_attention.Stretch(everything, everything, causal=True),), ())

    def sees_itself_alone(tree: TokenTree, cached: int, device: torch.device) -> tree_attention.Plan:
        return tree_attention.Plan(PLAN(tree, cached, device).own, ())

    for wrong in (sees_siblings, sees_itself_alone):
        policy = random_policy(architecture, dtype=dtype)
        with mock.patch.object(tree_attention, "plan", wrong):
            assert not reads_trees(policy)
        assert policy.trunk.config._attn_implementation == "sdpa"
        policy.reads_trees = None
        assert reads_trees(policy)


PLAN = tree_attention.plan


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lora", [True, False])
def test_the_reference_takes_the_same_path(
    architecture: str, lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter switched off, or the frozen copy: the log-probabilities of each row alone before training."""
    monkeypatch.setattr(reading, "WORTH", 1.0)
    monkeypatch.setattr(reading, "LEAST", 4)
    prompts, completions = CASES["three levels"]
    before = random_policy(architecture, lora=False, dtype=torch.float64)
    policy = random_policy(architecture, lora=lora, dtype=torch.float64)
    policy.freeze_reference()
    with torch.no_grad():
        for _, parameter in policy.trainable():  # trained since
            parameter.add_(0.1)
        if not lora:
            policy.head.weight.mul_(1.5)
    with in_float64(), torch.no_grad():
        alone = score_each_alone(before, prompts, completions).logprobs
        for share in (True, False):
            with policy.reference() as reference:
                found = score_completions(
                    reference, prompts, completions, share_prefix=share, with_values=False
                )
                assert reads_trees(reference) == (architecture in READ_TREES)
            torch.testing.assert_close(found.logprobs, alone, rtol=1e-12, atol=1e-12)
        now = score_completions(policy, prompts, completions, with_values=False).logprobs
    assert (now - alone).abs().max() > 1e-2


@pytest.mark.parametrize("architecture", THREE)
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

    with in_float64():
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
