"""Results as text: tables for the terminal and for docs/performance.md, and the line that a program reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks import growth
from benchmarks.contenders import OURS, ROOT, Contender, contenders
from benchmarks.results import RESULTS, Results, Spread, figures, ratios, why_missing
from benchmarks.session import NOISE, Session

PAGE = ROOT / "docs" / "performance.md"
SHOWN = RESULTS / "cpu-2-cores.json"  # the results that the page shows

INTRODUCTION = """\
# Performance

<!-- Written by `make bench` from benchmarks/results/: measure again rather than edit this page. -->

How fast PPO and label scoring are here, and beside other libraries doing the same work on the same machine.

The reference case is a Llama of 8 layers with random weights (hidden size 512, 8 heads, intermediate size 1376,
vocabulary 32,000), float32, LoRA of rank 16 on q and v; 16 prompts of 128 tokens whose first 90 are the same,
completions of 6 tokens, minibatches of 8, 4 epochs, a reward by rule. A **step** is all of it for one batch:
drawing, the reference's and the policy's log-probabilities, values, and 8 optimizer steps. Random weights cost
as much as trained ones, and nothing has to be downloaded.

- Contenders run in processes of their own and take turns, so that a slow minute of the machine hits all of
  them. Given are the median of the rounds and, in parentheses, the smallest and the largest.
- **speed** is samples per second, ours over theirs, round by round; **memory** is the peak above the policy's
  weights, ours over theirs.
- Before it is timed, every contender does one step under counters, and is left out, with the reason in the
  table, if it made other optimizer steps, drew other completions or saw other prompts than it should.
- TRL 1.12 is the last that ships PPO (`trl.experimental.ppo`), and is shown with a critic of its own, as its
  documentation has it, and with a value head on the policy, which it runs twice all the same. TRL 0.11.4 is the
  last with `.generate` and `.step`. The code of the paper whose settings are PPO's defaults (RL4GLUE) drives it
  to draw 12 to 31 tokens without a stop and to make one optimizer step per epoch.
- **tokens** are those that entered a trunk, per sample, padding and critics included.
- **possible** is the time that the matrix products which the mathematics needs would take at the rate that this
  machine multiplied a 2048 x 2048 matrix during the run: what prompts begin with alike counted once, logits at
  completion tokens only (benchmarks/flops.py).

## Reproduce

```
make bench-peers     # the other libraries, each in an environment of its own: a few minutes
make bench-quick     # the reference case and one evaluation: meant to take under 10 minutes
make bench           # everything, five rounds: meant to take an hour and a half
```

