"""How fast is it on this card? A whole PPO step, and evaluation, beside other libraries doing the same."""

from __future__ import annotations

import importlib.metadata
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import Contender, contenders
from benchmarks.flops import Step as Operations
from benchmarks.flops import needed, needed_for_labels
from benchmarks.gpu_check.ceilings import Ceilings
from benchmarks.gpu_check.correctness import transformers_answers
from benchmarks.gpu_check.models import Bench, Named, byte_tokenizer
from benchmarks.gpu_check.record import Row
from benchmarks.gpu_check.runner import Add, Clock, SkippedError, rounds_of, try_row
from benchmarks.ours import make_step
from benchmarks.session import ContenderError, Process
from benchmarks.worker import Outcome, PeakDeviceMemory, PeakMemory
from benchmarks.workload import Workload
from nlu_ppo.inference.decoder import generate, score_answers
from nlu_ppo.models.policy import Policy

TRL = "trl_1_12"
LABEL_TOKENS = 5


def ppo(bench: Bench, model: Named, ceilings: Ceilings, clock: Clock, add: Add) -> None:
    """PPO steps of one model: two batch sizes, two lengths, and without sharing what prompts begin with."""
    sizes = bench.sizes
    built = bench.build(bench.workload(model, sizes.short, sizes.batch))
    for length, batch, share in (
        (sizes.short, sizes.batch, True),
        (sizes.short, sizes.batch, False),
        (sizes.short, sizes.large_batch, True),
        (sizes.short, sizes.large_batch, False),
        (sizes.long, sizes.batch, True),
        (sizes.long, sizes.large_batch, True),
    ):
        workload = bench.workload(model, length, batch)
        name = f"{workload.name}{'' if share else ', not shared'}"

        def measure(workload: Workload = workload, share: bool = share, name: str = name) -> Row:
            figures = measure_step(bench, built, workload, share, ceilings, clock)
            if share:
                ceilings.steps[model.name, workload.name] = figures["step_s"]
            return Row(name, model.name, figures)

        try_row(name, model.name, clock, add, measure)


def measure_step(
    bench: Bench, model: Any, workload: Workload, share: bool, ceilings: Ceilings, clock: Clock
) -> dict[str, float]:
    """Median seconds of a step and of its phases, what comes of them, and the peak of memory, weights included."""
    step = make_step(workload, model, byte_tokenizer(workload.shape.vocabulary), share)
    with PeakDeviceMemory() if bench.on_gpu else PeakMemory() as memory:
        seconds, rounds, outcomes = rounds_of(step, clock, bench.sizes.rounds)
    return step_figures(workload, needed(workload, share=share), seconds, outcomes, ceilings) | {
        "peak_memory_bytes": memory.peak,
        "rounds": rounds,
    }


def step_figures(
    workload: Workload,
    operations: Operations,
    seconds: float,
    outcomes: Sequence[Outcome],
    ceilings: Ceilings,
) -> dict[str, float]:
    """Throughput and MFU of a step that took so many seconds, its phases being those of the outcomes.

    `samples_per_s` counts prompts with their completions through all of a step; `tokens_per_s` their tokens,
    prompt's and completion's, each once; `drawn_tokens_per_s` completion tokens over the time of the rollout.
    """
    phases = {
        name: statistics.median(o.phases[name] for o in outcomes)
        for name in ("rollout", "reference", "update")
    }
    drawn = statistics.median(sum(o.response_tokens) for o in outcomes)
    tokens = sum(map(len, workload.prompts)) + drawn
    figures = {"step_s": seconds, **{f"{name}_s": value for name, value in phases.items()}}
    figures |= {
        "samples_per_s": len(workload.prompts) / seconds,
        "tokens_per_s": tokens / seconds,
        "rollout_samples_per_s": len(workload.prompts) / phases["rollout"],
        "drawn_tokens_per_s": drawn / phases["rollout"],
        "update_samples_per_s": workload.epochs * len(workload.prompts) / phases["update"],
        "tera_operations": operations.total / 1e12,
        "first_ratio_error": max(o.figures["ppo/first_ratio_error"] for o in outcomes),
    }
    figures |= ceilings.mfu(operations.total, seconds, workload.dtype)
    update = ceilings.mfu(operations.update, phases["update"], workload.dtype)
    return figures | {f"update_{name}": value for name, value in update.items()}


