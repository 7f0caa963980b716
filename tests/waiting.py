"""Waiting for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil


def wait_until(happened: Callable[[], bool], seconds: float = 120.0) -> None:
    """Returns as soon as it has happened."""
    deadline = time.time() + seconds
    while not happened():
        assert time.time() < deadline, "it did not happen in time"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process is at work; a dead one that nobody has asked for its exit code isn't."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
