"""A base model in 4 or 8 bit, frozen, for an adapter to be trained on it (QLoRA, arXiv 2305.14314)."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from nlu_ppo.config import ModelConfig
from nlu_ppo.errors import ModelError


def quantization_of(model: ModelConfig, device: torch.device) -> BitsAndBytesConfig | None:
    """How bitsandbytes is to load the model; `None` where its weights stay as they are.

    nf4: 4 bits a weight, their scales quantized as well, products in bfloat16 (on the CPU in float32). int8: 8 bits a
    weight, outliers of the input apart. The embeddings and the output head stay as they are.

    Raises:
        ModelError: bitsandbytes isn't installed, or an adapter would have to be merged into such weights.
    """
    if model.quantization is None:
        return None
    said = f"model.quantization={model.quantization}"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"{said} needs bitsandbytes: pip install -e '.[qlora]'")
    if model.adapter:
        raise ModelError(
            f"{said} and model.adapter don't go together: to merge an adapter into such weights would round it away; "
            f"train on the base (method.init=sft starts from an adapter without merging it), or set it to null"
        )
    if model.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
    )


def keep_differentiable(base: nn.Module) -> None:
    """Keeps bitsandbytes from packing 4-bit weights for inference.

    On processors with AVX-512 in bfloat16 the first forward pass in evaluation mode without gradient would pack them
    for good, for a kernel that has no backward pass: every gradient behind it would be lost without an error. All
    methods evaluate before they train, and PPO trains in evaluation mode.
    """
    module: Any
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
