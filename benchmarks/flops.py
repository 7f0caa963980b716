"""Floating-point operations that the mathematics of a PPO step needs, counted on the prompts themselves.

A multiplication and an addition count 2. Counted are matrix products (attention's included); elementwise work
is not. What prompts begin with alike is counted once where it is shared: the rows of a batch are a tree of
tokens, and its nodes are what has to be computed. The floor of

- the rollout: all prompts as one tree, then the drawn tokens one by one; log-probabilities and values of the
  policy come with them;
- the reference: the own parts of the rows (what all rows begin with never changes there, so that one
  computation serves a whole run);
- the update: per epoch and minibatch, forward and backward over the tree of its rows.

The last layer is counted for every token, although only keys and values are needed of one that predicts nothing.

tests/test_benchmarks.py compares the counts with those of torch's FlopCounterMode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.workload import Lora, Shape, Workload

Row = Sequence[int]


@dataclass(frozen=True)
class Work:
    """What passes through a model: tokens, pairs (query, key) of causal attention, positions with logits."""

    tokens: int
    pairs: int
    heads: int

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.pairs + other.pairs, self.heads + other.heads)


def plain(rows: Sequence[Row], heads: int) -> Work:
    """Every row on its own, without padding."""
    lengths = [len(row) for row in rows]
    return Work(sum(lengths), sum(n * (n + 1) // 2 for n in lengths), heads)


def tree(rows: Sequence[Row], heads: int, skip: int = 0) -> Work:
    """What rows begin with alike only once; the first `skip` tokens of every row are there already."""
    tokens = pairs = 0
    previous: Row = ()
    for row in sorted(tuple(row) for row in rows):
        known = 0  # in lexicographic order, the row before shares the most
        while known < min(len(row), len(previous)) and row[known] == previous[known]:
            known += 1
        new = range(max(known, skip), len(row))
        tokens += len(new)
        pairs += sum(depth + 1 for depth in new)
        previous = row
    return Work(tokens, pairs, heads)


@dataclass(frozen=True)
class Model:
    """Costs of one token, one attended pair and one position's logits."""

    shape: Shape
    lora: Lora | None

    @property
    def _sizes(self) -> dict[str, tuple[int, int]]:
        h, i = self.shape.hidden, self.shape.intermediate
        keys = h // self.shape.heads * (self.shape.key_heads or self.shape.heads)
        attention = {"q_proj": (h, h), "k_proj": (h, keys), "v_proj": (h, keys), "o_proj": (h, h)}
        return {**attention, "gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}

    @property
    def _frozen(self) -> int:
        """Weights of a layer that every token meets."""
        return sum(a * b for a, b in self._sizes.values())

    @property
    def _adapted(self) -> int:
        """Weights of a layer's adapters."""
        if self.lora is None:
            return 0
        return sum(self.lora.r * sum(self._sizes[name]) for name in self.lora.targets)

    @property
    def _first_inputs(self) -> int:
        """Weights that read the embeddings, for whose gradient nobody asks."""
        sizes, adapted = self._sizes, self.lora.targets if self.lora else ()
        rank = self.lora.r if self.lora else 0
        readers = ("q_proj", "k_proj", "v_proj")
        return sum(sizes[n][0] * (sizes[n][1] + (rank if n in adapted else 0)) for n in readers)

    def forward(self, work: Work) -> int:
        shape = self.shape
        token = 2 * shape.layers * (self._frozen + self._adapted)
        pair = 4 * shape.layers * shape.hidden  # the score, and the weighted sum of values
        return work.tokens * token + work.pairs * pair + work.heads * 2 * shape.hidden * shape.vocabulary

    def backward(self, work: Work) -> int:
        """Frozen weights pass a gradient on but get none; adapters do both; attention has two factors."""
        shape = self.shape
        token = 2 * shape.layers * (self._frozen + 2 * self._adapted) - 2 * self._first_inputs
        pair = 8 * shape.layers * shape.hidden
        return work.tokens * token + work.pairs * pair + work.heads * 2 * shape.hidden * shape.vocabulary


@dataclass(frozen=True)
class Step:
    """Operations of one PPO step on one batch."""

    rollout: int
    reference: int
    update: int

    @property
    def total(self) -> int:
        return self.rollout + self.reference + self.update


def _decoding(prompts: Sequence[Row], tokens: int) -> Work:
    """All drawn tokens but the last, which nothing follows, each behind its whole row."""
    steps = range(1, tokens)
    return Work(
        tokens=len(prompts) * len(steps),
        pairs=sum(len(row) + t for row in prompts for t in steps),
        heads=len(prompts) * tokens,
    )


def _answered(prompts: Sequence[Row], tokens: int) -> list[tuple[int, ...]]:
    """Prompts with their completions' inputs; completions of two rows count as different."""
    return [(*row, *(-1 - i for _ in range(tokens - 1))) for i, row in enumerate(prompts)]


def needed(workload: Workload, *, share: bool = True) -> Step:
    """The floor of one step; with `share=False` that of rows that are computed each on its own."""
    bare, adapted = Model(workload.shape, None), Model(workload.shape, workload.lora)
    prompts, tokens, size = workload.prompts, workload.response_tokens, workload.minibatch_size
    rows = _answered(prompts, tokens)
    heads = len(rows) * tokens
    # which rows meet in a minibatch is drawn anew every epoch: neighbours stand for any
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]
    if share:
        prompt_work = tree(prompts, 0)
        reference = tree(rows, heads, skip=common_length(prompts))
        update = [tree(group, len(group) * tokens) for group in groups]
    else:
        prompt_work, reference = plain(prompts, 0), plain(rows, heads)
        update = [plain(group, len(group) * tokens) for group in groups]
    passes = sum(adapted.forward(work) + adapted.backward(work) for work in update)
    return Step(
        rollout=adapted.forward(prompt_work + _decoding(prompts, tokens)),
        reference=bare.forward(reference),
        update=workload.epochs * passes,
    )


def needed_for_labels(workload: Workload) -> int:
    """The floor of scoring every label behind every prompt: the tree of prompts, then that of the labels."""
    inner = tree([label[:-1] for label in workload.labels], 0)  # a last token predicts nothing
    count, depths = len(workload.prompts), sum(len(row) for row in workload.prompts)
    labels = Work(inner.tokens * count, inner.pairs * count + inner.tokens * depths, 0)
    # one position of logits per prompt, and one behind every inner node
    heads = count * (1 + inner.tokens)
    return Model(workload.shape, None).forward(tree(workload.prompts, heads) + labels)


def common_length(rows: Sequence[Row]) -> int:
    """Tokens that all rows begin with."""
    first, last = min(map(tuple, rows)), max(map(tuple, rows))
    length = 0
    while length < min(len(first), len(last)) and first[length] == last[length]:
        length += 1
    return length
