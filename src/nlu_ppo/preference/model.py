"""The reward model: a decoder with LoRA and a scalar head, which gives every token a score.

It is saved as PEFT saves an adapter for sequence classification with one label, its head among the files.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from nlu_ppo.config import LoraConfig, ModelConfig
from nlu_ppo.errors import ModelError
from nlu_ppo.inference.prefix import pad, pad_id
from nlu_ppo.models.loading import load_parts
from nlu_ppo.preference.losses import last_scores
from nlu_ppo.prompting import Prompter
from nlu_ppo.tasks.record import Example


class RewardModel:
    """A model for sequence classification with one label, a PeftModel around it, and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, context_length: int) -> None:
        self.model, self.tokenizer, self.context_length = model, tokenizer, context_length
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self.trunk: Any = getattr(base, str(base.base_model_prefix))
        self.head: Any = base.score
        self.device: torch.device = next(self.trunk.parameters()).device

    def token_scores(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score of every token, (rows, tokens), in float32; rows are padded on the right."""
        out = self.trunk(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return self.head(out.last_hidden_state.float()).squeeze(-1)

    @torch.no_grad()
    def rewards(self, rows: Sequence[Sequence[int]], batch_size: int = 64) -> list[float]:
        """The score of each row's last token."""
        found = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            ids, mask = pad([rows[i] for i in batch], pad_id(self.tokenizer), "right", self.device)
            scores = last_scores(self.token_scores(ids, mask), mask.bool())
            for i, score in zip(batch, scores.tolist(), strict=True):
                found[i] = score
        return found

    def judge(
        self, prompter: Prompter, examples: Sequence[Example], completions: Sequence[str]
    ) -> list[float]:
        """Rewards of completions as a policy wrote them behind the prompts of the examples."""
        prompts = prompter.encode(examples)
        rows = [
            [*prompt.ids, *prompter.written_ids(text)][: self.context_length]
            for prompt, text in zip(prompts, completions, strict=True)
        ]
        return self.rewards(rows)

    # -- training, as a policy is trained -----------------------------------------------------------------

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Named parameters that training moves, the head's included."""
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all trainable tensors, on the CPU."""
        return {n: p.detach().to("cpu", copy=True) for n, p in self.trainable()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Sets all trainable tensors."""
        with torch.no_grad():
            for name, parameter in self.trainable():
                parameter.copy_(state[name])

    def save(self, folder: Path) -> None:
        """Writes adapter and head (or, with full fine-tuning, the whole model) and the tokenizer."""
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)


def new_reward_model(model: ModelConfig, lora: LoraConfig, seed: int, device: str = "auto") -> RewardModel:
    """A reward model that has learned nothing yet.

    Args:
        seed: of the adapter's and the head's first weights.

    Raises:
        ModelError: the model can't be found or read, or is of an architecture that classifies in another way.
    """
    classifier, tokenizer, context = _classifier(model, seed, device)
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
        raise ModelError(
            f"lora.targets={lora.targets} don't fit {type(classifier).__name__}: {error}"
        ) from error


def load_reward_model(
    model: ModelConfig, lora: LoraConfig, folder: Path, device: str = "auto"
) -> RewardModel:
    """A trained reward model, frozen.

    Args:
        model, lora: as it was trained with.
        folder: what `RewardModel.save` wrote.
    """
    classifier, tokenizer, context = _classifier(model, 0, device)
    whole: Any
    if lora.enabled:
        whole = PeftModel.from_pretrained(classifier, str(folder))
    else:
        whole = AutoModelForSequenceClassification.from_pretrained(folder, dtype=classifier.dtype)
        whole.to(next(classifier.parameters()).device)
    return RewardModel(whole.eval().requires_grad_(False), tokenizer, context)


def _classifier(model: ModelConfig, seed: int, device: str) -> tuple[Any, Any, int]:
    """The base model's trunk below a new scalar head, frozen; its tokenizer and context length."""
    base, tokenizer, context = load_parts(model, device)
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
