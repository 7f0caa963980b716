"""Small random models for tests: any architecture, any shape, in a second."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from nlu_ppo.models.policy import Policy

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 1024,
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, plus beginning, end and padding: every text tokenises, every id decodes."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def random_policy(
    architecture: str = "llama",
    *,
    lora: bool = True,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    spread: float = 0.1,
) -> Policy:
    """A policy with random weights; the adapter's second matrix is random too, so that it does something."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    model: Any
    if architecture == "llama":
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **SHAPE))
    elif architecture == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **SHAPE))
    elif architecture == "gpt2":
        shape = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 1024}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape))
    else:
        raise ValueError(architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, spread)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.01)
    model.requires_grad_(False)
    if lora:
        model = get_peft_model(
            model, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", fan_in_fan_out=architecture == "gpt2")
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0.0, spread)
    return Policy(model.to(dtype).eval(), tokenizer, SHAPE["max_position_embeddings"])
