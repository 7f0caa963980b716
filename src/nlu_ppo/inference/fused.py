"""torch's fused attention kernels that also give the logarithms of their sums, by which parts are joined.

They are no public interface of torch: what they take and give has changed between its versions, and what they support
goes by card, data type and size of a head. So a kernel for CUDA is tried before it is used, forward and backward,
against the same written out; one that fails or differs is left alone.

All take (batch, heads, tokens, numbers) and give the result, with the logarithms of the sums, (batch, heads, tokens).
Backward takes result and logarithms of all parts together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nlu_ppo.models.room import first_line, is_out_of_memory

log = logging.getLogger(__name__)

aten = torch.ops.aten
ALIGNED = 32  # the efficient kernel's logarithms come in multiples of so many tokens


@dataclass(frozen=True)
class Kernel:
    """Attention to one part's keys, and its backward pass."""

    name: str
    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


# -- on the CPU ----------------------------------------------------------------------------------------------


def _cpu(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)


def _cpu_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k, v, out, log_sum, 0.0, causal, scale=scale
    )


# -- on CUDA -------------------------------------------------------------------------------------------------


def _flash(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    out, log_sum, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)
    return out, log_sum


def _flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    seed, unused = (torch.zeros(n, dtype=torch.uint64, device=q.device) for n in ((2,), ()))  # of dropout
    logs = aten.clone(log_sum, memory_format=torch.contiguous_format)
    return aten._scaled_dot_product_flash_attention_backward(
        grad, q, k, v, out, logs, None, None, q.shape[2], k.shape[2], 0.0, causal, seed, unused, scale=scale
    )


def _efficient(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    out, log_sum, *_ = aten._scaled_dot_product_efficient_attention(
        q, k, v, None, True, 0.0, causal, scale=scale
    )
    return out, log_sum.narrow(-1, 0, q.shape[2])


def _efficient_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    missing = -log_sum.shape[-1] % ALIGNED
    logs = torch.nn.functional.pad(log_sum, (0, missing), value=torch.inf).contiguous()
    seed, offset = (torch.zeros((), dtype=torch.int64, device=q.device) for _ in range(2))  # of dropout
    dq, dk, dv, _ = aten._scaled_dot_product_efficient_attention_backward(
        grad, q, k, v, None, out, logs, seed, offset, 0.0, [True, True, True, False], causal, scale=scale
    )
    return dq, dk, dv


CPU = Kernel("flash", _cpu, _cpu_backward)
FLASH = Kernel("flash", _flash, _flash_backward)
EFFICIENT = Kernel("memory-efficient", _efficient, _efficient_backward)
ON_CUDA = {
    torch.bfloat16: (FLASH, EFFICIENT),
    torch.float16: (FLASH, EFFICIENT),
    torch.float32: (EFFICIENT,),  # flash attention has no float32
}


# -- the choice ----------------------------------------------------------------------------------------------

_chosen: dict[tuple[torch.device, torch.dtype, int], Kernel] = {}


def kernel_for(q: Tensor, written_out: Kernel) -> Kernel:
    """The kernel for queries like `q`: a fused one if there is one that works, else the one written out."""
    if q.device.type == "cpu":
        there = hasattr(aten, "_scaled_dot_product_flash_attention_for_cpu_backward")
        return CPU if there else written_out
    if q.device.type != "cuda" or q.dtype not in ON_CUDA:
        return written_out
    place = (q.device, q.dtype, q.shape[-1])
    if place not in _chosen:
        _chosen[place] = choose(ON_CUDA[q.dtype], written_out, *place)
    return _chosen[place]


def choose(
    kernels: Sequence[Kernel], written_out: Kernel, device: torch.device, dtype: torch.dtype, numbers: int
) -> Kernel:
    """The first kernel that does what the one written out does, which is taken if none does; says which.

    Args:
        numbers: of a head.
    """
    where = f"attention in trees on {device} ({str(dtype).removeprefix('torch.')}, heads of {numbers})"
    faults = []
    for kernel in kernels:
        fault = fault_of(kernel, written_out, device, dtype, numbers)
        if fault is None:
            log.info("%s: torch's %s kernel", where, kernel.name)
            return kernel
        faults.append(f"{kernel.name}: {fault}")
    log.warning("%s: written out, since torch's kernels don't do here (%s)", where, "; ".join(faults))
    return written_out


@torch.no_grad()
def fault_of(
    kernel: Kernel, written_out: Kernel, device: torch.device, dtype: torch.dtype, numbers: int
) -> str | None:
    """What is wrong with a kernel, in words; `None` if it gives what the one written out gives, to rounding."""
    try:
        for case, found, true in _both(kernel, written_out, device, dtype, numbers):
            if found.shape != true.shape:
                return f"{case} has the shape {tuple(found.shape)} in place of {tuple(true.shape)}"
            off = ((found.double() - true.double()).norm() / true.double().norm().clamp(min=1e-6)).item()
            if not off <= max(2e-3, 4 * torch.finfo(dtype).eps):  # NaN is none
                return f"{case} is off by {off:.2g}"
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return first_line(error)
    return None


def _both(
    kernel: Kernel, written_out: Kernel, device: torch.device, dtype: torch.dtype, numbers: int
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What both give, as trees ask for it: queries that see keys of their own and others above them."""
    own, above, scale = 37, 53, numbers**-0.5

    def some(tokens: int, shift: float) -> Tensor:
        # waves in place of random numbers, of which a run's own must not be used up
        x = torch.arange(2 * 3 * tokens * numbers, device=device, dtype=torch.float64)
        return torch.sin(x * (0.7 + shift) + shift).view(2, 3, tokens, numbers).mul_(1.5).to(dtype)

    q, grad = some(own, 0.1), some(own, 0.2)
    parts = [(some(own, 0.3), some(own, 0.4), True), (some(above, 0.5), some(above, 0.6), False)]
    trues = []
    for k, v, causal in parts:
        name = "causal" if causal else "the result"
        found = kernel.forward(q, k, v, causal, scale)
        true = written_out.forward(q.float(), k.float(), v.float(), causal, scale)
        yield name, found[0], true[0]
        yield f"{name}'s sum", found[1], true[1]
        trues.append(true)
    log_sum = torch.logaddexp(trues[0][1], trues[1][1])
    shares = [(logs - log_sum).exp().unsqueeze(-1) for _, logs in trues]
    out = trues[0][0] * shares[0] + trues[1][0] * shares[1]
    padded = torch.zeros_like(log_sum, dtype=torch.bool)
    padded[:, :, -4:] = True  # queries that stand for nothing: their sum is infinite, and they weigh nothing
    log_sum = log_sum.masked_fill(padded, torch.inf)
    for k, v, causal in parts:
        wide: tuple[Any, ...] = tuple(x.float() for x in (grad, q, k, v))
        mine = kernel.backward(grad, q, k, v, out.to(dtype), log_sum, causal, scale)
        right = written_out.backward(*wide, out.to(dtype).float(), log_sum, causal, scale)
        for name, a, b in zip(("queries", "keys", "values"), mine, right, strict=True):
            yield f"the gradient of {name}", a, b
