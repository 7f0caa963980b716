"""Sequences of examples that stay flat in memory: small ones as lists, large ones in a file.

400,000 examples of QQP's length take 280 MB as a list, and a few MB here: a temporary file that is
memory-mapped, so that the system drops its pages when memory is short. Nothing is left behind; the file has
no name.
"""

from __future__ import annotations

import mmap
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from typing import overload

from nlu_ppo.storage import writing
from nlu_ppo.tasks.record import Example

_values = attrgetter(*(field.name for field in fields(Example)))
IN_MEMORY = 20_000  # examples; up to here a list is faster, and takes some 15 MB


def hold(examples: Iterable[Example], folder: Path | None = None) -> Sequence[Example]:
    """All examples, as a list or in a file below `folder` (by default where temporary files go)."""
    stream = iter(examples)
    first = list(islice(stream, IN_MEMORY))
    further = list(islice(stream, 1))
    return Spool.write(chain(first, further, stream), folder) if further else first


def select(examples: Sequence[Example], rows: Sequence[int]) -> Sequence[Example]:
    """The examples at `rows`, in that order."""
    return examples.select(rows) if isinstance(examples, Spool) else [examples[i] for i in rows]


class Spool(Sequence[Example]):
    """Examples in a memory-mapped file, read one at a time."""

    def __init__(self, data: mmap.mmap, ends: array[int], rows: array[int]) -> None:
        self._data = data
        self._ends = ends  # ends[i] is where the i-th example written begins, ends[i + 1] where it ends
        self._rows = rows

    @classmethod
    def write(cls, examples: Iterable[Example], folder: Path | None = None) -> Spool:
        """Writes them out.

        Raises:
            DiskError: there is no room for them in `folder`.
        """
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        ends, end = array("q", [0]), 0
        with writing(Path(folder or tempfile.gettempdir())), tempfile.TemporaryFile(dir=folder) as file:
            for example in examples:
                end += file.write(pickle.dumps(_values(example), pickle.HIGHEST_PROTOCOL))
                ends.append(end)
            file.flush()
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return cls(data, ends, array("q", range(len(ends) - 1)))

    def select(self, rows: Iterable[int]) -> Spool:
        """A view of some of the examples; the file is shared."""
        return Spool(self._data, self._ends, array("q", (self._rows[i] for i in rows)))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self._read(row) for row in self._rows[index]]
        return self._read(self._rows[index])

    def __iter__(self) -> Iterator[Example]:
        return map(self._read, self._rows)

    def _read(self, row: int) -> Example:
        return Example(*pickle.loads(self._data[self._ends[row] : self._ends[row + 1]]))
