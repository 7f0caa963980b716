"""The machine: what it is, and how fast it multiplies matrices right now."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

SIZE = 2048


def describe(threads: int) -> dict[str, Any]:
    """What a reader needs to judge the numbers; nothing that names this one machine."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch with so many threads inside, and with those it had before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def matmul_rate(threads: int, repetitions: int = 5, size: int = SIZE) -> float:
    """Operations per second of a square float32 product: the median of a few, after one to warm up."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    rates = []
    with torch_threads(threads):
        for _ in range(repetitions + 1):
            start = time.perf_counter()
            a @ b
            rates.append(2 * size**3 / (time.perf_counter() - start))
    return statistics.median(rates[1:])
