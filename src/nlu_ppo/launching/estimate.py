"""How long a grid still takes, from the cells that have finished."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean

Kind = tuple[str, ...]  # what a cell's time depends on, the most important first: (method, model, task)


class Durations:
    """Seconds that finished cells took, by kind."""

    def __init__(self) -> None:
        self._seconds: dict[Kind, list[float]] = defaultdict(list)

    def add(self, kind: Kind, seconds: float) -> None:
        for length in range(len(kind) + 1):
            self._seconds[kind[:length]].append(seconds)

    def expected(self, kind: Kind) -> float | None:
        """The mean over the cells that are most alike, `None` if none has finished."""
        for length in range(len(kind), -1, -1):
            if found := self._seconds.get(kind[:length]):
                return fmean(found)
        return None

    def remaining(
        self, running: Iterable[tuple[Kind, float]], waiting: Iterable[Kind], slots: int
    ) -> float | None:
        """Seconds until all have ended, if each takes as long as expected, in the queue's order.

        Args:
            running: kind, and seconds since the start. One that takes longer than expected may end any moment.
        """
        free = [0.0] * slots  # in how many seconds each slot is free
        for number, (kind, seconds) in enumerate(running):
            expected = self.expected(kind)
            if expected is None:
                return None
            free[number] = max(expected - seconds, 0.0)
        heapq.heapify(free)
        for kind in waiting:
            expected = self.expected(kind)
            if expected is None:
                return None
            heapq.heapreplace(free, free[0] + expected)
        return max(free)
