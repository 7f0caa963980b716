"""Top-k and top-p: which tokens may be drawn."""

from __future__ import annotations

import torch
from torch import Tensor


def allowed_tokens(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Which tokens may be drawn, a mask shaped like `logits`, (..., vocabulary).

    The `top_k` likeliest; of these, renormalised, the fewest likeliest whose probabilities reach `top_p`
    (nucleus sampling, arXiv 1904.09751). Without either, all.

    Args:
        logits: already divided by the temperature.
    """
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    kept = torch.ones_like(ordered, dtype=torch.bool)
    if top_k is not None:
        kept[..., top_k:] = False
    if top_p is not None:
        probabilities = ordered.masked_fill(~kept, -torch.inf).softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # of all likelier tokens
        kept &= before < top_p
        kept[..., 0] = True
    return torch.zeros_like(kept).scatter(-1, order, kept)
