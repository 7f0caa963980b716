"""Reward models from a base model, new or trained."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification

from nlu_ppo.config import LoraConfig, ModelConfig
from nlu_ppo.errors import ModelError
from nlu_ppo.inference.prefix import pad_id
from nlu_ppo.models.classifier import load_encoder
from nlu_ppo.models.files import unfit_targets
from nlu_ppo.models.loading import choose_device, load_parts
from nlu_ppo.preference.encoder import EncoderRewardModel
from nlu_ppo.preference.model import RewardModel


def new_reward_model(
    model: ModelConfig, lora: LoraConfig, seed: int, device: str = "auto", start: Path | None = None
) -> RewardModel:
    """A reward model that has learned nothing yet.

    Args:
        lora: of a decoder; an encoder is trained whole.
        seed: of the adapter's and the head's first weights.
        start: what an SFT run with the same `model` has saved, which a decoder starts from.

    Raises:
        ModelError: the model can't be found or read, or is of an architecture that classifies in another way.
    """
    if model.kind == "encoder":
        found = load_encoder(model, 1, "regression", seed, choose_device(device))
        return EncoderRewardModel(*found)
    classifier, tokenizer, context = _classifier(model, seed, device, start)
    if not lora.enabled:
        return RewardModel(classifier.requires_grad_(True), tokenizer, context)
    config = PeftLoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules="all-linear" if lora.targets == ["all-linear"] else lora.targets,
        bias="none",
        task_type="SEQ_CLS",  # so that PEFT trains and saves the head as well
    )
    try:
        return RewardModel(get_peft_model(classifier, config), tokenizer, context)
    except ValueError as error:
        raise unfit_targets(lora, classifier, error) from error


def load_reward_model(
    model: ModelConfig, lora: LoraConfig, folder: Path, device: str = "auto", start: Path | None = None
) -> RewardModel:
    """A trained reward model, frozen.

    Args:
        model, lora, start: as it was trained with.
        folder: what `RewardModel.save` wrote.
    """
    if model.kind == "encoder":
        own = dataclasses.replace(model, path=str(folder), revision=None, trust_remote_code=False)
        encoder, tokenizer, context = load_encoder(own, 1, "regression", 0, choose_device(device))
        return EncoderRewardModel(encoder.requires_grad_(False), tokenizer, context)
    classifier, tokenizer, context = _classifier(model, 0, device, start)
    whole: Any
    if lora.enabled:
        whole = PeftModel.from_pretrained(classifier, str(folder))
    else:
        whole = AutoModelForSequenceClassification.from_pretrained(folder, dtype=classifier.dtype)
        whole.to(next(classifier.parameters()).device)
    return RewardModel(whole.eval().requires_grad_(False), tokenizer, context)


def _classifier(model: ModelConfig, seed: int, device: str, start: Path | None) -> tuple[Any, Any, int]:
    """The base model's trunk below a new scalar head, frozen; its tokenizer and context length."""
    base, tokenizer, context = load_parts(model, device, start)
    config = copy.deepcopy(base.config)
    config.num_labels, config.pad_token_id = 1, pad_id(tokenizer)
    try:
        with torch.device("meta"):  # its weights are replaced
            classifier: Any = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise ModelError(f"{type(base).__name__} can't become a reward model: {error}") from error
    prefix = str(base.base_model_prefix)
    head = getattr(classifier, "score", None)
    if not isinstance(head, nn.Linear) or not hasattr(classifier, prefix):
        raise ModelError(
            f"{type(classifier).__name__} has no head `score` on its last token: take a decoder as reward model"
        )
    setattr(classifier, prefix, getattr(base, prefix))
    torch.manual_seed(seed)
    classifier.score = nn.Linear(head.in_features, 1, bias=head.bias is not None)
    nn.init.normal_(classifier.score.weight, std=0.02)
    return classifier.to(next(base.parameters()).device).eval().requires_grad_(False), tokenizer, context
