"""An encoder (BERT, DeBERTa) with a new head: it reads a task's texts without a prompt, and picks a label.

It stands where a run has its policy, and offers what training, selection and evaluation ask of one.
"""

from __future__ import annotations

import contextlib
import logging
import string
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nlu_ppo.config import ModelConfig
from nlu_ppo.errors import ModelError, NotFiniteError
from nlu_ppo.inert import defused
from nlu_ppo.models.checkpointing import checkpoint_layers
from nlu_ppo.models.files import reading, source
from nlu_ppo.models.locate import resolve_path
from nlu_ppo.models.room import Room, in_batches
from nlu_ppo.progress import bar
from nlu_ppo.prompting import Prompt
from nlu_ppo.tasks.record import Example, Kind, Label, Task


class Classifier:
    """A sequence classification model, for the labels of one task; of a task in numbers it gives a number."""

    def __init__(self, model: Any, tokenizer: Any, context_length: int, task: Task) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.task = task
        self.device: torch.device = next(model.parameters()).device
        self.room = Room()

    # -- weights ------------------------------------------------------------------------------------------

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Named parameters that training moves: all."""
        return list(self.model.named_parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all weights, on the CPU."""
        return {n: p.detach().to("cpu", copy=True) for n, p in self.trainable()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.trainable():
                parameter.copy_(state[name])

    def checkpoint_layers(self) -> None:
        """From now on layers keep their input only for the backward pass, and are run again in it."""
        checkpoint_layers(self.model)

    # -- texts --------------------------------------------------------------------------------------------

    def read(self, task: Task, example: Example) -> tuple[str, str | None]:
        """The texts that the model reads as its first and second segment.

        Of more than two, all but the first make up the second segment, with the tokenizer's own separator between
        them.
        """
        first, *rest = (defused(self.tokenizer, text) for text in texts_of(task, example))
        return first, f" {self.tokenizer.sep_token} ".join(rest) if rest else None

    def encode(self, task: Task, example: Example) -> tuple[dict[str, list[int]], bool]:
        """What the model takes (`input_ids` and so on), and whether its longer segment was cut to fit."""
        segments = self.read(task, example)
        whole = self.tokenizer(*segments, verbose=False)
        if len(whole["input_ids"]) <= self.context_length:
            return dict(whole), False
        return dict(self.tokenizer(*segments, truncation=True, max_length=self.context_length)), True

    # -- answers ------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def answer(
        self, task: Task, examples: Sequence[Example], batch_size: int | None, progress: str | None = None
    ) -> tuple[list[Prompt], list[str], list[Label | None]]:
        """What was read of every example, and the answer as a text and as a label."""
        prompts: dict[int, Prompt] = {}
        labels: dict[int, Label | None] = {}

        def run(batch: list[int]) -> Iterator[tuple[int, Label | None]]:
            rows = []
            for i in batch:
                row, shortened = self.encode(task, examples[i])
                text = "\n".join(part for part in self.read(task, examples[i]) if part is not None)
                prompts[i] = Prompt(text, tuple(row["input_ids"]), shortened)
                rows.append(row)
            inputs = self.tokenizer.pad(rows, return_tensors="pt").to(self.device)
            yield from zip(batch, self._labels(self.model(**inputs).logits.float()), strict=True)

        def keep(found: tuple[int, Label | None]) -> int:
            labels[found[0]] = found[1]
            return found[0]

        with bar(
            total=len(examples), desc=progress, unit="ex", disable=progress is None, leave=False
        ) as shown:
            in_batches(self.room, "answers", range(len(examples)), batch_size, run, keep, shown.update)
        every = range(len(examples))
        texts = [
            f"{labels[i]:.4f}" if task.kind is Kind.REGRESS else task.verbalize(labels[i])  # type: ignore[arg-type]
            for i in every
        ]
        return [prompts[i] for i in every], texts, [labels[i] for i in every]

    def _labels(self, logits: Tensor) -> list[Label | None]:
        if not logits.isfinite().all():
            raise NotFiniteError(
                "the encoder's scores are NaN or infinite: its weights are damaged, or have run away in training "
                "(lower method.learning_rate)"
            )
        if self.task.kind is Kind.REGRESS:
            return list(logits.squeeze(-1).clamp(self.task.low, self.task.high).tolist())
        return list(logits.argmax(-1).tolist())


def texts_of(task: Task, example: Example) -> list[str]:
    """The texts of an example, in the order in which the task's template has them."""
    names = dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(task.template) if name)
    return [example.fields[name] for name in names]


@contextlib.contextmanager
def _without_report() -> Iterator[None]:
    """Without transformers' warning that the head is new, as it has to be; what else is missing we check."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def load_classifier(model: ModelConfig, task: Task, seed: int, device: torch.device) -> Classifier:
    """Loads an encoder and its tokenizer, and puts a new head on it.

    Args:
        seed: of the head's first weights.

    Raises:
        ModelError: the model can't be found or read, or it has no padding token.
    """
    regress = task.kind is Kind.REGRESS
    kind = "regression" if regress else "single_label_classification"
    found, tokenizer, context = load_encoder(model, 1 if regress else len(task.labels), kind, seed, device)
    if not regress:
        found.config.id2label = dict(enumerate(task.labels))
        found.config.label2id = {label: i for i, label in enumerate(task.labels)}
    return Classifier(found, tokenizer, context, task)


def load_encoder(
    model: ModelConfig, outputs: int, problem_type: str, seed: int, device: torch.device
) -> tuple[Any, Any, int]:
    """An encoder with a new head of so many outputs, its tokenizer, and the tokens that it can read.

    Args:
        problem_type: as transformers calls it; it chooses the loss.
        seed: of the head's first weights.

    Raises:
        ModelError: the model can't be found or read, or it has no padding token.
    """
    where = resolve_path(model.path)
    dtype = {"auto": torch.float32}.get(model.dtype) or getattr(torch, model.dtype)
    torch.manual_seed(seed)
    with reading(model):
        tokenizer: Any = AutoTokenizer.from_pretrained(where, **source(model))
        with _without_report():
            found, loaded = AutoModelForSequenceClassification.from_pretrained(
                where,
                output_loading_info=True,
                num_labels=outputs,
                problem_type=problem_type,
                dtype=dtype,
                attn_implementation=model.attention,
                use_safetensors=True,
                **source(model),
            )
    prefix = f"{found.base_model_prefix}."
    lacking = sorted(n for n in loaded["missing_keys"] if n.startswith(prefix) and ".pooler." not in n)
    if lacking:
        raise ModelError(
            f"model.path={model.path}: its files lack {len(lacking)} weights, first {lacking[0]}"
        )
    if tokenizer.pad_token_id is None or tokenizer.sep_token is None:
        raise ModelError(
            f"model.path={model.path}: its tokenizer has no padding or no separating token, as encoders' have: "
            f"model.kind=decoder?"
        )
    known = getattr(found.config, "max_position_embeddings", None) or tokenizer.model_max_length
    fits = min(known, tokenizer.model_max_length)
    if model.context_length and model.context_length > fits:
        raise ModelError(f"model.context_length={model.context_length} is more than the model's {fits}")
    return found.to(device).eval(), tokenizer, model.context_length or int(fits)
