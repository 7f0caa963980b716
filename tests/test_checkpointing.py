"""Gradient checkpointing: the same gradients from fewer saved tensors, with caches and without dropout where these
belong."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
from pathlib import Path

import pytest
import torch
from composing import config_of, run_of
from float64 import in_float64
from models import random_policy
from safetensors.torch import load_file
from test_shared_prefix import CASES, difference, exact_policy, loss_and_gradients
from transformers.utils import is_flash_attn_2_available

from nlu_ppo.config import ModelConfig
from nlu_ppo.errors import ConfigError, ModelError
from nlu_ppo.inference import reading
from nlu_ppo.inference.decoder import generate
from nlu_ppo.inference.prefix import SharedPrefix
from nlu_ppo.models import checkpointing
from nlu_ppo.models.checkpointing import checkpoint_layers, layers_of
from nlu_ppo.models.loading import load_policy
from nlu_ppo.models.policy import Policy
from nlu_ppo.run import execute


class Saved:
    """Counts the bytes that autograd keeps for backward, parameters left out, each tensor once."""

    def __init__(self, policy: Policy) -> None:
        self._weights = {p.data_ptr() for p in policy.model.parameters()}
        self.kept: dict[int, torch.Tensor] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in self._weights:
            self.kept[x.untyped_storage().data_ptr()] = (
                x  # holding it keeps its address from being taken again
            )
        return x

    @property
    def bytes(self) -> int:
        return sum(x.untyped_storage().nbytes() for x in self.kept.values())


def measured(policy: Policy, case: str, share: bool) -> tuple[float, dict, int, list[int]]:
    """Loss, gradients, bytes saved, and how often each layer's attention was run."""
    counts: list[int] = []
    hooks = []
    for i, layer in enumerate(layers_of(policy.trunk)):
        attention = next(m for n, m in layer.named_modules() if n in ("self_attn", "attn"))
        counts.append(0)

        def count(*_: object, i: int = i) -> None:
            counts[i] += 1

        hooks.append(attention.register_forward_hook(count))
    saved = Saved(policy)
    prompts, completions = CASES[case]
    with in_float64(), torch.autograd.graph.saved_tensors_hooks(saved, lambda x: x):
        loss, gradients = loss_and_gradients(policy, prompts, completions, share)
    for hook in hooks:
        hook.remove()
    return loss, gradients, saved.bytes, counts


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mpt"])
@pytest.mark.parametrize("share", [True, False], ids=["shared", "plain"])
def test_the_same_gradients_from_fewer_saved_tensors(
    architecture: str, share: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "WORTH", 1.0)
    # what runs again in backward must be told of float64
    both = {"context_fn": lambda: (contextlib.nullcontext(), in_float64())}
    monkeypatch.setattr(checkpointing, "checkpoint", functools.partial(checkpointing.checkpoint, **both))
    policy = exact_policy(architecture)
    assert reading.reads_trees(policy) == (architecture != "mpt")
    loss, gradients, kept, counts = measured(policy, "three levels", share)
    policy.checkpoint_layers()
    found, checkpointed, fewer, again = measured(policy, "three levels", share)
    assert found == pytest.approx(loss, rel=1e-12)
    assert difference(checkpointed, gradients) < 1e-9
    assert fewer < 0.6 * kept
    # once forward and once again backward; the last layer is left alone where its MLP is run for few tokens
    assert counts == [1, 1, 1] or (architecture == "mpt" and share)  # which runs a prefix ahead of its rows
    assert again == [2, 2, 1 if policy._short_mlp else 2]
    assert not policy.model.training


def test_decoding_keeps_its_cache() -> None:
    policy, prompts = random_policy("llama"), CASES["ragged"][0]
    expected = generate(policy, prompts, 5)
    policy.checkpoint_layers()
    assert not policy.keeps_caches
    assert SharedPrefix(policy, prompts).length == 0  # with gradient
    with torch.no_grad():
        assert policy.keeps_caches
        assert SharedPrefix(policy, prompts).length > 0
    assert generate(policy, prompts, 5) == expected


def test_a_copy_runs_its_own_layers() -> None:
    """Full fine-tuning keeps a copy as its reference, which must not follow the policy."""
    policy = random_policy("llama", lora=False)
    policy.checkpoint_layers()
    frozen = copy.deepcopy(policy.model)
    ids = torch.arange(1, 9).unsqueeze(0)
    before = frozen(input_ids=ids, use_cache=False).logits
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.zero_()
    assert torch.equal(frozen(input_ids=ids, use_cache=False).logits, before)


def test_done_twice_it_runs_layers_again_once() -> None:
    policy = exact_policy("llama")
    policy.checkpoint_layers()
    checkpoint_layers(policy.trunk)  # the last one, too
    assert measured(policy, "ragged", False)[3] == [2, 2, 2]


@pytest.mark.parametrize("method", ["sft", "ppo", "reward_model"])
def test_a_run_with_it_ends_the_same(tmp_path: Path, method: str) -> None:
    """Dropout included, which SFT and reward models train with: layers that are run again draw what they drew."""
    found = []
    for wanted in ("true", "false"):
        folder = tmp_path / wanted
        execute(
            run_of(
                folder, "model=tiny", "task=toy_nli", "task.limit.train=16", "task.limit.eval=4", "tracking=none",
                "task.selection=4", "eval.bootstrap_samples=10", "eval.likelihood=false", f"method={method}",
                "method.batch_size=4", "method.max_steps=2", "method.select_every=1", "lora.dropout=0.3",
                f"method.gradient_checkpointing={wanted}", *["method.minibatch_size=4"] * (method == "ppo"),
            )
        )  # fmt: skip
        found.append(load_file(folder / "adapter" / "adapter_model.safetensors"))
    for name in found[0]:
        assert torch.allclose(*(f[name] for f in found), rtol=1e-4, atol=1e-6), name


def test_ppo_in_bfloat16(tmp_path: Path) -> None:
    """Old and new log-probabilities come from one path, so that the first ratio is 1 but for the order of rows."""
    run = run_of(
        tmp_path / "run", "model=tiny", "task=toy_nli", "task.limit.train=16", "task.limit.eval=4", "tracking=none",
        "task.selection=0", "eval.bootstrap_samples=10", "eval.likelihood=false", "method=ppo",
        "method.batch_size=8", "method.minibatch_size=8", "method.max_steps=2", "model.dtype=bfloat16",
        "method.gradient_checkpointing=true", "method.learning_rate=1e-4",
    )  # fmt: skip
    execute(run)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["ppo/first_ratio_error"] < 1e-3
    assert lines[-1]["ppo/grad_norm"] > 0


def test_attention_that_is_not_installed(model_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.attention=flash is no choice: take one of sdpa, eager"):
        config_of("model.attention=flash")
    if is_flash_attn_2_available():
        pytest.skip("flash-attn is installed")
    model = ModelConfig(name="local", path=str(model_dir), attention="flash_attention_2")
    with pytest.raises(ModelError, match=r"model\.attention=flash_attention_2.*attention=null"):
        load_policy(model, None, 0, "cpu")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_by_other_names(attention: str, model_dir: Path) -> None:
    """All answer alike; only with sdpa do rows form trees."""
    prompts = CASES["ragged"][0]
    policy = load_policy(ModelConfig(name="local", path=str(model_dir), attention=attention), None, 0, "cpu")
    plain = load_policy(ModelConfig(name="local", path=str(model_dir)), None, 0, "cpu")
    assert reading.reads_trees(policy) == (attention == "sdpa")
    assert generate(policy, prompts, 4) == generate(plain, prompts, 4)
