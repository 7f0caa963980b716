"""Runs models in float64 throughout, which tells a mistake (1e-3) from rounding (1e-12). No part of the package here:
tests/trl_peer.py imports this in an environment of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _Float32IsFloat64(TorchFunctionMode):
    """Norms, softmax, logits and drawing cast to float32, whatever the model's type: here that means float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        return func(
            *args, **{k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        )


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Inside, no float64 is rounded to float32 on its way."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float32IsFloat64():
            yield
    finally:
        torch.set_default_dtype(before)
