"""Two kinds of layers with fewer passes over memory: LoRA's linear layer, and RMSNorm with its gradient.

On a short answer's few hundred tokens the matrix products are so fast that what stands between them costs as much.
Autograd runs an RMSNorm's gradient as a dozen operations, and PEFT's linear layer makes a product, a scaled copy and
a sum of the adapter's part. Both are written out here, with the same results to rounding.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def make_lean(model: nn.Module) -> None:
    """Gives layers of the two kinds in `model` their lean forward, where that gives what their own gives."""
    for module in model.modules():
        if isinstance(module, LoraLinear):
            if type(module.get_base_layer()) is nn.Linear and not hasattr(module, "_full_forward"):
                _replace_forward(module, _lora_forward)
        elif _is_rms_norm(module):
            _replace_forward(module, _norm_forward)


def _replace_forward(module: Any, forward: Any) -> None:
    module._full_forward = module.forward
    module.forward = MethodType(forward, module)


class RMSNorm(torch.autograd.Function):
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension, in float32 at least; the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = (size.square_().div_(x.shape[-1]).add_(eps)).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        # with y = scale x: dx = scale (g - y mean(g y)) for the gradient g of y
        g = (grad * weight).to(scale.dtype)
        along = torch.linalg.vecdot(g, x.to(scale.dtype)).unsqueeze(-1)
        along.mul_(scale.square()).div_(-x.shape[-1])
        return torch.addcmul(g, x.to(scale.dtype), along).mul_(scale).to(x.dtype), None, None


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    if self.weight.requires_grad:
        return self._full_forward(hidden_states)
    return RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)


def _is_rms_norm(module: nn.Module) -> bool:
    """Whether a layer is the usual RMSNorm, frozen; some scale by 1 + weight, or normalise something else."""
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not type(module).__name__.endswith("RMSNorm") or weight is None or eps is None:
        return False
    if hasattr(module, "_full_forward"):
        return False
    if weight.ndim != 1 or weight.requires_grad:
        return False
    x = torch.linspace(-1, 2, 2 * len(weight), dtype=weight.dtype, device=weight.device).view(1, 2, -1)
    with torch.inference_mode():
        return torch.allclose(module(x), RMSNorm.apply(x, weight, eps), rtol=1e-2, atol=1e-3)


class LowRankSum(torch.autograd.Function):
    """x W^T + bias + scale (x A^T) B^T; W and bias are frozen. Shapes: x (N, in), A (rank, in), B (out, rank)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        low = x @ a.T
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale = scale
        out = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
        return out.addmm_(low, b.T, alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        of_low = (grad @ b).mul_(ctx.scale)
        of_x = (grad @ weight).addmm_(of_low, a) if ctx.needs_input_grad[0] else None
        return of_x, None, None, of_low.T @ x, (grad.T @ low).mul_(ctx.scale), None


def _lora_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    base, active = self.get_base_layer(), list(self.active_adapters)
    if self.disable_adapters and not (self.merged or args or kwargs):
        return base(x)
    if args or kwargs or len(active) != 1 or not _plain(self, base, active[0], x):
        return self._full_forward(x, *args, **kwargs)
    a, b, scale = (found[active[0]] for found in (self.lora_A, self.lora_B, self.scaling))
    out = LowRankSum.apply(x.reshape(-1, x.shape[-1]), base.weight, base.bias, a.weight, b.weight, scale)
    return out.view(*x.shape[:-1], -1)


def _plain(layer: Any, base: nn.Linear, name: str, x: Tensor) -> bool:
    """Whether the layer does nothing but what `LowRankSum` does: no dropout, no variant, no second data type."""
    if layer.merged or layer.disable_adapters or name not in layer.lora_A or name in layer.lora_variant:
        return False
    a, b = layer.lora_A[name], layer.lora_B[name]
    drops = layer.training and not isinstance(layer.lora_dropout[name], nn.Identity)
    trains_base = base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad)
    one_type = x.dtype == base.weight.dtype == a.weight.dtype == b.weight.dtype
    return one_type and not (drops or trains_base or a.bias is not None or b.bias is not None)
