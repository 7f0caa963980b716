"""How a step's time and memory grow: cases that differ in one thing, and one picture for each such thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.contenders import OURS, PLAIN
from benchmarks.results import Results, Spread, figures
from benchmarks.workload import Shape, Workload, random_prompts

BY = {OURS: "shared prefixes", PLAIN: "padded rows"}
COMMON = 0.7  # of a prompt, as in the reference


def _case(
    axis: str, value: int, about: str, length: int = 128, common: float = COMMON, **changes: object
) -> Workload:
    made = replace(Workload(f"{axis}={value}", about), **changes)  # type: ignore[arg-type]
    lengths = [length] * made.batch_size
    prompts = random_prompts(lengths, round(common * length), made.shape.vocabulary, made.seed)
    return replace(made, prompts=prompts)


def _batch(rows: int) -> Workload:
    about = f"{rows} prompts of 128 tokens in minibatches of {min(rows, 8)}"
    return _case("batch", rows, about, batch_size=rows, minibatch_size=min(rows, 8))


def _length(tokens: int) -> Workload:
    return _case("prompt", tokens, f"16 prompts of {tokens} tokens, {COMMON:.0%} common", length=tokens)


def _share(percent: int) -> Workload:
    return _case(
        "share", percent, f"16 prompts of 256 tokens, {percent}% common", length=256, common=percent / 100
    )


def _vocabulary(tokens: int) -> Workload:
    return _case("vocabulary", tokens, f"a vocabulary of {tokens:,}", shape=Shape(vocabulary=tokens))


# per axis: its title, and the cases
AXES = {
    "batch": ("prompts in a batch", [_batch(n) for n in (4, 8, 16, 32)]),
    "prompt": ("tokens of a prompt", [_length(n) for n in (64, 128, 256, 512)]),
    "share": ("common part of 256-token prompts, %", [_share(n) for n in (0, 25, 50, 75, 90)]),
    "vocabulary": ("tokens in the vocabulary", [_vocabulary(n) for n in (8_000, 32_000, 64_000, 152_000)]),
}


def growth() -> dict[str, Workload]:
    return {case.name: case for _, cases in AXES.values() for case in cases}


def is_growth(case: str) -> bool:
    return case.partition("=")[0] in AXES


def measured(results: Results, axis: str) -> list[Workload]:
    return [case for case in AXES[axis][1] if results.of(case.name)]


def table(results: Results) -> str:
    """Medians of all growth cases, as Markdown."""
    lines = [
        "| case | samples/s, shared | samples/s, padded | ratio | MB, shared | MB, padded |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for axis in AXES:
        for case in measured(results, axis):
            speed, memory = (
                [_median(results, case, name, key) for name in BY] for key in ("speed", "memory_bytes")
            )
            lines.append(
                f"| {case.about} | {speed[0]:.2f} | {speed[1]:.2f} | {speed[0] / speed[1]:.2f} "
                f"| {memory[0] / 1e6:.0f} | {memory[1] / 1e6:.0f} |"
            )
    return "\n".join(lines)


def _median(results: Results, case: Workload, name: str, key: str) -> float:
    sessions = results.of(case.name)
    spread = Spread.of(figures(sessions, name, "seconds" if key == "speed" else key))
    assert spread is not None, f"{name} has no round of {case.name}"
    return len(case.prompts) / spread.median if key == "speed" else spread.median


def draw(results: Results, folder: Path) -> list[Path]:
    """One picture per axis that was measured: throughput on the left, memory on the right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    made = []
    for axis, (title, _) in AXES.items():
        cases = measured(results, axis)
        if len(cases) < 2:
            continue
        figure, panes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
        _panes(panes, results, axis, cases)
        for pane, label in zip(panes, ("samples/s", "memory above the weights, MB"), strict=True):
            pane.set(xlabel=title, ylabel=label, ylim=(0, None))
            pane.grid(alpha=0.3)
        panes[0].legend(frameon=False)
        path = folder / f"growth_{axis}.png"
        figure.savefig(path, dpi=120, metadata={"Software": None})
        plt.close(figure)
        made.append(path)
    return made


def _panes(panes: Sequence, results: Results, axis: str, cases: Sequence[Workload]) -> None:
    values = [int(case.name.partition("=")[2]) for case in cases]
    for name, label in BY.items():
        panes[0].plot(values, [_median(results, c, name, "speed") for c in cases], marker="o", label=label)
        panes[1].plot(
            values, [_median(results, c, name, "memory_bytes") / 1e6 for c in cases], marker="o", label=label
        )
