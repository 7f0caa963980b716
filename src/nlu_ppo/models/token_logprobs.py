"""Log-probabilities of chosen tokens, and the entropy, without ever holding the logits of a whole vocabulary.

A vocabulary has 32,000 to 260,000 tokens and PPO asks for the probability of one. So the head is run over stretches
of the vocabulary, and what softmax needs is carried from one to the next, as flash attention does with keys. The
gradient of a log-probability with respect to the hidden state h is W[target] - sum_v p(v) W[v], of which the sum
needs no gradient of the loss: it is built in the same pass, and backward is nothing but a few small sums. Where
plain autograd would hold several (states, vocabulary) tensors, this holds one stretch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits held at a time: what a processor's cache takes; enough work for a GPU's kernel to be worth its start.
STRETCH = {"cpu": 1 << 16}
STRETCH_ELSEWHERE = 1 << 22


class TokenLogprobs(torch.autograd.Function):
    """Of a frozen linear head.

    Shapes: hidden (S, H), weight (V, H), bias (V,) or `None`; states and targets (P,). Gives log-probabilities of
    the targets, (P,), each predicted by its state, and the entropies of all states, (S,); both in float32 at least.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        states: Tensor,
        targets: Tensor,
        temperature: float,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        h = hidden.to(dtype) / temperature
        peak = h.new_full((len(h), 1), -torch.inf)
        total, weighted = torch.zeros_like(peak), torch.zeros_like(peak)  # sums of exp z and of z exp z
        slopes = []  # sums over the vocabulary of exp z W, and of z exp z W
        if ctx.needs_input_grad[0]:
            slopes = [torch.zeros_like(h) for _ in range(2 if entropy_gradient else 1)]
        step = max(1024, STRETCH.get(h.device.type, STRETCH_ELSEWHERE) // len(h))
        for start in range(0, len(weight), step):
            w = weight[start : start + step].to(dtype)
            z = h @ w.T
            if bias is not None:
                z += bias[start : start + step].to(dtype) / temperature
            above = torch.maximum(peak, z.amax(1, keepdim=True))
            shrink = (peak - above).exp_()
            p = (z - above).exp_()
            peak = above
            total.mul_(shrink).add_(p.sum(1, keepdim=True))
            for slope in slopes:
                slope.mul_(shrink)
            if slopes:
                slopes[0].addmm_(p, w)
            p.mul_(z)
            weighted.mul_(shrink).add_(p.sum(1, keepdim=True))
            if len(slopes) > 1:
                slopes[1].addmm_(p, w)
        log_total, mean = peak + total.log(), weighted / total
        chosen = weight[targets].to(dtype)
        logits = (h[states] * chosen).sum(1)
        if bias is not None:
            logits += bias[targets].to(dtype) / temperature
        ctx.save_for_backward(states, chosen, mean, *(slope.div_(total) for slope in slopes))
        ctx.temperature, ctx.dtype = temperature, hidden.dtype
        return logits - log_total.squeeze(1)[states], (log_total - mean).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logprobs: Tensor, of_entropy: Tensor) -> tuple[Tensor | None, ...]:
        states, chosen, mean, *slopes = ctx.saved_tensors
        per_state = torch.zeros_like(mean).index_add_(0, states, of_logprobs.unsqueeze(1))
        grad = slopes[0] * -per_state
        grad.index_add_(0, states, chosen * of_logprobs.unsqueeze(1))
        if len(slopes) > 1:
            grad += (mean * slopes[0] - slopes[1]) * of_entropy.unsqueeze(1)
        return (grad / ctx.temperature).to(ctx.dtype), None, None, None, None, None, None


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    states: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of targets under softmax(logits / temperature), and entropies in nats.

    Args:
        hidden: states that predict a token, (S, hidden).
        weight: of the head, (vocabulary, hidden); gets no gradient.
        states: which state predicts each target, any shape.
        targets: token ids, of the same shape.
        entropy_gradient: entropies pass a gradient on; otherwise they are for watching only.

    Returns:
        log-probabilities, of the targets' shape, and entropies of the states, (S,).
    """
    logprobs, entropy = TokenLogprobs.apply(
        hidden, weight, bias, states.flatten(), targets.flatten(), temperature, entropy_gradient
    )
    return logprobs.view(targets.shape), entropy if entropy_gradient else entropy.detach()
