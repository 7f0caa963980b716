"""Consecutive runs of one process share their base model's weights: a sweep reads a model from disk once.

Every run gets modules of its own around the same tensors. So what a run puts around or into them (an adapter, another
forward, hooks, a changed config) goes away with it, and what it must not touch are the tensors alone.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Hashable
from typing import Any

from torch import nn


class SharedBase:
    """The weights of the last base model, for the next run if it has the same."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._model: Any = None
        self._states: list[tuple[int, int]] = []

    def get(self, key: Hashable, load: Callable[[], Any]) -> Any:
        """The model that `key` stands for, with modules of its own.

        Args:
            load: reads it, frozen; called unless the last one is the same and still as it was read.
        """
        if key != self._key or _states(self._model) != self._states:
            self.release()
            self._model = load()
            self._key, self._states = key, _states(self._model)
        else:
            gc.collect()
        return _with_own_modules(self._model)

    def release(self) -> None:
        """Forgets the weights, ahead of a model that would have to find room beside them."""
        self._key, self._model, self._states = None, None, []
        gc.collect()  # the last run's policy refers to itself: it would stay, and its optimizer, for a while


def _with_own_modules(model: Any) -> Any:
    shared = {id(parameter): parameter for parameter in model.parameters()}
    return copy.deepcopy(model, shared)  # deepcopy takes what it is told to have copied already


def _states(model: nn.Module) -> list[tuple[int, int]]:
    """Where each tensor lies, and how often it was written to: both change if a run moves or trains the weights."""
    return [(parameter.data_ptr(), parameter._version) for parameter in model.parameters()]


BASE = SharedBase()  # of this process
