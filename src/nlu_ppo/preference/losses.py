"""The two losses of a reward model: pure functions of token scores.

A reward model gives every token a score; a completion's reward is the score of its last token. P pairs, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def last_scores(scores: Tensor, mask: Tensor) -> Tensor:
    """Score of each row's last real token, (P,).

    Args:
        scores: of all tokens, (P, T).
        mask: true where a token is real, (P, T); padding stands on the right, and every row has a token.
    """
    return scores.gather(1, _last(mask).unsqueeze(1)).squeeze(1)


def last_token_loss(chosen: Tensor, rejected: Tensor, temperature: float = 1.0) -> Tensor:
    """-log sigmoid((r_chosen - r_rejected) / T), averaged over pairs (Ouyang et al. 2022, equation 1).

    Args:
        chosen, rejected: rewards, (P,).
    """
    return -logsigmoid((chosen - rejected) / temperature).mean()


def first_divergence(chosen_ids: Tensor, rejected_ids: Tensor, mask: Tensor) -> Tensor:
    """Index of the first token that differs, (P,).

    Args:
        chosen_ids, rejected_ids: (P, T).
        mask: true where at least one of the two has a real token, (P, T); that one ends where the other goes on
            counts as a difference, if padding isn't the token that comes.

    Raises:
        ValueError: a pair is the same twice.
    """
    differs = (chosen_ids != rejected_ids) & mask
    if not differs.any(1).all():
        raise ValueError("a pair has the same completion twice, so that no token of it differs")
    return differs.int().argmax(1)


def divergence_loss(
    chosen: Tensor,
    rejected: Tensor,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
    first: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """Paper B's loss: -log sigmoid of the scores' difference, averaged over the tokens from the first that differs
    to the end of the longer completion, then over pairs (arXiv 2405.19763, section 3).

    Where one completion has ended, its reward, the score of its last token, goes on standing for it.

    Args:
        chosen, rejected: token scores, (P, T), padded on the right.
        chosen_mask, rejected_mask: true where a token is real, (P, T).
        first: index of the first token that differs, (P,).
    """
    steps = torch.arange(chosen.shape[1], device=chosen.device)
    counted = (steps >= first.unsqueeze(1)) & (chosen_mask | rejected_mask)
    gap = _held(chosen, chosen_mask) - _held(rejected, rejected_mask)
    tokens = -logsigmoid(gap / temperature) * counted
    return (tokens.sum(1) / counted.sum(1)).mean()


def _held(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores with the last real token's in place of what padding has."""
    return torch.where(mask, scores, last_scores(scores, mask).unsqueeze(1))


def _last(mask: Tensor) -> Tensor:
    return mask.sum(1) - 1
