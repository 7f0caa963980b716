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
PROFILE = RESULTS / "profile-cpu-2-cores.txt"

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
make bench-quick     # the reference case and one evaluation: under 10 minutes
make bench           # everything, five rounds, and how it grows: about an hour
```

`make bench ARGS="--case reference --rounds 7"` measures one case; `ARGS="--data-dir DIR"` adds MultiRC, with DIR
holding `superglue/MultiRC`. `python -m benchmarks.profile` shows where the time of a step goes.

## What makes a step short

- **Every common beginning runs once.** The rows of a forward pass form a tree: instruction, passage, prompt of several
  rollouts. Its tokens stand in one packed row, and attention is computed in parts, each node's queries against its own
  keys and each node's keys against all queries below it, joined by their log-sums
  (`src/nlu_ppo/inference/tree_attention.py`). In training all of it has its gradient, value head included.
- **Only states that predict a completion token meet the head**, and the vocabulary is taken in stretches, the gradient
  in the same pass (`src/nlu_ppo/models/token_logprobs.py`): no tensor of states by vocabulary exists.
- **The last layer's MLP runs for those states only**: behind the last attention tokens don't meet any more.
- **Nothing is scored twice.** In float32 old log-probabilities and values come from drawing; the reference's keys of
  the common prefix are kept for the whole run. (In bfloat16 drawing and training round differently by more than the
  clip range forgives, so that the completions are scored once more.)
- **Fewer passes over memory** between products: LoRA's layer and RMSNorm are written out (`models/lean.py`), decoding
  writes keys into room that is there, and glibc is told to keep freed memory (`models/memory.py`), without which every
  large tensor is cleared page by page again.

Others share parts of this in training: TRL's AsyncGRPO packs trees (CUDA with FlashAttention 3 and vLLM, no critic),
AReaL trains on trees (no critic), verl's PrefixGrouper shares one prompt among its own completions, flash-preference
among a pair's. Which way is taken for which rows, and why, is in [concepts](concepts.md#shared-prefixes). On a GPU none
of this has been measured yet.

## What stands between a step and its floor

The aim was three quarters of the floor at the machine's matrix rate, and a step reaches half. The products of the model
itself run at over 90% of that rate (434 x 512 by 512 x 1376 at 370 of 400 GFLOP/s), so nothing is left to gain in
them; but on a processor as fast as this one all products are 62% of the time. The rest is what lies between
them, each a pass over memory or a small kernel: attention in parts, rotary embedding, SwiGLU, norms, residual sums,
LoRA's products of rank 16, the head at 48 rows, decoding at 16 rows, and the bookkeeping of autograd and Python.

Tried, with what it gave on the reference step: taking the vocabulary in stretches (from 2.8 to 2.55 s, with the last
MLP and the roomy cache), one random number a row in place of `torch.multinomial` (8.5 to 0.3 ms a draw), RMSNorm
and LoRA written out and the malloc setting (2.55 to 2.4 s), the kept prefix and no second scoring (half a per cent
each). Tried and left: `torch.nn.functional.rms_norm` (1.2 ms forward and backward, where ours takes 0.35),
huge pages (no difference), gate and up in one product (4% of these two), gathering tokens by rows in place of heads
(0.02 ms a call), `torch.compile` of the MLP and the rotary embedding (2.64 s a step against 2.67 to 2.87 without).
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
    chosen = {name for s in sessions for name in (*s.watched, *s.missing)}
    lines += [_row(sessions, c, kind) for c in contenders(kind).values() if c.name in chosen]
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


def _profile() -> list[str]:
    """Where the time of a step goes, as `benchmarks.profile` printed it on the machine of the results."""
    if not PROFILE.exists():
        return []
    return [
        "### Where the time of a reference step goes",
        f"```\n{PROFILE.read_text(encoding='utf-8').strip()}\n```",
    ]


def page(results: Results) -> str:
    """docs/performance.md."""
    pictures = [
        f"![Throughput and memory by {title}](images/growth_{axis}.png)"
        for axis, (title, _) in growth.AXES.items()
        if len(growth.measured(results, axis)) > 1
    ]
    return (
        "\n\n".join([INTRODUCTION.rstrip(), "## Results", tables(results).rstrip(), *_profile(), *pictures])
        + "\n"
    )


def write_page(source: Path = SHOWN, page_file: Path = PAGE) -> None:
    """Writes the page, and the pictures beside it."""
    results = Results.read(source)
    growth.draw(results, page_file.parent / "images")
    page_file.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    write_page()
