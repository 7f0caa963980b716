"""The tree of prefixes: every token of every row once on its path, and no token more than that takes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from nlu_ppo.inference.tree import build, bundles, distinct
from nlu_ppo.inference.tree_attention import Batch, plan

TOKEN = st.integers(0, 2)
ROWS = st.lists(st.lists(TOKEN, min_size=1, max_size=9), min_size=1, max_size=8)
LEAST = st.integers(1, 6)


def beginnings(rows: list[list[int]], skip: int = 0) -> int:
    """Distinct beginnings of rows, which is what any packing must hold."""
    return len({tuple(row[: n + 1]) for row in rows for n in range(skip, len(row))})


@given(ROWS, LEAST)
def test_every_row_is_a_path(rows: list[list[int]], least: int) -> None:
    tree = build(rows, least=least)
    assert len(tree.positions) == len(tree.ids)
    for row, places in zip(rows, tree.places, strict=True):
        assert [tree.ids[p] for p in places] == row
        assert [tree.positions[p] for p in places] == list(range(len(row)))
    assert {p for places in tree.places for p in places} == set(range(len(tree)))  # and nothing else is there


@given(ROWS)
def test_no_token_is_there_twice(rows: list[list[int]]) -> None:
    assert len(build(rows)) == beginnings(rows) == distinct(rows)
    assert len({build(rows, least=1).places[i] for i in range(len(rows))}) == len(set(map(tuple, rows)))


@given(ROWS, LEAST)
def test_what_saves_little_stays_with_the_rows(rows: list[list[int]], least: int) -> None:
    tree = build(rows, least=least)
    assert beginnings(rows) <= len(tree) <= sum(map(len, rows))
    for index, node in enumerate(tree.nodes):
        children = sum(other.parent == index for other in tree.nodes)
        assert children == 0 or len(node) > 0


@given(ROWS, st.lists(TOKEN, min_size=1, max_size=5))
def test_skipped_tokens_count_in_positions_only(rows: list[list[int]], first: list[int]) -> None:
    whole, skipped = [first + row for row in rows], len(first)
    tree = build(whole, skip=skipped)
    assert len(tree) == beginnings(whole, skipped)
    for row, places in zip(rows, tree.places, strict=True):
        assert [tree.ids[p] for p in places] == row
        assert [tree.positions[p] for p in places] == list(range(skipped, skipped + len(row)))


@given(ROWS, LEAST, st.integers(0, 3))
def test_attention_meets_every_pair_of_a_path_once(rows: list[list[int]], least: int, cached: int) -> None:
    """The plan's parts against the definition: a token sees the cached ones, and its path up to itself."""
    tree = build(rows, least=least)
    seen = torch.zeros(len(tree), cached + len(tree), dtype=torch.long)
    parts = plan(tree, cached, torch.device("cpu"))
    for part in (*parts.own, *parts.above):
        if isinstance(part, Batch):
            for places, padding in zip(part.index.tolist(), part.padding.tolist(), strict=True):
                real = [p for p, pad in zip(places, padding, strict=True) if not pad]
                for i, place in enumerate(real):
                    seen[place, [cached + p for p in real[: i + 1]]] += 1
        else:
            block = torch.ones_like(seen[part.queries, part.keys])
            seen[part.queries, part.keys] += block.tril() if part.causal else block
    expected = torch.zeros_like(seen)
    expected[:, :cached] = 1
    for places in tree.places:
        for i, place in enumerate(places):
            expected[place, [cached + p for p in places[: i + 1]]] = 1
    assert (seen == expected).all()


@given(ROWS, st.integers(1, 4), st.none() | st.integers(1, 25))
def test_bundles_hold_every_row_once_within_their_budget(
    rows: list[list[int]], size: int, tokens: int | None
) -> None:
    found = list(bundles(rows, size, tokens))
    assert sorted(i for bundle in found for i in bundle) == list(range(len(rows)))
    for bundle in found:
        if tokens is None:
            assert len(bundle) <= size
        else:
            assert len(bundle) == 1 or beginnings([rows[i] for i in bundle]) <= tokens


def test_by_hand() -> None:
    """The example of the module's own text."""
    tree = build([[1, 2, 3, 7], [1, 2, 3, 8], [1, 2, 4, 9]])
    assert len(tree) == 2 + 1 + 1 + 1 + 2
    assert sorted((n.depth, len(n), n.until - n.end) for n in tree.nodes) == [
        (0, 2, 5), (2, 1, 2), (2, 2, 0), (3, 1, 0), (3, 1, 0),
    ]  # fmt: skip


def test_of_nothing() -> None:
    assert len(build([])) == 0
    assert build([]).places == ()
