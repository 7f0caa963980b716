"""Small random models for tests: any architecture, any shape, in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertModel, PreTrainedTokenizerFast

from nlu_ppo.models.policy import Policy

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 1024,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 1024, **NO_DROPOUT}

# name to transformers' model type and its shape; special tokens are None where a default lies beyond the vocabulary
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", GROUPED),
    "qwen2": ("qwen2", GROUPED),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 8}),
    "mistral": ("mistral", {**GROUPED, "sliding_window": None}),
    "mistral, sliding window": ("mistral", {**GROUPED, "sliding_window": 7}),
    "gemma2": ("gemma2", {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 7}),
    "phi3": ("phi3", {**GROUPED, "pad_token_id": None}),
    "gpt2": ("gpt2", GPT2),
    "gpt_neox": ("gpt_neox", SHAPE),
    "opt": (
        "opt",
        {
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "ffn_dim": 48,
            "max_position_embeddings": 1024,
        },
    ),
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "falcon": ("falcon", {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}),
    "falcon, alibi": (
        "falcon",
        {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "alibi": True},
    ),
    "mpt": ("mpt", {"d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 1024}),
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
    model_type, shape = ARCHITECTURES[architecture]
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **shape)
    model: Any = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, spread)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.01)
    model.requires_grad_(False)
    if lora:
        model = get_peft_model(
            model,
            LoraConfig(
                r=4,
                lora_alpha=8,
                task_type="CAUSAL_LM",
                fan_in_fan_out=architecture == "gpt2",
                target_modules=["qkv_proj", "o_proj"]
                if architecture == "phi3"
                else None,  # PEFT has no choice
            ),
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0.0, spread)
    return Policy(model.to(dtype).eval(), tokenizer, SHAPE["max_position_embeddings"])


def save_random_bert(folder: Path) -> Path:
    """A BERT of random weights, and a tokenizer of letters that writes [CLS] a [SEP] b [SEP]; returns the folder."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(i) for i in range(33, 127)]
    words = [*special, *letters, *(f"##{letter}" for letter in letters)]
    inner = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=128,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=128,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
