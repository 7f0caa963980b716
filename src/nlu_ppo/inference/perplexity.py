"""Perplexity of a policy on a running text that is longer than its context, by sliding windows.

Tokens t_0 ... t_n; every one after the first is predicted exactly once. A window is what one forward pass
reads: window k reads `window` tokens from token k * stride on, and each token that it reads predicts the one
after it. Of these predictions the first window counts all, and each later one the `stride` last ones, whose
tokens no window before has predicted. So but for the first window every prediction sees at least
`window - stride + 1` tokens to its left, and `window` at most. The result is exp of the mean over all
predictions of the negative natural logarithm of their probabilities.

This is the scheme of the transformers documentation (Perplexity of fixed-length models) with its `max_length`
one larger, since it counts a window's last token, which is only ever predicted, among those that are read. That
also lets windows stand side by side (stride = window) without leaving out the first token of each.

Text goes to the tokenizer in one piece, with the special tokens that the tokenizer itself adds to a text: a
beginning-of-sequence token, where there is one, is the t_0 that the text's own first token is predicted from.
What is spelled like a control token in the text is text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nlu_ppo.config import EvalConfig
from nlu_ppo.errors import DataError
from nlu_ppo.inert import ids_of
from nlu_ppo.models.policy import Policy
from nlu_ppo.progress import bar
from nlu_ppo.tasks.texts import read_text

_LOGITS = 1 << 25  # numbers in a block of logits: 128 MiB of float32, whatever the vocabulary
_TOKENS = 1 << 13  # tokens of one forward pass, whatever the window


class Window(NamedTuple):
    """Reads tokens `start` to `end - 1`, and counts the predictions of tokens `first` to `end`."""

    start: int
    end: int
    first: int


@dataclass(frozen=True)
class Reading:
    """A tokenised text, and how it is to be read."""

    name: str
    ids: Sequence[int]
    window: int
    stride: int


@dataclass(frozen=True)
class Perplexity:
    """What a reading found. Perplexities per token compare between models that share a tokenizer only.

    Attributes:
        tokens: predictions that count.
        window: as the model's context allowed; so is `stride`.
    """

    text: str
    value: float
    tokens: int
    window: int
    stride: int


def prepare(policy: Policy, config: EvalConfig) -> Reading | None:
    """The text that `eval.perplexity` asks for, ready to be read; `None` if it asks for none.

    Raises:
        UserError: the text is missing, unreadable, or too short to predict anything in it.
    """
    if config.perplexity is None:
        return None
    text = read_text(config.perplexity)
    (ids,) = ids_of(policy.tokenizer, [text.content], add_special_tokens=True) if text.content else [[]]
    if len(ids) < 2:
        raise DataError(
            f"eval.perplexity={config.perplexity}: the text has {len(ids)} tokens, and there must be two for one "
            f"to be predicted: name a longer text"
        )
    window = min(config.perplexity_window, policy.context_length)
    return Reading(text.name, ids, window, min(config.perplexity_stride, window))


def windows(tokens: int, window: int, stride: int) -> list[Window]:
    """The windows over so many tokens."""
    assert 1 <= stride <= window, "tokens between two windows would be left out"
    found: list[Window] = []
    start, first = 0, 1
    while first < tokens:
        end = min(start + window, tokens - 1)  # the last token has nothing to predict
        found.append(Window(start, end, first))
        start, first = start + stride, end + 1
    return found


@torch.inference_mode()
def measure(
    policy: Policy, reading: Reading, *, batch_size: int | None = 64, progress: str | None = None
) -> Perplexity:
    """Reads the text.

    Args:
        batch_size: windows of one forward pass, or fewer, where windows are long.
        progress: label of a progress bar; none if `None`.
    """
    ids, total = reading.ids, 0.0
    plan = windows(len(ids), reading.window, reading.stride)
    rows = max(1, min(batch_size or _TOKENS, _TOKENS // reading.window))
    with bar(total=len(plan), desc=progress, unit="window", disable=progress is None, leave=False) as shown:
        for batch in _batches(plan, rows):
            inputs = torch.tensor([ids[w.start : w.end] for w in batch], device=policy.device)
            hidden = policy.hidden(inputs)
            # what token i predicts is token i + 1
            counted = torch.cat([row[w.first - 1 - w.start :] for row, w in zip(hidden, batch, strict=True)])
            wanted = torch.tensor([i for w in batch for i in ids[w.first : w.end + 1]], device=policy.device)
            total += _surprise(policy, counted, wanted)
            shown.update(len(batch))
    tokens = len(ids) - 1
    return Perplexity(reading.name, _exp(total / tokens), tokens, reading.window, reading.stride)


def _batches(plan: Sequence[Window], rows: int) -> Iterator[Sequence[Window]]:
    """Windows of one length, so that nothing is padded: only the last can be shorter than the others."""
    longest = plan[0].end - plan[0].start
    whole = [w for w in plan if w.end - w.start == longest]
    for start in range(0, len(whole), rows):
        yield whole[start : start + rows]
    if len(whole) < len(plan):
        yield plan[len(whole) :]


def _surprise(policy: Policy, hidden: Tensor, wanted: Tensor) -> float:
    """Sum of -ln p of the wanted tokens, each predicted from its row of `hidden`, (tokens, hidden)."""
    step, total = max(1, _LOGITS // policy.head.weight.shape[0]), 0.0
    for start in range(0, len(wanted), step):
        logits = policy.logits(hidden[start : start + step])
        losses = torch.nn.functional.cross_entropy(logits, wanted[start : start + step], reduction="none")
        total += math.fsum(losses.tolist())  # in double precision, which not every device has
    return total


def _exp(mean: float) -> float:
    return math.exp(mean) if mean < 700.0 else math.inf


def report(result: dict[str, Any], found: Perplexity) -> None:
    """Adds a perplexity to what result.json holds."""
    result["metrics"][f"perplexity/{found.text}"] = found.value
    result["perplexity"] = dict(vars(found))
