"""One forward path for old, new and reference policy: log-probabilities, values and entropy of completions.

What the rows share runs once, with gradient, and only states that predict a completion token meet the output
head, each once. Loss and gradients equal those of plain padded rows (tests/test_shared_prefix.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nlu_ppo.config import PPOConfig
from nlu_ppo.inference.decoder import Drawn
from nlu_ppo.inference.prefix import SharedPrefix
from nlu_ppo.inference.reading import read_completions, reads_trees
from nlu_ppo.inference.tree import bundles
from nlu_ppo.models.policy import Policy


@dataclass(frozen=True)
class Scored:
    """What a forward says of completions, (B, T) each; anything on padding is 0."""

    logprobs: Tensor
    values: Tensor
    entropy: Tensor
    mask: Tensor


def score_completions(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    share_prefix: bool = True,
    with_values: bool = True,
    entropy_gradient: bool = True,
    prefix: SharedPrefix | None = None,
) -> Scored:
    """Scores `completions` behind their `prompts` under the policy as it is now.

    Args:
        temperature: that of the sampling distribution softmax(logits / temperature).
        share_prefix: run common prefixes once; otherwise every row runs all of its tokens (the plain way).
        entropy_gradient: entropies pass a gradient on; otherwise they are for watching only.
        prefix: one of these prompts that has been run already, under this policy.
    """
    read = read_completions(policy, prompts, completions, share_prefix, prefix)
    logprobs, entropy = policy.token_logprobs(
        read.hidden, read.which, read.targets, temperature, entropy_gradient
    )
    values = policy.values(read.hidden) if with_values else torch.zeros_like(entropy)
    weights = read.mask.to(logprobs.dtype)
    return Scored(
        logprobs=logprobs * weights,
        values=values[read.which] * weights,
        entropy=entropy[read.which] * weights,
        mask=weights,
    )


def score_drawn(policy: Policy, drawn: Sequence[Drawn]) -> Scored:
    """What drawing completions has said of them already; entropies, which nobody asks for there, are 0."""
    width = max(len(d.ids) for d in drawn)

    def padded(row: Tensor) -> Tensor:
        return torch.nn.functional.pad(row, (0, width - len(row)))

    logprobs = torch.stack([padded(torch.stack(d.logprobs)) for d in drawn])
    values = torch.stack([padded(policy.values(torch.stack(d.states))) for d in drawn])
    mask = torch.stack([padded(torch.ones(len(d.ids), device=logprobs.device)) for d in drawn])
    return Scored(logprobs, values, torch.zeros_like(values), mask)


def micro_batches(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    config: PPOConfig,
) -> Iterator[list[int]]:
    """Row numbers, a forward at a time: rows that share most together, or else rows of similar length."""
    if config.share_prefix and reads_trees(policy):
        rows = [[*p, *c] for p, c in zip(prompts, completions, strict=True)]
        yield from bundles(rows, config.micro_batch_size, config.micro_batch_tokens)
        return
    longest = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
    fitting = config.micro_batch_tokens // longest if config.micro_batch_tokens else config.micro_batch_size
    order, size = sorted(range(len(prompts)), key=lambda i: len(prompts[i])), max(1, fitting)
    for start in range(0, len(order), size):
        yield order[start : start + size]
