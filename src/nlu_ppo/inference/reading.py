"""Runs rows of tokens through a policy's trunk, each common prefix once, and says which state is whose.

Three ways give the same states and gradients: the packed tree of the rows; padded rows behind the one prefix
that all share, for models whose attention can't be told of a tree; and plain padded rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from nlu_ppo.inference import tree_attention
from nlu_ppo.inference.prefix import SharedPrefix, pad, pad_id
from nlu_ppo.inference.tree import Ids, TokenTree, build, distinct
from nlu_ppo.models.policy import Policy

LEAST = 16  # tokens that a node must save: it costs a few operators in every layer
WORTH = 0.95  # share of the padded rows' tokens at most that makes a tree worth its own operators


@dataclass(frozen=True)
class Reading:
    """Hidden states of rows.

    Attributes:
        hidden: (tokens, hidden), some of them perhaps padding.
        places: per row, where the states of its tokens are, from token `skipped` on.
        skipped: tokens at the beginning of every row whose states are not given back.
    """

    hidden: Tensor
    places: tuple[Sequence[int], ...]
    skipped: int


def read(
    policy: Policy,
    rows: Sequence[Ids],
    first: Sequence[int],
    share: bool = True,
    prefix: SharedPrefix | None = None,
) -> Reading:
    """Reads rows with gradient. States are given from `first` of each on; others are undefined or left out.

    Args:
        share: run common prefixes once; otherwise every row runs all of its tokens (the plain way).
        prefix: one that has been run already, shorter than any `first`.
    """
    skip, limit = prefix.length if prefix is not None else 0, min(first) if share else 0
    if share and reads_trees(policy):
        if _worth(rows, skip):
            tree = build(rows, skip, LEAST)
            wanted = [p for path, f in zip(tree.places, first, strict=True) for p in path[f - skip :]]
            hidden = read_tree(policy, tree, prefix.expand(1) if prefix and skip else None, wanted)
            return Reading(hidden, tree.places, skip)
        limit = 0  # there is little to share
    return _read_padded(policy, rows, first, prefix or SharedPrefix(policy, rows, limit=limit))


def _worth(rows: Sequence[Ids], skip: int) -> bool:
    """Whether a tree of the rows behind their first `skip` tokens is enough smaller than the rows padded."""
    return distinct(rows, skip) <= WORTH * len(rows) * (max(map(len, rows)) - skip)


def _read_padded(policy: Policy, rows: Sequence[Ids], first: Sequence[int], prefix: SharedPrefix) -> Reading:
    """Padded rows behind the one prefix that all share."""
    suffixes = [row[prefix.length :] for row in rows]
    ids, mask = pad(suffixes, pad_id(policy.tokenizer), "right", policy.device)
    mask = torch.cat([mask.new_ones(len(rows), prefix.length), mask], dim=1)
    positions = torch.arange(prefix.length, mask.shape[1], device=policy.device).expand(len(rows), -1)
    cache = prefix.expand(len(rows)) if prefix.length else None
    starts = range(0, ids.numel(), ids.shape[1])
    places = tuple(range(start, start + len(s)) for start, s in zip(starts, suffixes, strict=True))
    wanted = [p for path, f in zip(places, first, strict=True) for p in path[f - prefix.length :]]
    hidden = policy.hidden(ids, mask, positions, cache, _distinct(wanted, policy))
    return Reading(hidden.flatten(0, 1), places, prefix.length)


@dataclass(frozen=True)
class Predictors:
    """The states that predict completions: S of them, for B completions of T tokens at most.

    Attributes:
        hidden: (S, hidden), each once, however many completions it predicts a token of.
        which: state of every completion token, (B, T).
        targets: the completions' tokens, (B, T).
        mask: 1 on tokens, 0 on padding, (B, T).
    """

    hidden: Tensor
    which: Tensor
    targets: Tensor
    mask: Tensor


def read_completions(
    policy: Policy,
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    share: bool = True,
    prefix: SharedPrefix | None = None,
) -> Predictors:
    """Reads completions behind their prompts; arguments as of `read`."""
    # The last completion token predicts nothing, so that it never enters the model.
    rows = [[*p, *c[:-1]] for p, c in zip(prompts, completions, strict=True)]
    first = [len(p) - 1 for p in prompts]
    reading = read(policy, rows, first, share, prefix)
    # Completion token t is predicted by the prompt's last token, plus t.
    predictors = [p[f - reading.skipped :] for p, f in zip(reading.places, first, strict=True)]
    places, mask = pad(predictors, predictors[0][0], "right", policy.device)
    needed, which = places.unique(return_inverse=True)
    targets, _ = pad(completions, 0, "right", policy.device)
    return Predictors(reading.hidden[needed], which, targets, mask)


def prefill(
    policy: Policy, prefix: SharedPrefix, rows: Sequence[Ids]
) -> tuple[DynamicCache, Tensor, Tensor, Tensor]:
    """Runs prompts behind their prefix, for decoding.

    Returns:
        the cache, its mask (rows, tokens), the position of the next token (rows, 1), and the hidden states that
        predict it (rows, hidden). Rows of unequal length are padded on the left, before their first token, so that
        the last column is everyone's last token. A gap anywhere else would be wrong: sliding windows and some
        ALiBi (MPT's) count the columns of the cache, whatever mask and positions say.
    """
    suffixes = [row[prefix.length :] for row in rows]
    packed = reads_trees(policy) and _worth(rows, prefix.length)
    if packed:
        tree = build(rows, prefix.length, LEAST)
        cache = prefix.expand(1)
        ends = [path[-1] for path in tree.places]
        hidden = read_tree(policy, tree, cache, ends)
        shared = range(prefix.length)
        columns = [[*shared, *(p + prefix.length for p in path)] for path in tree.places]
    else:
        ids, mask = pad(suffixes, pad_id(policy.tokenizer), "right", policy.device)
        mask = torch.cat([mask.new_ones(len(rows), prefix.length), mask], dim=1)
        positions = torch.arange(prefix.length, mask.shape[1], device=policy.device).expand(len(rows), -1)
        cache = prefix.expand(len(rows))
        ends = [i * ids.shape[1] + len(suffix) - 1 for i, suffix in enumerate(suffixes)]
        hidden = policy.hidden(ids, mask, positions, cache, _distinct(ends, policy)).flatten(0, 1)
        columns = [list(range(len(row))) for row in rows]
    index, mask = pad(columns, 0, "left", policy.device)
    if packed or not mask.all():
        cache = _rows_of(cache, index)
    return cache, mask, mask.sum(1, keepdim=True), hidden[torch.tensor(ends, device=policy.device)]


def _rows_of(cache: DynamicCache, index: Tensor) -> DynamicCache:
    """The cache of rows whose tokens stand in the columns `index`, (rows, tokens), of `cache`: of the same rows
    there, or of one packed row."""
    found = DynamicCache()
    layers: list[Any] = list(cache.layers)
    for number, layer in enumerate(layers):
        keys, values = (_columns(x, index) for x in (layer.keys, layer.values))
        found.update(keys, values, number)
    return found


def _columns(x: Tensor, index: Tensor) -> Tensor:
    if len(x) == 1:
        return x[0].index_select(1, index.flatten()).unflatten(1, tuple(index.shape)).transpose(0, 1)
    return x[torch.arange(len(x), device=x.device).unsqueeze(1), :, index].transpose(1, 2)


def read_tree(
    policy: Policy, tree: TokenTree, cache: DynamicCache | None = None, wanted: Sequence[int] | None = None
) -> Tensor:
    """Hidden states, (tokens, hidden), of a packed row.

    Args:
        cache: of one row that stands before the tree; the tree's own keys and values are added to it.
        wanted: places whose states are asked for, perhaps more than once; all if `None`.
    """
    parts = tree_attention.plan(tree, cache.get_seq_length() if cache is not None else 0, policy.device)
    ids = torch.tensor([tree.ids], device=policy.device)
    positions = torch.tensor([tree.positions], device=policy.device)
    # A mask of four dimensions is taken as it is, and tree attention has no use for any.
    mask = torch.zeros(1, 1, 1, 1, device=policy.device, dtype=policy.base.dtype)
    asked = None if wanted is None else _distinct(wanted, policy)
    return policy.hidden(ids, mask, positions, cache, asked, tree=parts).squeeze(0)


def _distinct(places: Sequence[int], policy: Policy) -> Tensor:
    return torch.tensor(sorted(set(places)), device=policy.device)


def reads_trees(policy: Policy) -> bool:
    """Whether the policy's attention can be told of a tree, tried once with a small one."""
    if policy.reads_trees is None:
        policy.reads_trees = _try_tree(policy)
    return policy.reads_trees


def sees_everything(config: Any) -> bool:
    """Whether every layer attends to all that came before: windows are longer than what a small try would notice."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return kinds == {"full_attention"} and not any(windows)


def _alike(logits: Tensor, true: Tensor, dtype: torch.dtype) -> bool:
    """Whether logits differ by rounding at most, in the norm. In bfloat16 two right ways through a model were found
    to differ by 1%, and ways where tokens see too much or too little of the tree by 18% and more."""
    spread = (true - true.mean(-1, keepdim=True)).norm()
    return bool((logits - true).norm() <= max(1e-2, 12 * torch.finfo(dtype).eps) * spread)


def _try_tree(policy: Policy) -> bool:
    config = policy.trunk.config
    before, training = config._attn_implementation, policy.model.training
    if before not in ("sdpa", tree_attention.NAME) or not sees_everything(config):
        return False
    rows = [
        [token % config.vocab_size for token in row] for row in ([1, 2, 3, 4, 5], [1, 2, 6, 7], [1, 2, 6, 1])
    ]
    tree = build(rows)
    config._attn_implementation = tree_attention.NAME
    policy.model.eval()  # dropout would tell any two forwards apart
    try:
        with torch.inference_mode():
            packed = policy.logits(read_tree(policy, tree))
            works = all(
                _alike(
                    packed[list(places)],
                    policy.logits(policy.hidden(torch.tensor([row], device=policy.device))[0]),
                    policy.base.dtype,
                )
                for row, places in zip(rows, tree.places, strict=True)
            )
    except (TypeError, ValueError, RuntimeError):  # an architecture that wants another call
        works = False
    policy.model.train(training)
    if not works:
        config._attn_implementation = before
    return works