def evaluation(bench: Bench, model: Named, ceilings: Ceilings, clock: Clock, add: Add) -> None:
    """Greedy answers and labels' scores, and transformers' own `generate` on the same prompts."""
    sizes = bench.sizes
    workload = bench.workload(model, sizes.long, sizes.examples, kind="eval")
    built, tokenizer = bench.build(workload), byte_tokenizer(workload.shape.vocabulary)
    prompts, count, tokens = workload.prompts, len(workload.prompts), workload.response_tokens
    about = f"{count} examples of {sizes.long} tokens, batches of {sizes.eval_batch}"
    answers: dict[str, list[list[int]]] = {}

    def row(name: str, action: Any, operations: float | None = None) -> None:
        def measure() -> Row:
            with PeakDeviceMemory() if bench.on_gpu else PeakMemory() as memory:
                seconds, rounds, found = rounds_of(action, clock, bench.sizes.rounds)
            answers[name] = found[-1]
            figures = {"examples_per_s": count / seconds, "step_s": seconds, "rounds": rounds}
            figures["peak_memory_bytes"] = memory.peak
            if operations is not None:
                figures |= ceilings.mfu(operations, seconds, workload.dtype)
            return Row(name, model.name, figures, note=about)

        try_row(name, model.name, clock, add, measure)

    # before the policy gives layers their lean forwards, so that theirs is theirs
    holder = _Holder(tokenizer, next(built.parameters()).device)

    def theirs() -> list[list[int]]:
        found = []
        for start in range(0, count, sizes.eval_batch):
            part = prompts[start : start + sizes.eval_batch]
            found += transformers_answers(built, holder, part, tokens)  # type: ignore[arg-type]
        return found

    row("greedy, transformers' generate", theirs)
    policy = Policy(built, tokenizer, workload.shape.positions)
    row("greedy, ours", lambda: generate(policy, prompts, tokens, batch_size=sizes.eval_batch))
    labels = [[7 + i, *range(20, 19 + LABEL_TOKENS)] for i in range(2)]
    scoring = Workload(
        "labels", "", "eval", workload.shape, prompts=prompts, labels=tuple(map(tuple, labels))
    )
    row(
        "two labels scored, ours",
        lambda: score_answers(policy, prompts, [labels] * count, batch_size=sizes.eval_batch),
        needed_for_labels(scoring),
    )
    if len(answers) == 3:
        ours, others = answers["greedy, ours"], answers["greedy, transformers' generate"]
        same = sum(a == b for a, b in zip(ours, others, strict=True))
        note = "in bfloat16 near ties fall either way; the parts of correctness compare in float32"
        add(Row("greedy, same answers", model.name, {"same": same, "answers": count}, note=note))


class _Holder:
    """What `transformers_answers` asks of a policy."""

    def __init__(self, tokenizer: Any, device: torch.device) -> None:
        self.tokenizer, self.device = tokenizer, device


def peers(bench: Bench, model: Named, ceilings: Ceilings, clock: Clock, add: Add) -> None:
    """TRL 1.12's PPO on the same prompts as the first row of ours, in a process of its own."""
    contender = _trl()
    workload = bench.workload(model, bench.sizes.short, bench.sizes.batch)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "workload.json"
        workload.write(file)
        process = Process(contender, file, workload.threads, Path(folder))
        try:
            versions = process.receive()["versions"]
            fault = contender.fault(workload, process.ask("watch"))
            if fault:
                raise ContenderError(fault)
            steps: list[dict[str, Any]] = []
            while len(steps) < bench.sizes.rounds and (not steps or clock.left > steps[-1]["seconds"]):
                steps.append(process.ask("step"))
        finally:
            process.close()
    seconds = statistics.median(step["seconds"] for step in steps)
    figures = {
        "step_s": seconds,
        "samples_per_s": len(workload.prompts) / seconds,
        "memory_above_weights_bytes": max(step["memory_bytes"] for step in steps),
        "rounds": len(steps),
    }
    ours = ceilings.steps.get((model.name, workload.name))
    if ours is not None:
        figures["ours_is_faster_by"] = seconds / ours
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    add(Row(f"{contender.title}, {workload.name}", model.name, figures, note=shown))


def _trl() -> Contender:
    """TRL 1.12 in the environment that `make bench-peers` makes, or in this one.

    Raises:
        SkippedError: it is in neither.
    """
    contender = contenders("ppo")[TRL]
    if contender.python.exists():
        return contender
    try:
        here = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        here = ""
    if not here.startswith("1.12."):
        raise SkippedError("not installed")
    return replace(contender, peer=None)
