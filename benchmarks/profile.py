"""`python -m benchmarks.profile`: where the time of one of our steps goes, by kind of operation."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import torch_threads
from benchmarks.ours import make_step
from benchmarks.worker import build_model, build_tokenizer
from benchmarks.workload import built_in, shrunk

# The first that names a part of the operator's name takes it.
GROUPS = {
    "optimizer": ("optimizer", "_foreach", "fused_adam", "_fused"),
    "attention": ("scaled_dot_product", "flash_attention", "efficient_attention"),
    "matmul": ("mm", "linear", "matmul", "einsum"),
    "copies": (
        "copy",
        "cat",
        "clone",
        "contiguous",
        "index",
        "gather",
        "slice",
        "stack",
        "expand",
        "embedding",
    ),
    "softmax": ("softmax", "logsumexp", "multinomial"),
    "elementwise": (
        "mul",
        "add",
        "sub",
        "div",
        "neg",
        "pow",
        "sqrt",
        "silu",
        "sum",
        "mean",
        "exp",
        "where",
        "sigmoid",
    ),
}
REST = "rest"


def group_of(operator: str) -> str:
    name = operator.lower().removeprefix("aten::")
    for group, parts in GROUPS.items():
        if any(part in name for part in parts):
            return group
    return REST


def profile_step(case: str, tiny: bool = False, share_prefix: bool = True) -> tuple[dict[str, float], list]:
    """Seconds by group, and (operator, seconds, calls) of all operators, most expensive first."""
    workload = shrunk(built_in()[case]) if tiny else built_in()[case]
    with torch_threads(workload.threads):
        torch.manual_seed(workload.seed)
        step = make_step(workload, build_model(workload), build_tokenizer(workload), share_prefix)
        step()
        with profile(activities=[ProfilerActivity.CPU]) as found:
            step()
    events = found.key_averages()
    totals: dict[str, float] = defaultdict(float)
    for event in events:
        totals[group_of(event.key)] += event.self_cpu_time_total / 1e6
    operators = [(event.key, event.self_cpu_time_total / 1e6, event.count) for event in events]
    return dict(totals), sorted(operators, key=lambda o: -o[1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--case", default="reference", choices=list(built_in()))
    parser.add_argument("--plain", action="store_true", help="with share_prefix=False")
    parser.add_argument("--tiny", action="store_true", help="toy shapes, to try the tool")
    parser.add_argument("--top", type=int, default=12, help="operators listed one by one")
    options = parser.parse_args(arguments)
    totals, operators = profile_step(options.case, options.tiny, not options.plain)
    whole = sum(totals.values())
    print(f"{'kind':<14}{'seconds':>9}{'share':>8}")
    for group, seconds in sorted(totals.items(), key=lambda item: -item[1]):
        print(f"{group:<14}{seconds:>9.3f}{seconds / whole:>8.1%}")
    print(f"\n{'operator':<48}{'seconds':>9}{'calls':>9}")
    for name, seconds, calls in operators[: options.top]:
        print(f"{name[:47]:<48}{seconds:>9.3f}{calls:>9}")


if __name__ == "__main__":
    main()
