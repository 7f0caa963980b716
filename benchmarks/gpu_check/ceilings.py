"""How fast this card multiplies and copies, right now: what all other numbers are a part of."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu_check.models import Bench
from benchmarks.gpu_check.record import Row
from benchmarks.gpu_check.runner import Add, Clock
from benchmarks.worker import settle

# Dense bf16 operations a second that NVIDIA's data sheets print, by a part of the name that torch gives
PRINTED = {"H200": 989e12, "H100 80GB HBM3": 989e12, "H100 PCIe": 756e12, "A100": 312e12}
WARM_UP_S = 0.3  # an idle card's clock is low at first
ROUNDS = 10


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Float32 products in float32: TF32, with its ten bits, is off in the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Ceilings:
    """What parts know of one another: operations a second by data type, and seconds of a step by model and
    workload, as far as they were measured."""

    def __init__(self) -> None:
        self.rates: dict[str, float] = {}
        self.steps: dict[tuple[str, str], float] = {}

    def mfu(self, operations: float, seconds: float, dtype: str) -> dict[str, float]:
        """Model operations over those that the card could have done, of what was measured and of what is printed."""
        found = {}
        if dtype in self.rates:
            found["mfu_of_measured"] = mfu(operations, seconds, self.rates[dtype])
        if dtype == "bfloat16" and torch.cuda.is_available():
            printed = printed_rate(torch.cuda.get_device_name())
            if printed:
                found["mfu_of_printed"] = mfu(operations, seconds, printed)
        return found


def mfu(operations: float, seconds: float, rate: float) -> float:
    """The part of `rate`, operations a second, that doing so many operations in so many seconds is."""
    return operations / seconds / rate


def printed_rate(card: str) -> float | None:
    return next((rate for name, rate in PRINTED.items() if name in card), None)


def measure(bench: Bench, ceilings: Ceilings, clock: Clock, add: Add) -> None:
    """Square products of random numbers (zeros would be faster), and a copy from and to the card's own memory."""
    size = bench.sizes.matrix
    with exact_float32():
        for dtype in ("bfloat16", "float32"):
            a, b = (
                torch.randn(size, size, device=bench.device, dtype=getattr(torch, dtype)) for _ in range(2)
            )
            out = torch.empty_like(a)
            seconds = _median(lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
            ceilings.rates[dtype] = 2 * size**3 / seconds
            figures = {"tera_operations_per_s": ceilings.rates[dtype] / 1e12, "step_s": seconds}
            add(Row(f"matrix product, {dtype}, {size} rows", "-", figures))
    source = torch.empty(bench.sizes.copied, dtype=torch.uint8, device=bench.device).random_(0, 256)
    target = torch.empty_like(source)
    seconds = _median(lambda: target.copy_(source))
    moved = 2 * source.numel()
    add(
        Row(
            "copy, bytes read and written",
            "-",
            {"gigabytes_per_s": moved / seconds / 1e9, "step_s": seconds},
        )
    )
    clock.check()


def _median(action: Any) -> float:
    """Seconds of one call: the median of a few, once the card is warm."""
    until = time.perf_counter() + WARM_UP_S
    action()
    settle()
    while time.perf_counter() < until:
        action()
        settle()
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        action()
        settle()
        rounds.append(time.perf_counter() - start)
    return statistics.median(rounds)
