"""Tokenised prompts on disk, so that only the first of many runs on the same examples tokenises them.

A file is named by a hash of everything that its contents follow from: the tokenizer, the limit, and the texts
themselves. It therefore never gets stale, whatever changes in the data, in a task's wording or in the
demonstrations; other contents are another file. Files are memory-mapped: a training set of hundreds of
thousands of prompts takes next to no memory. Each begins with the checksum of the rest: a bit that flips on the disk
would else be in the prompts of every run to come.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload
from weakref import WeakKeyDictionary

import pyarrow as pa
import tokenizers

from nlu_ppo.prompting import Prompt
from nlu_ppo.storage import NO_ROOM

log = logging.getLogger(__name__)

VERSION = 2  # of the file's layout and of how prompts are tokenised
ABANDONED = 3600.0  # seconds without a write
HEAD = 64  # bytes in front of Arrow's, which wants them aligned: SHA-256 of what follows, and zeros
BATCH = 1000  # rows of one record batch; all but the last have as many
SCHEMA = pa.schema(
    [("text", pa.string()), ("ids", pa.list_(pa.int32())), ("shortened", pa.bool_())],
    metadata={"batch": str(BATCH)},
)


class PromptCache:
    """A folder of tokenised prompts. Any number of runs may share it; removing it costs time only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptions: WeakKeyDictionary[Any, bytes] = WeakKeyDictionary()

    def key(self, tokenizer: Any, parts: tuple[object, ...], texts: Iterable[str]) -> str | None:
        """The name of the file that holds what `tokenizer` makes of `texts`; `None` if it can't be named.

        All that a fast tokenizer does follows from its own description. One written in Python has none.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        if tokenizer not in self._descriptions:  # megabytes of JSON: once is enough
            backend.no_truncation()  # as every call of ours sets them; a saved tokenizer may begin otherwise
            backend.no_padding()
            self._descriptions[tokenizer] = hashlib.sha256(backend.to_str().encode()).digest()
        digest = hashlib.sha256(self._descriptions[tokenizer])
        digest.update(json.dumps([VERSION, tokenizers.__version__, *parts]).encode())
        for text in texts:
            raw = text.encode("utf-8", "surrogatepass")
            digest.update(b"%d:" % len(raw))
            digest.update(raw)
        return digest.hexdigest()

    def get(self, key: str, make: Callable[[], Iterable[Prompt]]) -> Sequence[Prompt]:
        """The prompts kept under `key`, or else those that `make` gives, which are kept from now on."""
        path = self.folder / f"{key}.arrow"
        try:
            if path.exists():
                return PromptTable(path)
        except (OSError, pa.ArrowException) as error:
            log.warning("%s can't be read (%s): tokenising again", path, error)
        partial = self.folder / f"{key[:8]}-{uuid.uuid4().hex}.partial"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned(key)
            stream = partial.open("x+b")
        except OSError as error:  # a read-only disk must not stop a run
            log.warning("no tokenised prompts are kept: %s", error)
            return list(make())
        try:
            with stream:
                _write(stream, make())
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)  # of runs that make the same file at the same time, the last one's stays
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            log.warning("no tokenised prompts are kept, since %s is full: %s", self.folder, error)
            return list(make())
        finally:
            partial.unlink(missing_ok=True)
        return PromptTable(path)

    def _remove_abandoned(self, key: str) -> None:
        """Removes what runs that were killed have left half-written under `key`."""
        for partial in self.folder.glob(f"{key[:8]}-*.partial"):
            if time.time() - partial.stat().st_mtime > ABANDONED:
                partial.unlink(missing_ok=True)


class PromptTable(Sequence[Prompt]):
    """Prompts in a memory-mapped file, read one at a time."""

    def __init__(self, path: Path) -> None:
        file = pa.memory_map(str(path)).read_buffer()
        body = file.slice(min(HEAD, file.size))
        head = hashlib.sha256(body).digest().ljust(HEAD, b"\0")
        if file.slice(0, min(HEAD, file.size)).to_pybytes() != head:
            raise pa.ArrowInvalid("its contents have changed since it was written")
        reader = pa.ipc.open_file(body)
        if reader.schema.metadata != SCHEMA.metadata or not reader.schema.equals(SCHEMA):
            raise pa.ArrowInvalid("another layout")
        table = reader.read_all()  # maps the columns, reads nothing yet
        self._length = table.num_rows
        self._texts, self._ids = table["text"].chunks, table["ids"].chunks
        self._cut = table["shortened"].chunks

    @property
    def ids(self) -> Sequence[tuple[int, ...]]:
        """The prompts' tokens alone."""
        return _Ids(self)

    @property
    def shortened(self) -> int:
        """How many prompts were cut to fit."""
        return sum(chunk.true_count for chunk in self._cut)

    def ids_at(self, index: int) -> tuple[int, ...]:
        batch, row = divmod(index, BATCH)
        return tuple(self._ids[batch][row].as_py())

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Prompt: ...

    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...

    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        index = range(self._length)[index]  # counts from the end, and ends in an IndexError, as lists do
        batch, row = divmod(index, BATCH)
        text, cut = self._texts[batch][row].as_py(), self._cut[batch][row].as_py()
        return Prompt(text, self.ids_at(index), cut)


class _Ids(Sequence[tuple[int, ...]]):
    def __init__(self, prompts: PromptTable) -> None:
        self._prompts = prompts

    def __len__(self) -> int:
        return len(self._prompts)

    @overload
    def __getitem__(self, index: int) -> tuple[int, ...]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[int, ...]]: ...

    def __getitem__(self, index: int | slice) -> tuple[int, ...] | list[tuple[int, ...]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._prompts.ids_at(range(len(self))[index])


def _write(stream: Any, prompts: Iterable[Prompt]) -> None:
    """Writes a file of prompts; its checksum last, so that a file without one is an unfinished one."""
    source = iter(prompts)
    stream.write(bytes(HEAD))
    with pa.ipc.new_file(stream, SCHEMA) as file:
        while rows := list(islice(source, BATCH)):
            columns = ([p.text for p in rows], [p.ids for p in rows], [p.shortened for p in rows])
            arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
            file.write_batch(pa.record_batch(arrays, schema=SCHEMA))
    stream.seek(HEAD)
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    stream.seek(0)
    stream.write(digest.digest())


def token_ids(prompts: Sequence[Prompt]) -> Sequence[tuple[int, ...]]:
    """The tokens of all prompts, read from the file where they lie in one."""
    return prompts.ids if isinstance(prompts, PromptTable) else [prompt.ids for prompt in prompts]


def count_shortened(prompts: Sequence[Prompt]) -> int:
    """How many prompts were cut to fit."""
    return prompts.shortened if isinstance(prompts, PromptTable) else sum(p.shortened for p in prompts)
