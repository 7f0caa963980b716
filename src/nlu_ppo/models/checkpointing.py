"""Gradient checkpointing: layers keep their input only, and are run again when the backward pass comes to them.

transformers' own checkpoints in training mode only, and drops caches then. PPO trains in evaluation mode, since dropout
would make its first ratios differ from 1; and between two steps every method decodes. So here a layer checkpoints
wherever a gradient is asked for, and nowhere else, whatever mode it is in.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from nlu_ppo.errors import ModelError


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers that a model is a stack of, from the first to the last; none where they can't be told."""
    found: list[nn.Module] = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    if found:
        return found
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.split(".")[-1] in NAMES and len(module) > len(found):
            found = list(module)
    return found


NAMES = ("layers", "h", "blocks", "layer")  # of stacks, where layers are no GradientCheckpointingLayer


def checkpoint_layers(model: nn.Module, but: nn.Module | None = None) -> None:
    """Makes every layer checkpoint where gradients are on. Done again it changes nothing.

    Args:
        but: a layer to leave alone.

    Raises:
        ModelError: the model's layers can't be told.
    """
    layers = layers_of(model)
    if not layers:
        raise ModelError(
            f"method.gradient_checkpointing: {type(model).__name__} has no layers that this package can tell: set it "
            f"to false, and method.micro_batch_size=1"
        )
    for layer in layers:
        if layer is not but and not checkpoints(layer):
            _replace_forward(layer)


def checkpoints(layer: nn.Module) -> bool:
    return hasattr(layer, "_unchecked_forward")


def _replace_forward(layer: Any) -> None:
    # bound methods, so that a copy of the layer runs the copy
    layer._unchecked_forward = layer.forward
    layer.forward = MethodType(_forward, layer)


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return self._unchecked_forward(*args, **kwargs)
    # With a cache it would write its keys and values twice.
    assert kwargs.get("past_key_values") is None, "a checkpointed layer was given a cache"
    return checkpoint(
        self._unchecked_forward, *args, use_reentrant=False, preserve_rng_state=self.training, **kwargs
    )
