"""Attention in a packed row that holds a tree: every token sees its own path to the root, and nothing else.

A packed row costs its tokens in all linear layers. Attention over it with one big mask would cost its tokens
squared, most of them masked, and a KV cache per row copies every shared key once per row that shares it. So
attention is computed in parts that waste neither: every node's queries against its own keys (causal, nodes of
similar length batched), and every node's keys against the queries of all its descendants, which in depth-first
order are the one stretch behind it (no mask, no copy). Parts are joined as in flash attention, by the logarithms
of their sums of exponentials: softmax over the whole path exactly, in any order of the parts.

transformers lets a model's attention function be replaced by name, and hands it what the trunk's caller passes
on by keyword. So this works for each architecture that goes through that interface; `reads_trees` tries it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from nlu_ppo.inference.fused import Kernel, kernel_for
from nlu_ppo.inference.tree import Node, TokenTree

NAME = "sdpa_or_tree"
CALL = 1 << 12  # what one more call of attention costs, in scores computed
COPY = 1 << 6  # what a token costs to be copied into a batch of nodes and back, in scores computed
SCORES = 1 << 19  # scores per head that one part may hold at a time


@dataclass(frozen=True)
class Stretch:
    """Queries that stand side by side in the packed row, and the keys that all of them see.

    Attributes:
        causal: queries and keys are one node's tokens, and a token sees none behind it.
    """

    queries: slice
    keys: slice
    causal: bool

    def of_queries(self, x: Tensor) -> Tensor:
        return x[:, :, self.queries]

    def of_keys(self, x: Tensor) -> Tensor:
        return x[:, :, self.keys]

    def add(self, total: Tensor, part: Tensor, keys: bool) -> None:
        """Adds to `total` what was computed for the queries (or keys) of this part."""
        total[:, :, self.keys if keys else self.queries] += part


@dataclass(frozen=True)
class Batch:
    """Short nodes of similar length side by side, each causal within itself. Padding stands behind the tokens.

    Attributes:
        index: places of their tokens in the packed row, (nodes, longest); of padding, place 0.
        padding: where in `index` padding is, (nodes, longest).
        tokens: where in the flattened index the tokens are, and `places` their places.
    """

    index: Tensor
    padding: Tensor
    tokens: Tensor
    places: Tensor
    cached: int
    causal: bool = True

    def of_queries(self, x: Tensor) -> Tensor:
        """(H, G, N, ...) to (H, G * nodes, longest, ...)."""
        return x.index_select(2, self.index.flatten()).unflatten(2, tuple(self.index.shape)).flatten(1, 2)

    def of_keys(self, x: Tensor) -> Tensor:
        chosen = x.index_select(2, (self.index + self.cached).flatten())
        return chosen.unflatten(2, tuple(self.index.shape)).flatten(1, 2)

    def add(self, total: Tensor, part: Tensor, keys: bool) -> None:
        flat = part.unflatten(1, (-1, len(self.index))).flatten(2, 3).index_select(2, self.tokens)
        total.index_add_(2, self.places + (self.cached if keys else 0), flat.to(total.dtype))


Part: TypeAlias = Stretch | Batch


@dataclass(frozen=True)
class Plan:
    """How a tree's attention is computed.

    Attributes:
        own: every node's queries against its own keys; each token is in one of these.
        above: every node's keys, and those that stand cached before the tree, against all queries below them.
    """

    own: tuple[Part, ...]
    above: tuple[Stretch, ...]


def plan(tree: TokenTree, cached: int, device: torch.device) -> Plan:
    """A plan for a tree behind `cached` keys that all of its tokens see."""
    own = [
        _batch(nodes, cached, device) if len(nodes) > 1 else _alone(nodes[0], cached)
        for nodes in _similar(tree.nodes)
    ]
    shared = [(n.end, n.until, n.start + cached, n.end + cached) for n in tree.nodes if n.until > n.end]
    if cached:
        shared.append((0, len(tree), 0, cached))
    above = [
        Stretch(slice(start, min(start + step, until)), slice(first, last), causal=False)
        for end, until, first, last in shared
        for step in [max(1, SCORES // (last - first))]
        for start in range(end, until, step)
    ]
    return Plan(tuple(own), tuple(above))


def _alone(node: Node, cached: int) -> Part:
    return Stretch(slice(node.start, node.end), slice(node.start + cached, node.end + cached), causal=True)


def _batch(nodes: Sequence[Node], cached: int, device: torch.device) -> Part:
    index = torch.zeros(len(nodes), max(map(len, nodes)), dtype=torch.long)
    padding = torch.ones(index.shape, dtype=torch.bool)
    for i, node in enumerate(nodes):
        index[i, : len(node)] = torch.arange(node.start, node.end)
        padding[i, : len(node)] = False
    tokens = (~padding).flatten().nonzero().squeeze(1)
    return Batch(index.to(device), padding.to(device), tokens.to(device), index[~padding].to(device), cached)


def _similar(nodes: Sequence[Node]) -> Iterator[list[Node]]:
    """Nodes in batches: the cheapest way to cut them, sorted by length. A node alone needs no copies."""
    ordered = sorted(nodes, key=len)
    best, cut = [0], [0]  # of the first k nodes: least cost, and where their last batch begins
    for k in range(1, len(ordered) + 1):
        longest = len(ordered[k - 1])
        costs = [best[j] + CALL + (k - j) * longest * (longest + COPY) for j in range(k - 1)]
        costs.append(best[k - 1] + CALL + longest**2)
        cut.append(min(range(k), key=costs.__getitem__))
        best.append(costs[cut[-1]])
    k = len(ordered)
    while k:
        yield ordered[cut[k] : k]
        k = cut[k]


class TreeAttention(torch.autograd.Function):
    """softmax(q k^T) v over each token's path.

    Shapes: q (H, G, N, D) of H key heads with G query heads each; k and v (H, M, D), whose last N are the tree's.
    Only q, k, v, the result and the logarithms of the sums are kept for backward; scores are computed again.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, parts: Plan) -> Tensor:
        k, v, groups, (attend, _) = k.unsqueeze(1), v.unsqueeze(1), q.shape[1], _kernel(q)

        def look(part: Part) -> tuple[Tensor, Tensor]:
            keys, values = _spread(part.of_keys(k), groups), _spread(part.of_keys(v), groups)
            found, logs = attend(part.of_queries(q), keys, values, part.causal, scale)
            return found, logs.unsqueeze(-1)

        total = torch.zeros_like(q, dtype=torch.promote_types(q.dtype, torch.float32))
        log_sum = torch.zeros_like(total[..., :1])
        for part in parts.own:
            found, logs = look(part)
            part.add(total, found, keys=False)
            part.add(log_sum, logs, keys=False)
        for stretch in parts.above:
            found, logs = look(stretch)
            out, before = stretch.of_queries(total), stretch.of_queries(log_sum)
            joined = torch.logaddexp(before, logs)
            out.mul_((before - joined).exp_()).addcmul_(found.to(out.dtype), (logs - joined).exp_())
            before.copy_(joined)
        result = total.to(q.dtype)
        ctx.save_for_backward(q, k, v, result, log_sum)
        ctx.scale, ctx.parts = scale, parts
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, log_sum = ctx.saved_tensors
        groups, (_, attend_backward) = q.shape[1], _kernel(q)
        dq, dk, dv = (torch.zeros_like(x, dtype=log_sum.dtype) for x in (q, k, v))
        for part in (*ctx.parts.own, *ctx.parts.above):
            logs = part.of_queries(log_sum).squeeze(-1)
            if isinstance(part, Batch):  # a padded query weighs nothing if its sum is infinite
                logs = logs.masked_fill(part.padding.repeat(groups, 1), torch.inf)
            found = attend_backward(
                part.of_queries(grad),
                part.of_queries(q),
                _spread(part.of_keys(k), groups),
                _spread(part.of_keys(v), groups),
                part.of_queries(out),
                logs,
                part.causal,
                ctx.scale,
            )
            part.add(dq, found[0], keys=False)
            part.add(dk, _gather(found[1], groups), keys=True)
            part.add(dv, _gather(found[2], groups), keys=True)
        return dq.to(q.dtype), dk.squeeze(1).to(k.dtype), dv.squeeze(1).to(v.dtype), None, None


