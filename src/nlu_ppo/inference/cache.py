"""Keys and values while decoding: every step writes one token into room that is there already."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """Like transformers' growing layer, which copies all keys and values at every step, but with room to grow.

    Args:
        keys, values: (rows, heads, tokens, numbers) of what is there.
        room: tokens that may follow.
    """

    def __init__(self, keys: Tensor, values: Tensor, room: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._held = keys.shape[-2]
        self._buffers = [_with_room(x, room) for x in (keys, values)]
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = (x[..., : self._held, :] for x in self._buffers)
        self.keys, self.values = keys, values
        return keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        start, self._held = self._held, self._held + key_states.shape[-2]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start : self._held, :] = new
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        self._buffers = [x[indices] for x in self._buffers]
        self._show()


def _with_room(x: Tensor, room: int) -> Tensor:
    buffer = x.new_empty(*x.shape[:-2], x.shape[-2] + room, x.shape[-1])
    buffer[..., : x.shape[-2], :] = x
    return buffer


def make_room(cache: DynamicCache, room: int) -> None:
    """Prepares a filled cache for `room` further tokens, without gradient. Layers of another kind stay as they are."""
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            keys, values = layer.keys, layer.values
            assert keys is not None
            assert values is not None
            cache.layers[i] = RoomyLayer(keys, values, room)
