"""The tree of token rows: what several rows begin with alike is one node, so that it is run once.

The prompts of a batch share more than their task's instruction: the answers to one passage share the passage,
several rollouts share their prompt, the tasks of a mixed batch share an instruction each. A `TokenTree` holds
such rows as one packed row, nodes in depth-first order:

    rows                    packed
    I P Q a                 I P Q a b | R c
    I P Q b                 node 0: I P, node 1: Q, node 2: a, node 3: b, node 4: R c
    I P R c                 positions (depth): I P = 0 1, Q = 2, a = b = 3, R = 2, c = 3

A token sees its own path to the root and nothing else (see `inference.tree_attention`). Depth-first order makes
all descendants of a node the stretch of tokens behind it. No torch here: this is bookkeeping.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

Ids = Sequence[int]


@dataclass(frozen=True)
class Node:
    """A stretch of tokens that some rows share.

    Attributes:
        parent: index of the node before it; -1 at a root.
        start: first token in the packed row; `end` is the one behind its last.
        until: the token behind its last descendant.
        depth: tokens on the path before it, which is the position of its first token.
    """

    parent: int
    start: int
    end: int
    until: int
    depth: int

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class TokenTree:
    """Rows of tokens, packed into one.

    Attributes:
        ids: the packed row.
        positions: of its tokens, each counted from the beginning of the rows that it is in.
        places: per row, where in the packed row its tokens stand.
    """

    nodes: tuple[Node, ...]
    ids: tuple[int, ...]
    positions: tuple[int, ...]
    places: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.ids)


def build(rows: Sequence[Ids], skip: int = 0, least: int = 1) -> TokenTree:
    """Packs rows.

    Args:
        skip: so many first tokens, which all rows share, stand in a cache: they are left out, and counted in
            positions.
        least: split off a common beginning only where that saves so many tokens. With 1 every distinct
            beginning of a row is there exactly once, which is the least that any packing can do.
    """
    paths, path_of = _longest(rows)
    nodes: list[Node] = []
    ids: list[int] = []
    positions: list[int] = []
    leaf_of = [-1] * len(paths)
    pending = [(0, len(paths), skip, -1)] if paths else []
    while pending:
        low, high, depth, parent = pending.pop()
        end = alike(paths[low], paths[high - 1])  # sorted, so that the first and the last differ soonest
        assert end >= skip, "rows differ in the tokens to skip"
        cuts = [i for i in range(low + 1, high) if paths[i][end] != paths[i - 1][end]]
        if high - low == 1 or (end - depth) * len(cuts) >= least:
            start = len(ids)
            ids += paths[low][depth:end]
            positions += range(depth, end)
            nodes.append(Node(parent, start, len(ids), len(ids), depth))
            parent, depth = len(nodes) - 1, end
        if high - low == 1:
            leaf_of[low] = parent
        else:
            branches = list(pairwise([low, *cuts, high]))
            pending += [(a, b, depth, parent) for a, b in reversed(branches)]
    for index in reversed(range(len(nodes))):
        node = nodes[index]
        if node.parent >= 0:
            above = nodes[node.parent]
            nodes[node.parent] = replace(above, until=max(above.until, node.until))
    walks = [_walk(nodes, leaf) for leaf in leaf_of]
    places = tuple(walks[path_of[i]][: len(row) - skip] for i, row in enumerate(rows))
    return TokenTree(tuple(nodes), tuple(ids), tuple(positions), places)


def distinct(rows: Sequence[Ids], skip: int = 0) -> int:
    """Tokens that a tree of the rows has at least, without building it; `skip` as of `build`."""
    ordered = sorted(tuple(row) for row in rows)
    known = sum(max(alike(a, b) - skip, 0) for a, b in pairwise(ordered))  # sorted neighbours share the most
    return sum(len(row) - skip for row in ordered) - known


def alike(a: Ids, b: Ids) -> int:
    """Number of tokens that two rows begin with alike."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)


def bundles(rows: Sequence[Ids], size: int, tokens: int | None = None) -> Iterator[list[int]]:
    """Row numbers in bundles for one forward each, those that share most side by side.

    Args:
        size: rows of a bundle.
        tokens: fill bundles up to so many tokens instead, those that rows share counted once; a row that is
            longer still gets a bundle of its own.
    """
    bundle: list[int] = []
    held = 0
    for row in sorted(range(len(rows)), key=lambda i: (tuple(rows[i]), i)):
        more = len(rows[row]) - (alike(rows[bundle[-1]], rows[row]) if bundle else 0)
        full = len(bundle) == size if tokens is None else held + more > tokens
        if bundle and full:
            yield bundle
            bundle, held, more = [], 0, len(rows[row])
        bundle.append(row)
        held += more
    if bundle:
        yield bundle


def _longest(rows: Sequence[Ids]) -> tuple[list[tuple[int, ...]], list[int]]:
    """The distinct rows that are no other row's beginning, sorted downwards, and which of them each row begins."""
    paths: list[tuple[int, ...]] = []
    path_of = [-1] * len(rows)
    for i in sorted(range(len(rows)), key=lambda i: tuple(rows[i]), reverse=True):
        row = tuple(rows[i])
        if not paths or paths[-1][: len(row)] != row:  # a beginning is sorted next to what it begins
            paths.append(row)
        path_of[i] = len(paths) - 1
    return paths, path_of


def _walk(nodes: Sequence[Node], leaf: int) -> tuple[int, ...]:
    """Places of the tokens from the root to the end of a leaf."""
    stretches: list[range] = []
    while leaf >= 0:
        stretches.append(range(nodes[leaf].start, nodes[leaf].end))
        leaf = nodes[leaf].parent
    return tuple(place for stretch in reversed(stretches) for place in stretch)