def _spread(x: Tensor, groups: int) -> Tensor:
    """Keys or values (H, n, ...) for all query heads, (H, G * n, ...)."""
    return x.unsqueeze(1).expand(-1, groups, -1, -1, -1).flatten(1, 2)


def _gather(x: Tensor, groups: int) -> Tensor:
    """Gradients of what `_spread` gave as the gradient of what it got."""
    return x.unflatten(1, (groups, -1)).sum(1) if groups > 1 else x


# -- attention to one part's keys ----------------------------------------------------------------------------
# (batch, heads, tokens, numbers) to the result and the logarithm of the sum of exponentials (batch, heads, tokens)


def _attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    scores = _scores(q, k, causal, scale)
    peak = scores.amax(-1, keepdim=True)
    weights = scores.sub_(peak).exp_()
    total = weights.sum(-1, keepdim=True)
    return torch.matmul(weights.to(v.dtype), v).to(weights.dtype).div_(total), (peak + total.log()).squeeze(
        -1
    )


def _attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v through this part, where `out` and `log_sum` are those of all parts together."""
    weights = _scores(q, k, causal, scale).sub_(log_sum.unsqueeze(-1)).exp_()
    delta = (grad.to(weights.dtype) * out).sum(-1, keepdim=True)
    slope = torch.matmul(grad, v.mT).to(weights.dtype).sub_(delta).mul_(weights).mul_(scale).to(q.dtype)
    dv = torch.matmul(weights.to(v.dtype).mT, grad)
    return torch.matmul(slope, k), torch.matmul(slope.mT, q), dv


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    scores = torch.matmul(q, k.mT).to(torch.promote_types(q.dtype, torch.float32)).mul_(scale)
    if causal:
        unseen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu_(1)
        scores.masked_fill_(unseen, -torch.inf)
    return scores


WRITTEN_OUT = Kernel("written out", _attend, _attend_backward)


def _kernel(q: Tensor) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward: torch's fused kernel, which leaves out what a causal mask hides, where there is one that
    gives the logarithms of its sums; elsewhere the same written out."""
    kernel = kernel_for(q, WRITTEN_OUT)
    return kernel.forward, kernel.backward


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree: Plan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' SDPA, and tree attention where the trunk's caller passes a `tree`.

    Shapes: query (1, heads, tokens, numbers), key and value (1, key heads, cached + tokens, numbers).
    """
    if tree is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    assert dropout == 0.0, "a token that several rows share can draw one dropout mask only"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _in_tree(query, key, value, scale, tree), None


@torch.compiler.disable  # a plan is another for every batch, and its parts run kernels that are fused already
def _in_tree(query: Tensor, key: Tensor, value: Tensor, scale: float, tree: Plan) -> Tensor:
    grouped = query.squeeze(0).unflatten(0, (key.shape[1], -1))
    out: Tensor = TreeAttention.apply(grouped, key.squeeze(0), value.squeeze(0), scale, tree)
    return out.flatten(0, 1).transpose(0, 1).unsqueeze(0).contiguous()


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
