"""What language models have replied, kept on disk, so that nothing is paid for or generated twice."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nlu_ppo.errors import MALFORMED
from nlu_ppo.storage import writing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        ended: whether the model ended it itself, and not the limit on tokens.
        tokens_in, tokens_out: as the server counts them; 0 where it doesn't say.
    """

    text: str
    ended: bool
    tokens_in: int = 0
    tokens_out: int = 0


class ReplyCache:
    """A file with one line of JSON per reply, which only grows; replies go by a hash of all that was asked.

    A line that a killed process left unfinished is passed over, and its reply asked for again. Threads may share a
    cache; processes must take turns.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._replies: dict[str, Reply] = {}
        if path.is_file():
            self._read()

    def _read(self) -> None:
        odd = 0
        lines = self.path.read_bytes().split(b"\n")
        for line in lines[
            :-1
        ]:  # behind the last line's end stands nothing, or what is being written just now
            try:
                row = json.loads(line)
                self._replies[row["key"]] = Reply(**row["reply"])
            except MALFORMED:
                odd += 1
        if odd:
            log.warning("%s: %d lines can't be read; what they held is asked for again", self.path, odd)

    def get(self, key: str) -> Reply | None:
        return self._replies.get(key)

    def keys(self) -> Set[str]:
        return self._replies.keys()

    def add(self, replies: Iterable[tuple[str, Reply]]) -> None:
        """Keeps replies by key.

        Raises:
            DiskError: there is no room.
        """
        with self._lock:
            new = dict(replies)
            text = "".join(
                json.dumps({"key": key, "reply": dataclasses.asdict(reply)}) + "\n"
                for key, reply in new.items()
            )
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with writing(self.path), self.path.open("a+b") as stream:
                if stream.tell() and not _ends_a_line(self.path):
                    text = "\n" + text  # behind what a killed process left
                stream.write(text.encode())
            self._replies |= new


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read() == b"\n"


@contextlib.contextmanager
def alone(lock: Path, told: str) -> Iterator[None]:
    """Of processes that need the same, one asks for it, and the others wait.

    Args:
        told: what is printed where one waits.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        print(told, flush=True)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def request_key(parts: Mapping[str, Any]) -> str:
    """The key of a request: the same for the same question to the same model, and for no other."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
