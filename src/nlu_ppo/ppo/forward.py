"""One forward path for old, new and reference policy: log-probabilities, values and entropy of completions.

The rows' common prefix runs once, with gradient, and only positions that predict a completion token meet the
output head. Loss and gradients equal those of plain padded rows (tests/test_shared_prefix.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nlu_ppo.inference.prefix import SharedPrefix, pad, pad_id
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
) -> Scored:
    """Scores `completions` behind their `prompts` under the policy as it is now.

    Args:
        temperature: that of the sampling distribution softmax(logits / temperature).
        share_prefix: run the prompts' common prefix once; otherwise every row runs it (the plain way).
    """
    prefix = SharedPrefix(policy, prompts, limit=None if share_prefix else 0)
    # The last completion token predicts nothing, so that it never enters the model.
    rows = [[*p[prefix.length :], *c[:-1]] for p, c in zip(prompts, completions, strict=True)]
    ids, row_mask = pad(rows, pad_id(policy.tokenizer), "right", policy.device)
    targets, target_mask = pad(completions, 0, "right", policy.device)
    mask = torch.cat([row_mask.new_ones(len(rows), prefix.length), row_mask], dim=1)
    positions = torch.arange(prefix.length, mask.shape[1], device=policy.device).expand(len(rows), -1)
    cache = prefix.expand(len(rows)) if prefix.length else None
    hidden = policy.hidden(ids, mask, positions, cache)

    # Column of `hidden` that predicts completion token t of a row: its last prompt token, plus t.
    starts = torch.tensor([len(p) - prefix.length - 1 for p in prompts], device=policy.device)
    columns = starts.unsqueeze(1) + torch.arange(targets.shape[1], device=policy.device)
    columns = columns.clamp(max=hidden.shape[1] - 1)
    picked = hidden.gather(1, columns.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))

    log_p = (policy.logits(picked) / temperature).log_softmax(-1)
    logprobs = log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    values = policy.values(picked) if with_values else torch.zeros_like(logprobs)
    weights = target_mask.to(logprobs.dtype)
    return Scored(logprobs * weights, values * weights, entropy * weights, weights)
