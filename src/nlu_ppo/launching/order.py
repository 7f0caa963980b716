"""What a sweep hands to a process that it starts: a run, composed and checked."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlu_ppo.config import Config


@dataclass(frozen=True)
class Order:
    """What a child is to do.

    Attributes:
        name: what tells the run from the others of its sweep.
        folder: the run folder.
        last_words: a file for the message that the run fails with, if it does.
        job_logging: Hydra's node of that name, resolved.
        verbose: Hydra's option: all log messages, or those of some modules.
        typed: the keys that the command line or the study gave a value to.
    """

    name: str
    config: Config
    folder: Path
    last_words: Path
    job_logging: dict[str, Any] | None
    verbose: bool | str | list[str] = False
    typed: frozenset[str] = frozenset()

    def to_line(self) -> bytes:
        return pickle.dumps(self).hex().encode() + b"\n"

    @staticmethod
    def from_line(line: bytes) -> Order:
        order = pickle.loads(bytes.fromhex(line.decode()))
        assert isinstance(order, Order)
        return order
