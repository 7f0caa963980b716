"""Toy models of the architectures that people use, as local directories: random weights in transformers' own classes,
and a BPE tokenizer with the special tokens and the chat template of the family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import trl
from models import GPT2, GROUPED
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
TEXTS = [
    "Is the review positive or negative? Answer with one of these: Positive, Negative.",
    "Write it as <Judgement>answer</Judgement>. <Judgement>Positive</Judgement> <Judgement>Negative</Judgement>",
    "user\nassistant\nsystem\nmodel\n", "The film was dull, slow and sad. I liked the warm, funny and clever story.",
] * 8  # fmt: skip
# As strict as that of Mistral's first releases: no system turn, and users and assistants by turns.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
TWO = {"num_hidden_layers": 2, "max_position_embeddings": 512}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
GEMMA = {**GROUPED, **TWO, "head_dim": 8}
GEMMA_WINDOWED = {**GEMMA, "query_pre_attn_scalar": 8, "sliding_window": 16}


@dataclass(frozen=True)
class Toy:
    """How to make one.

    Attributes:
        template: file of TRL's, or a template itself; without one the layout is plain.
        specials: tokens beside beginning and end that the template writes.
        targets: what the choices of this architecture name for LoRA; `None` where conf/model has none of it.
    """

    model_type: str
    shape: dict[str, Any]
    sharing: str
    template: str | None = None
    bos: str | None = "<s>"
    eos: str = "</s>"
    specials: Sequence[str] = ()
    targets: Sequence[str] | None = ("q_proj", "v_proj")


IM = ("<|im_start|>", "<|endoftext|>")
INST = ("[INST]", "[/INST]")
TURNS = ("<start_of_turn>",)
TREES, ALIBI, WINDOW = "trees", "one prefix: ALiBi", "one prefix: some layers see a window"
TOYS = {
    "llama": Toy("llama", {**GROUPED, **TWO}, TREES),
    "llama3": Toy(
        "llama", {**GROUPED, **TWO, "rope_parameters": LLAMA3_ROPE}, TREES, "llama3", "<|begin_of_text|>", "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>"),
    ),
    "qwen2": Toy(
        "qwen2", {**GROUPED, **TWO, "use_sliding_window": False, "sliding_window": 131072}, TREES, "qwen2_5", None,
        "<|im_end|>", IM,
    ),
    "qwen3": Toy(
        "qwen3", {**GROUPED, **TWO, "head_dim": 8}, TREES, "qwen3", None, "<|im_end|>", (*IM, "<think>", "</think>")
    ),
    "mistral": Toy("mistral", {**GROUPED, **TWO, "sliding_window": None}, TREES, MISTRAL, specials=INST),
    "mistral, sliding window": Toy(
        "mistral", {**GROUPED, **TWO, "sliding_window": 16}, WINDOW, MISTRAL, specials=INST
    ),
    "mpt": Toy(
        "mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512}, ALIBI, bos="<|endoftext|>",
        eos="<|endoftext|>", targets=("Wqkv",),
    ),
    "bloom": Toy(
        "bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "seq_length": 512}, ALIBI, targets=("query_key_value",)
    ),
    "gpt2": Toy("gpt2", {**GPT2, "n_layer": 2}, TREES, bos="<|endoftext|>", eos="<|endoftext|>", targets=None),
    "gemma": Toy("gemma", GEMMA, TREES, "gemma", "<bos>", "<end_of_turn>", TURNS),
    "gemma2": Toy("gemma2", GEMMA_WINDOWED, WINDOW, "gemma", "<bos>", "<end_of_turn>", TURNS),
    "gemma3_text": Toy("gemma3_text", GEMMA_WINDOWED, WINDOW, "gemma3", "<bos>", "<end_of_turn>", TURNS),
}  # fmt: skip


def train_bpe(texts: Sequence[str]) -> Tokenizer:
    """A byte-level BPE of 400 tokens."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return inner


def tokenizer_of(toy: Toy, bpe: Tokenizer) -> PreTrainedTokenizerFast:
    """The trained tokenizer as the family has it."""
    own = Tokenizer.from_str(bpe.to_str())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=own, bos_token=toy.bos, eos_token=toy.eos, pad_token="<pad>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(toy.specials)})
    if toy.template is not None:
        file = TEMPLATES / f"{toy.template}.jinja" if len(toy.template) < 20 else None
        tokenizer.chat_template = file.read_text(encoding="utf-8") if file else toy.template
    return tokenizer


def save(name: str, bpe: Tokenizer, folder: Path) -> Path:
    """Writes a toy of the architecture and returns its folder."""
    toy, folder = TOYS[name], folder / name.replace(", ", "-").replace(" ", "-")
    tokenizer = tokenizer_of(toy, bpe)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(toy.model_type, **{**toy.shape, **ids, "vocab_size": len(tokenizer)})
    model: Any = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
