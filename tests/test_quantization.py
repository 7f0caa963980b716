"""QLoRA on the CPU, for real: bitsandbytes' weights, our adapter, all that a run does with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from composing import config_of, run_of
from models import byte_tokenizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from nlu_ppo.config import LoraConfig, ModelConfig
from nlu_ppo.errors import ConfigError, ModelError
from nlu_ppo.identity import identity
from nlu_ppo.models import quantizing
from nlu_ppo.models.loading import load_policy, load_trained
from nlu_ppo.models.sharing import BASE
from nlu_ppo.run import execute

bitsandbytes = pytest.importorskip("bitsandbytes")
LORA = LoraConfig(name="test", targets=["q_proj", "v_proj"], dropout=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of hidden size 256: large enough for blocks of 64 weights that have scales of their own."""
    folder, tokenizer = tmp_path_factory.mktemp("wide"), byte_tokenizer()
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=512, max_position_embeddings=512, num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def model(folder: Path, quantization: str | None) -> ModelConfig:
    return ModelConfig(name="wide", path=str(folder), quantization=quantization)


def test_nf4_computes_with_the_weights_that_bitsandbytes_has_rounded(folder: Path) -> None:
    """Logits are those of the same model in float32 with each weight replaced by its own rounded one."""
    policy = load_policy(model(folder, "nf4"), None, 0, "cpu")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(1, 31).view(2, 15)
    with torch.no_grad():
        unrounded = plain(input_ids=ids).logits
        rounded = 0
        for name, module in policy.base.named_modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                assert module.weight.dtype == torch.uint8
                assert module.weight.quant_state.nested  # scales are quantized, too
                weight = bitsandbytes.functional.dequantize_4bit(module.weight, module.weight.quant_state)
                plain.get_submodule(name).weight.copy_(weight)
                rounded += 1
        found, true = policy.logits(policy.hidden(ids)), plain(input_ids=ids).logits
    assert rounded == 14  # all linear layers but the head
    assert torch.allclose(found, true, rtol=1e-3, atol=1e-4)
    assert (found - unrounded).norm() > 0.02 * unrounded.norm()


def test_gradients_behind_quantized_weights(folder: Path) -> None:
    """Those of the adapter in the same model with rounded weights in float32, after a pass without gradient, at which
    bitsandbytes would pack its weights and lose them."""
    policy = load_policy(model(folder, "nf4"), LORA, 0, "cpu")
    policy.model.eval()
    ids = torch.arange(1, 31).view(2, 15)
    with torch.inference_mode():
        policy.hidden(ids)
    plain = load_policy(model(folder, None), LORA, 0, "cpu")
    plain.model.eval()
    with torch.no_grad():
        for name, module in policy.base.named_modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                weight = bitsandbytes.functional.dequantize_4bit(module.weight, module.weight.quant_state)
                plain.base.get_submodule(name).weight.copy_(weight)
        for (name, mine), (other, theirs) in zip(policy.trainable(), plain.trainable(), strict=True):
            assert name == other
            mine.copy_(torch.randn(mine.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
            theirs.copy_(mine)
    weights = torch.randn(2, 15, 256, generator=torch.Generator().manual_seed(2))
    for one in (policy, plain):
        (one.hidden(ids) * weights).sum().backward()
    for (name, mine), (_, theirs) in zip(policy.trainable(), plain.trainable(), strict=True):
        assert theirs.grad.norm() > 0
        assert (mine.grad - theirs.grad).norm() < 1e-3 * theirs.grad.norm(), name


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_an_adapter_comes_back_on_the_quantized_base(folder: Path, quantization: str, tmp_path: Path) -> None:
    policy = load_policy(model(folder, quantization), LORA, 0, "cpu")
    assert not BASE._states  # no other run gets these weights
    trained = [name for name, p in policy.trainable()]
    assert trained
    assert all("lora_" in name for name in trained)
    with torch.no_grad():
        for name, parameter in policy.trainable():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1)
    policy.model.eval()
    policy.model.save_pretrained(tmp_path / "adapter")
    again = load_trained(model(folder, quantization), tmp_path / "adapter", "cpu")
    ids = torch.arange(1, 31).view(2, 15)
    with torch.no_grad():
        mine, theirs = policy.hidden(ids), again.hidden(ids)
        with policy.model.disable_adapter():
            bare = policy.hidden(ids)
    assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(mine, bare, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("method", "quantization"), [("zero_shot", "int8"), ("sft", "nf4"), ("ppo", "nf4"), ("ppo", "int8")]
)
def test_runs_on_a_quantized_base(folder: Path, method: str, quantization: str, tmp_path: Path) -> None:
    steps = (
        ["method.batch_size=8", "method.max_steps=2", "method.learning_rate=1e-3"]
        if method != "zero_shot"
        else []
    )
    more = ["method.minibatch_size=4", "method.ppo_epochs=2"] if method == "ppo" else []
    result = execute(
        run_of(
            tmp_path / "run", "model=local", f"model.path={folder}", f"model.quantization={quantization}", *steps,
            *more, "task=toy_nli", "task.limit.train=16", "task.limit.eval=4", "task.selection=0", "tracking=none",
            f"method={method}", "eval.bootstrap_samples=10", "reward.correct=2",
        )
    )  # fmt: skip
    assert result["status"] == "finished"
    if method == "zero_shot":
        return
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    if method == "ppo":
        assert lines[0]["ppo/first_ratio_error"] < 1e-3
    moved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert any(t.abs().max() > 0 for name, t in moved.items() if "lora_B" in name)  # which starts at 0


def test_what_makes_no_sense_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nf4 = "model.quantization=nf4"
    with pytest.raises(ConfigError, match=r"freezes all weights.*lora=none"):
        config_of("method=sft", "lora=none", nf4)
    with pytest.raises(ConfigError, match="reward models"):
        config_of("method=reward_model", nf4)
    with pytest.raises(ConfigError, match="encoder"):
        config_of("method=sft", "model=bert_base", nf4)
    with pytest.raises(ConfigError, match=r"model.quantization=fp4 is no choice"):
        config_of("model.quantization=fp4")
    with pytest.raises(ModelError, match=r"model\.adapter"):
        quantizing.quantization_of(
            ModelConfig(name="x", path="x", adapter="a", quantization="nf4"), torch.device("cpu")
        )
    monkeypatch.setattr(quantizing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install -e '.\[qlora\]'"):
        load_policy(model(folder, "nf4"), None, 0, "cpu")


def test_a_quantized_run_is_another_run_and_others_keep_their_key() -> None:
    plain, quantized = (
        identity(config_of("method=sft", *more))["model"] for more in ([], ["model.quantization=nf4"])
    )
    assert "quantization" not in plain
    assert quantized == {**plain, "quantization": "nf4"}