`make bench ARGS="--case reference --rounds 7"` measures one case; `ARGS="--data-dir DIR"` adds MultiRC, with DIR
holding `superglue/MultiRC`. `python -m benchmarks.profile` shows where the time of a step goes.
"""


def tables(results: Results) -> str:
    """All that was measured, as Markdown."""
    machine = results.machine
    parts = [
        f"Machine: {machine['processor']}, {machine['cores']} cores ({machine['threads']} threads used), "
        f"{machine['memory_gb']} GB, {machine['system']}, Python {machine['python']}, torch {machine['torch']}."
    ]
    cases = [case for case in results.cases if not growth.is_growth(case)]
    ppo = [case for case in cases if PPO_KEY in results.of(case)[0].needed["shared"]]
    labels = [case for case in cases if case not in ppo]
    parts += [_case(results.of(case), "ppo") for case in ppo]
    if ppo:
        parts += ["### Achieved over possible", _floors(results, ppo)]
    parts += [_case(results.of(case), "eval") for case in labels]
    if len(cases) < len(results.cases):
        parts += ["### How it grows", growth.table(results)]
    parts.append(_versions(results))
    return "\n\n".join(parts) + "\n"


PPO_KEY = "update"


def _case(sessions: Sequence[Session], kind: str) -> str:
    first = sessions[-1]
    lines = [f"### {first.case}", "", f"{first.about}.", ""]
    unit = "seconds a step" if kind == "ppo" else "examples/s"
    lines += [
        f"| | {unit} | speed, ours over theirs | peak memory, MB | memory, ours over theirs | tokens |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_row(sessions, contender, kind) for contender in contenders(kind).values()]
    lines += [_agreement(sessions, c) for c in contenders(kind).values() if c.name in first.agreement]
    return "\n".join(lines)


def _row(sessions: Sequence[Session], contender: Contender, kind: str) -> str:
    name = contender.name
    reason = why_missing(sessions, name)
    if reason:
        return f"| {contender.title} | {_cell(reason)} | - | - | - | - |"
    seconds = figures(sessions, name, "seconds")
    samples = sessions[-1].samples
    first = _spread([samples / s for s in seconds], 1) if kind == "eval" else _spread(seconds, 2)
    memory = _spread([bytes_ / 1e6 for bytes_ in figures(sessions, name, "memory_bytes")], 0)
    speed = lean = "1"
    if name != OURS:
        speed = _spread(ratios(sessions, name, OURS), 2)
        lean = _spread(ratios(sessions, OURS, name, "memory_bytes"), 2)
    tokens = [s.watched[name]["trunk_tokens"] / s.samples for s in sessions if name in s.watched]
    return f"| {contender.title} | {first} | {speed} | {memory} | {lean} | {tokens[-1]:.0f} |"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def _spread(values: Sequence[float], digits: int) -> str:
    spread = Spread.of(values)
    if spread is None:
        return "-"
    shown = f"{spread.median:.{digits}f}"
    if spread.count == 1:
        return shown
    return f"{shown} ({spread.low:.{digits}f} to {spread.high:.{digits}f})"


def _agreement(sessions: Sequence[Session], contender: Contender) -> str:
    found = sessions[-1].agreement[contender.name]
    return (
        f"\n{contender.title} chose the same label on {found['same']:.0f} of the {found['decided']:.0f} examples "
        f"(of {found['examples']:.0f}) whose labels lie more than {NOISE:g} nats apart; the largest difference of "
        f"a score was {found['largest_difference']:.1g} nats."
    )


def _floors(results: Results, cases: Sequence[str]) -> str:
    """Operations, the time they would take, and which part of the measured time that is."""
    lines = [
        "| case | GFLOP a sample, shared (plain) | matmul, GFLOP/s | possible s | rollout | reference | update "
        "| whole step |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in cases:
        sessions = results.of(case)
        rate = Spread.of([rate for session in sessions for rate in session.matmul_flops])
        if rate is None or why_missing(sessions, OURS):
            continue
        shared, plain = (sessions[-1].needed[way] for way in ("shared", "plain"))
        samples = sessions[-1].samples
        shares = [
            f"{share:.0%}"
            for share in achieved(sessions, rate.median, "rollout", "reference", "update").values()
        ]
        lines.append(
            f"| {case} | {shared['total'] / samples / 1e9:.1f} ({plain['total'] / samples / 1e9:.1f}) "
            f"| {rate.median / 1e9:.0f} | {shared['total'] / rate.median:.2f} | {' | '.join(shares)} |"
        )
    lines += [
        "",
        "Rollout here is everything before the update but the reference: it includes the pass for the policy's own "
        "log-probabilities and values where the engine makes one, which the floor has for nothing.",
    ]
    return "\n".join(lines)


def achieved(sessions: Sequence[Session], rate: float, *phases: str) -> dict[str, float]:
    """Possible over measured time, of the phases and of the whole step."""
    needed = sessions[-1].needed["shared"]
    found = {}
    for phase in (*phases, "total"):
        seconds = Spread.of(figures(sessions, OURS, "seconds" if phase == "total" else phase))
        assert seconds is not None
        found[phase] = needed[phase] / rate / seconds.median
    return found


def _versions(results: Results) -> str:
    found: dict[str, dict[str, str]] = {}
    for session in results.sessions:
        found |= session.versions
    lines = [
        f"- {name}: " + ", ".join(f"{k} {v}" for k, v in sorted(of.items())) for name, of in found.items()
    ]
    return "\n".join(["### Versions", "", *lines]) if lines else "No contender ran."


def summary(
    results: Results, ppo_case: str = "reference", eval_case: str = "eval_5_shot"
) -> dict[str, float | None]:
    """The figures that a program may read: medians over rounds, `None` where a peer is missing."""

    def median(case: str, above: str, below: str, key: str = "seconds") -> float | None:
        spread = Spread.of(ratios(results.of(case), above, below, key))
        return round(spread.median, 3) if spread else None

    return {
        "vs_trl_1_12": median(ppo_case, "trl_1_12", OURS),
        "vs_trl_0_11": median(ppo_case, "trl_0_11", OURS),
        "memory_vs_trl_1_12": median(ppo_case, OURS, "trl_1_12", "memory_bytes"),
        "eval_vs_lm_eval": median(eval_case, "lm_eval", OURS),
    }


def last_line(results: Results) -> str:
    return json.dumps(summary(results))


def page(results: Results) -> str:
    """docs/performance.md."""
    pictures = [
        f"![Throughput and memory by {title}](images/growth_{axis}.png)"
        for axis, (title, _) in growth.AXES.items()
        if len(growth.measured(results, axis)) > 1
    ]
    return "\n\n".join([INTRODUCTION.rstrip(), "## Results", tables(results).rstrip(), *pictures]) + "\n"


def write_page(source: Path = SHOWN, page_file: Path = PAGE) -> None:
    """Writes the page, and the pictures beside it."""
    results = Results.read(source)
    growth.draw(results, page_file.parent / "images")
    page_file.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    write_page()
