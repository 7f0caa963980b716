"""Frozen weights spread over the processes of a run, for models that are too large for one GPU.

Each process keeps a share of every layer's matrices, and all bring a layer together for the moment in which it runs
(FSDP, torch's `fully_shard`). What is trained, embeddings, head and norms stay whole everywhere, so that optimizer,
checkpoints and adapters know nothing of it.

Bringing a layer together takes all processes, yet decoding and micro-batches are of different lengths on each. So
whoever runs the layers announces it first. The others, who wait at an exchange (`ranks`) or for their own backward
pass, then lend their shares by walking through the layers without computing anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from nlu_ppo import ranks
from nlu_ppo.errors import ModelError

EXCHANGES, RUNS_BACKWARD, RUNS_FORWARD = 0, 1, 2  # whoever announces more goes first


class Shards:
    """The sharded layers of a model, and the order in which processes run them.

    Args:
        layers: the decoder's, in order, with their adapters; moved to `device`.

    Raises:
        ModelError: there is one process only, or a matrix of a layer is quantized.
    """

    def __init__(self, layers: Iterable[nn.Module], device: torch.device) -> None:
        if ranks.world() == 1:
            raise ModelError(
                "model.shard=true spreads the model over the processes of a run: start it with accelerate launch"
            )
        mesh = init_device_mesh(device.type, (ranks.world(),))
        self._layers: list[Any] = [_sharded(layer, mesh) for layer in layers]
        self._walk()  # buffers that are made in inference mode could not be used outside it
        ranks.before_exchanges(self._lend)

    def run_forward(self) -> None:
        """Before the layers run; returns when it is this process' turn."""
        self._announce(RUNS_FORWARD)

    def backward(self, loss: Tensor) -> None:
        """The backward pass of one forward pass through the layers."""
        self._announce(RUNS_BACKWARD)
        loss.backward()

    def _lend(self) -> None:
        self._announce(EXCHANGES)

    def _announce(self, mine: int) -> None:
        """Lends the shares until what this process is about to do is first in turn."""
        while (first := ranks.highest(mine)) != mine:
            self._walk(backward=first == RUNS_BACKWARD)

    def _walk(self, backward: bool = False) -> None:
        for layer in reversed(self._layers) if backward else self._layers:
            layer.unshard()
            layer.reshard()


def _sharded(layer: nn.Module, mesh: Any) -> Any:
    matrices = {p for p in layer.parameters() if p.ndim > 1 and not p.requires_grad}
    odd = [p for p in matrices if not p.is_floating_point()]
    if odd:
        raise ModelError("model.shard=true takes whole weights: leave model.quantization out")
    whole = {p for p in layer.parameters() if p not in matrices}
    return fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)


def frozen_names(model: nn.Module) -> list[str]:
    """Parameters and buffers that data parallel training needn't compare or reduce: all that isn't trained."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    every = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    return [name for name in every if name not in trained]
