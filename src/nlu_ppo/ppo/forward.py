"""One forward path for old, new and reference policy: log-probabilities, values and entropy of completions.

What the rows share runs once, with gradient, and only states that predict a completion token meet the output
head, each once. Loss and gradients equal those of plain padded rows (tests/test_shared_prefix.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from nlu_ppo.config import PPOConfig
from nlu_ppo.inference.prefix import pad
from nlu_ppo.inference.reading import Predictors, read_completions, reads_trees
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
) -> Scored:
    """Scores `completions` behind their `prompts` under the policy as it is now.

    Args:
        temperature: that of the sampling distribution softmax(logits / temperature).
        share_prefix: run common prefixes once; otherwise every row runs all of its tokens (the plain way).
        entropy_gradient: entropies pass a gradient on; otherwise they are for watching only.
    """
    read = read_completions(policy, prompts, completions, share_prefix)
    return _scored(policy, read, temperature, with_values, entropy_gradient)


def score_states(
    policy: Policy,
    states: Sequence[Sequence[Tensor]],
    completions: Sequence[Sequence[int]],
    *,
    temperature: float,
) -> Scored:
    """Scores of completions whose predicting states are known from drawing them.

    Args:
        states: per completion the hidden states, (hidden,) each, that predict its tokens.
    """
    ends = accumulate(map(len, completions))
    rows = [range(end - len(c), end) for end, c in zip(ends, completions, strict=True)]
    which, _ = pad(rows, 0, "right", policy.device)
    targets, mask = pad(completions, 0, "right", policy.device)
    hidden = torch.stack([state for row in states for state in row])
    read = Predictors(hidden, which, targets, mask)
    return _scored(policy, read, temperature, with_values=True, entropy_gradient=False)


def _scored(
    policy: Policy, read: Predictors, temperature: float, with_values: bool, entropy_gradient: bool
) -> Scored:
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
