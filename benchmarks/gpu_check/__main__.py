"""`python -m benchmarks.gpu_check`: checks and measures, writes benchmarks/results/gpu-<card>.json, prints tables."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu_check import ceilings as rates
from benchmarks.gpu_check import correctness, speed
from benchmarks.gpu_check.models import GPU, SMALL, Bench
from benchmarks.gpu_check.record import SMALL as SMALL_TRIAL
from benchmarks.gpu_check.record import TRIAL, Report, file_name
from benchmarks.gpu_check.runner import Part, run_parts
from benchmarks.gpu_check.table import show
from benchmarks.machine import describe
from benchmarks.results import RESULTS
from benchmarks.worker import versions

BUDGET = 440.0  # seconds: with imports and the last part's overrun, under 8 minutes
PATIENCE = 7200.0  # toy sizes show that everything runs, however busy the machine is


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--small", action="store_true", help="toy sizes: always so where there is no CUDA")
    parser.add_argument("--part", action="append", help="only this part, and the ceilings (may be repeated)")
    parser.add_argument(
        "--seconds",
        type=float,
        help=f"time for everything, each part getting its share (default {BUDGET:g}; with toy sizes {PATIENCE:g})",
    )
    parser.add_argument(
        "--file", type=Path, help="result file, in place of benchmarks/results/gpu-<card>.json"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the parts and their seconds")
    return parser.parse_args(arguments)


def make_parts(bench: Bench) -> list[Part]:
    """All parts in the order in which they run; correctness before speed."""
    found, sizes = rates.Ceilings(), bench.sizes
    return [
        Part("ceilings", "speed", 15, partial(rates.measure, bench, found)),
        Part("sharing", "correctness", 50, partial(correctness.sharing, bench)),
        Part("precision", "correctness", 40, partial(correctness.precision, bench)),
        Part("compiled", "correctness", 80, partial(correctness.compiled, bench)),
        Part("ppo-1.5b", "speed", 60, partial(speed.ppo, bench, sizes.main, found)),
        Part("ppo-7b", "speed", 90, partial(speed.ppo, bench, sizes.large, found)),
        Part("evaluation", "speed", 45, partial(speed.evaluation, bench, sizes.main, found)),
        Part("trl-1.12", "speed", 60, partial(speed.peers, bench, sizes.main, found)),
    ]


def main(arguments: Sequence[str] | None = None, make: Callable[[Bench], list[Part]] = make_parts) -> int:
    options = parse(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    cuda = torch.cuda.is_available()
    small = options.small or not cuda
    bench = Bench("cuda" if cuda else "cpu", SMALL if small else GPU)
    seconds = options.seconds or (PATIENCE if small else BUDGET)
    parts = [replace(part, seconds=part.seconds * seconds / BUDGET) for part in make(bench)]
    if options.list:
        print("\n".join(f"{part.name:12} {part.kind:12} {part.seconds:.0f} s" for part in parts))
        return 0
    if options.part:
        unknown = sorted(set(options.part) - {part.name for part in parts})
        if unknown:
            print(
                f"gpu_check: no part {', '.join(unknown)}; there are {', '.join(p.name for p in parts)}",
                file=sys.stderr,
            )
            return 2
        parts = [part for part in parts if part.name in ("ceilings", *options.part)]
    card = torch.cuda.get_device_name() if cuda else "none (CPU)"
    trial = "" if not small else SMALL_TRIAL if cuda else TRIAL
    machine = describe(torch.get_num_threads()) | _cuda_facts()
    path = options.file or RESULTS / file_name(card, trial)
    report = Report(path, card, trial, machine, versions())
    print(f"{card}: {len(parts)} parts in at most {seconds:.0f} s", flush=True)
    status = run_parts(parts, report, seconds, say=lambda text: print(f"  {text}", flush=True))
    show(report)
    return status


def _cuda_facts() -> dict[str, object]:
    if not torch.cuda.is_available():
        return {"cuda": None}
    facts = torch.cuda.get_device_properties(0)
    return {
        "cuda": torch.version.cuda,
        "gpu_memory_gb": round(facts.total_memory / 2**30),
        "multiprocessors": facts.multi_processor_count,
    }


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # at once: a compilation that was ended in its middle leaves threads that would hold up an orderly exit
    os._exit(status)
