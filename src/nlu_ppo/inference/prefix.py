"""The shared prefix: the tokens that all prompts of a batch begin with, run once and reused by every row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from nlu_ppo.models.policy import Policy
from nlu_ppo.prompting import common_prefix_length


class SharedPrefix:
    """Keys and values of a token prefix, computed once, handed out to batches of any size.

    With gradients enabled the cache stays in the autograd graph: training through it gives the gradients of
    plain rows. Without a prefix (`length` 0) every batch starts from an empty cache; so it is with layers that
    keep no cache since they checkpoint, where the prefix alone would be another one (`Policy.short_length`), and with
    gradients through sharded layers.

    Args:
        rows: prompts as token ids; the prefix is what all of them share, at most all but one token.
        limit: use at most so many tokens of it (0 switches sharing off).
    """

    def __init__(self, policy: Policy, rows: Sequence[Sequence[int]], limit: int | None = None) -> None:
        length, short = common_prefix_length(rows), policy.short_length
        if not policy.keeps_caches or (short is not None and length <= short < max(map(len, rows))):
            length = 0
        if policy.shards is not None and torch.is_grad_enabled():
            length = 0  # a backward pass through sharded layers is that of one forward pass
        self.length = length if limit is None else min(length, limit)
        self.ids = tuple(rows[0][: self.length]) if self.length else ()
        self._layers: list[tuple[Tensor, Tensor]] = []
        if self.length:
            ids = torch.tensor([self.ids], device=policy.device)
            positions = torch.arange(self.length, device=policy.device).unsqueeze(0)
            cache = DynamicCache()
            # nobody asks for the states; one, since an MLP may not like to be run on nothing
            policy.hidden(ids, position_ids=positions, cache=cache, wanted=positions[0, -1:])
            layers: list[Any] = list(cache.layers)
            self._layers = [(layer.keys, layer.values) for layer in layers]

    def expand(self, batch: int) -> DynamicCache:
        """A cache of `batch` rows that all begin with the prefix."""
        cache = DynamicCache()
        for index, (keys, values) in enumerate(self._layers):
            cache.update(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1), index)
        return cache


def pad(rows: Sequence[Sequence[int]], value: int, side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of unequal length as one tensor, (rows, longest), and its mask (1 = token, 0 = padding)."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), value, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, where] = torch.tensor(row, dtype=torch.long)
        mask[i, where] = 1
    return ids.to(device), mask.to(device)


def pad_id(tokenizer: Any) -> int:
    """A token to pad with; masked everywhere, so any will do where the tokenizer names none."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
