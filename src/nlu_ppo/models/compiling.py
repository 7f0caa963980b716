"""torch.compile of a model's layers, one by one.

Forward passes behind a cache (decoding, a shared prefix) stay as they are: their length changes with every token.
Attention in trees isn't compiled either; what stands around it in a layer is. Whether it pays goes by card and model:
`make gpu-check` measures it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from nlu_ppo.models.checkpointing import layers_of

log = logging.getLogger(__name__)

# A layer is compiled anew for gradients on and off, adapter on and off, trees and padded rows.
RECOMPILATIONS = 64
BACKEND: Any = "inductor"
_compiled: dict[Any, Callable[..., Any]] = {}
_failed: list[str] = []  # what went wrong in this process; everything runs as it is then


def compile_layers(model: nn.Module) -> None:
    """Compiles every layer of a model when it is first run; warns and leaves all as it is where that can't be done."""
    layers: list[Any] = layers_of(model)
    fault = _fault(next(model.parameters()).device) if layers else "its layers can't be told"
    if fault is not None:
        log.warning("model.compile: %s is not compiled: %s", type(model).__name__, fault)
        return
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, RECOMPILATIONS)
    for layer in layers:
        if not hasattr(layer, "_eager_forward"):
            # bound methods, so that a copy of the layer runs the copy
            layer._eager_forward = layer.forward
            layer.forward = MethodType(_forward, layer)


def _fault(device: torch.device) -> str | None:
    """Why nothing can be compiled on this device, in words; `None` if a small function can."""
    try:
        x = torch.ones(4, device=device)
        torch.compile(lambda x: (x * 2).sin() + 1, backend=BACKEND)(x)
    except Exception as error:
        return f"a small function can't be ({_words(error)}); a compiler for the device may be missing"
    return None


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    if _failed or kwargs.get("past_key_values") is not None:
        return self._eager_forward(*args, **kwargs)
    function = self._eager_forward.__func__
    if function not in _compiled:
        _compiled[function] = torch.compile(function, dynamic=True, backend=BACKEND)
    try:
        return _compiled[function](self, *args, **kwargs)
    except TorchDynamoException as error:
        _failed.append(_words(error))
        log.warning(
            "model.compile: %s can't be compiled and runs as it is: %s", type(self).__name__, _failed[0]
        )
        return self._eager_forward(*args, **kwargs)


def _words(error: Exception) -> str:
    """What an error says; torch puts the cause below a line of its own."""
    return " ".join(line.strip() for line in str(error).splitlines()[:2])[:200] or type(error).__name__
