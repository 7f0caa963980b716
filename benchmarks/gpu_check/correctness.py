"""Is it right on this card? Ways that must agree, on models of real width, gradients included.

All bounds of bfloat16 are loose on purpose: it has 8 bits, so that two right ways through a model were seen to
differ by 1% in their logits, and by 0.02 nats in the mean and 0.24 at most in a token's log-probability. What is
wrong differs by far more: logits of tokens that see too much or too little of the tree by 18%, gradients with the
prefix detached by 77 to 93%. The bounds lie between.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.ceilings import exact_float32
from benchmarks.gpu_check.models import Bench, Named, policy_of
from benchmarks.gpu_check.record import Row
from benchmarks.gpu_check.runner import Add, Clock, SkippedError, rounds_of
from benchmarks.ours import make_step
from benchmarks.workload import Workload
from nlu_ppo.inference.decoder import generate, score_answers
from nlu_ppo.inference.prefix import SharedPrefix, pad, pad_id
from nlu_ppo.inference.reading import read_completions, reads_trees
from nlu_ppo.models.policy import Policy
from nlu_ppo.ppo.forward import score_completions

Ids = Sequence[int]
EXACT = 1e-4  # relative, in float32: toy models of two layers differ by 3e-7
COMPILED = 1e-3  # the same for compiled layers, whose kernels sum in another order
DETACHED = 0.05  # what a wrong gradient differs by at least: else the comparison would see nothing
TIE = 1e-3  # nats; two tokens nearer than this may change places by rounding in float32
BF16_LOGITS = 0.09
BF16_GRADIENT = 0.25
BF16_MEAN_NATS = 0.06


@dataclass(frozen=True)
class Reading:
    """What a policy says of completions: log-probabilities (B, T), the logits of all states that predict a token,
    (S, V), and gradients by name, of adapter and value head."""

    logprobs: Tensor
    logits: Tensor
    gradients: dict[str, Tensor]


def completions_for(workload: Workload) -> list[list[int]]:
    """Random ones, as long as a response."""
    generator = torch.Generator().manual_seed(2)
    shape = (len(workload.prompts), workload.response_tokens)
    return torch.randint(1, workload.shape.vocabulary, shape, generator=generator).tolist()


def look(
    policy: Policy,
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    share: bool,
    prefix: SharedPrefix | None = None,
) -> Reading:
    """Scores completions, and takes the gradient of a fixed random sum of all log-probabilities and values."""
    for _, parameter in policy.trainable():
        parameter.grad = None
    scored = score_completions(policy, prompts, completions, share_prefix=share, prefix=prefix)
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(2, *scored.logprobs.shape, generator=generator).to(policy.device)
    (weights[0] * scored.logprobs + weights[1] * scored.values).sum().backward()
    gradients = {n: p.grad.float() for n, p in policy.trainable() if p.grad is not None}
    with torch.no_grad():
        read = read_completions(policy, prompts, completions, share, prefix)
        logits = policy.logits(read.hidden)[read.which.flatten()]
    return Reading(scored.logprobs.detach().float(), logits, gradients)


def gradient_difference(a: Reading, b: Reading) -> float:
    """Norm of the difference of all gradients over the norm of those of `b`; infinite if one lacks some."""
    if a.gradients.keys() != b.gradients.keys() or not b.gradients:
        return math.inf
    difference = sum((a.gradients[n] - g).double().square().sum().item() for n, g in b.gradients.items())
    whole = sum(g.double().square().sum().item() for g in b.gradients.values())
    return math.sqrt(difference / whole) if whole else math.inf


def logit_difference(a: Reading, b: Reading) -> float:
    """Norm of the difference over that of `b`, whose mean over the vocabulary, which softmax ignores, is left out."""
    spread = b.logits - b.logits.mean(-1, keepdim=True)
    return ((a.logits - b.logits).norm() / spread.norm()).item()


def differences(a: Reading, b: Reading) -> dict[str, float]:
    nats = (a.logprobs - b.logprobs).abs()
    return {
        "logits_relative": logit_difference(a, b),
        "logprob_mean_nats": nats.mean().item(),
        "logprob_largest_nats": nats.max().item(),
        "gradient_relative": gradient_difference(a, b),
    }


def compare_answers(
    policy: Policy, prompts: Sequence[Ids], answers: Sequence[Ids], others: Sequence[Ids], tie: float
) -> dict[str, float]:
    """How many greedy answers are the same, and how many of the others differ by more than a tie.

    Where two answers part, the policy's own plain forward says how far its two tokens lie apart, in nats.
    """
    same = decided = 0
    for prompt, answer, other in zip(prompts, answers, others, strict=True):
        pairs = list(zip(answer, other, strict=False))
        parting = next((t for t, (a, b) in enumerate(pairs) if a != b), None)
        if parting is None:
            same += len(answer) == len(other)
            decided += len(answer) != len(other)
            continue
        row = torch.tensor([[*prompt, *answer[:parting]]], device=policy.device)
        with torch.inference_mode():
            logits = policy.logits(policy.hidden(row)[0, -1])
        decided += abs(logits[answer[parting]] - logits[other[parting]]).item() > tie
    return {"answers": len(answers), "same": same, "different_beyond_a_tie": decided}


def transformers_answers(model: Any, policy: Policy, prompts: Sequence[Ids], tokens: int) -> list[list[int]]:
    """Greedy answers by transformers' own `generate`, prompts padded on the left."""
    ids, mask = pad(prompts, pad_id(policy.tokenizer), "left", policy.device)
    with torch.inference_mode():
        found = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=pad_id(policy.tokenizer),
        )
    return found[:, ids.shape[1] :].tolist()


# -- the parts ------------------------------------------------------------------------------------------------


def sharing(bench: Bench, clock: Clock, add: Add) -> None:
    """Shared prefixes against plain rows in float32, and the decoder against transformers' own."""
    with exact_float32():
        for model in dict.fromkeys((bench.sizes.wide, bench.sizes.main)):
            clock.check()
            _sharing_of(bench, model, add)


def _sharing_of(bench: Bench, model: Named, add: Add) -> None:
    workload = bench.workload(model, bench.sizes.short, bench.sizes.batch, dtype="float32")
    built = bench.build(workload)
    policy, completions = policy_of(built, workload), completions_for(workload)
    prompts = workload.prompts
    plain, shared = (look(policy, prompts, completions, share) for share in (False, True))
    figures = {"tree": float(reads_trees(policy)), **differences(shared, plain)}
    bounds: dict[str, tuple[float | None, float | None]] = {
        "gradient_relative": (None, EXACT),
        "logits_relative": (None, EXACT),
    }
    add(Row("float32: shared prefix, plain rows", model.name, figures, bounds))

    with torch.no_grad():
        prefix = SharedPrefix(policy, prompts)
    wrong = gradient_difference(look(policy, prompts, completions, True, prefix), plain)
    control: dict[str, tuple[float | None, float | None]] = {"gradient_relative": (DETACHED, None)}
    add(
        Row(
            "control: prefix without its gradient",
            model.name,
            {"gradient_relative": wrong},
            control,
            "must be seen",
        )
    )

    ours = generate(policy, prompts, workload.response_tokens)
    theirs = transformers_answers(built, policy, prompts, workload.response_tokens)
    found = compare_answers(policy, prompts, theirs, ours, TIE)
    add(
        Row(
            "float32: greedy answers, transformers' generate",
            model.name,
            found,
            {"different_beyond_a_tie": (0, 0)},
        )
    )

    totals = torch.tensor(score_answers(policy, prompts, [[c] for c in completions]), device=policy.device)
    gap = (totals.squeeze(1) - plain.logprobs.sum(1)).abs().max().item()
    add(
        Row(
            "float32: labels' scores, plain rows",
            model.name,
            {"largest_nats": gap},
            {"largest_nats": (None, TIE)},
        )
    )


def precision(bench: Bench, clock: Clock, add: Add) -> None:
    """Bfloat16 against float32 with the very same weights, as shared prefixes and as plain rows."""
    model = bench.sizes.main
    workload = bench.workload(model, bench.sizes.short, bench.sizes.batch)
    built = bench.build(workload)
    policy, completions = policy_of(built, workload), completions_for(workload)
    prompts = workload.prompts
    coarse = {share: look(policy, prompts, completions, share) for share in (True, False)}
    answers = generate(policy, prompts, workload.response_tokens)
    clock.check()
    with exact_float32():
        built.float()  # every bfloat16 number is a float32 one
        exact = look(policy, prompts, completions, share=False)
        right = generate(policy, prompts, workload.response_tokens)
        bounds: dict[str, tuple[float | None, float | None]] = {
            "logits_relative": (None, BF16_LOGITS),
            "logprob_mean_nats": (None, BF16_MEAN_NATS),
            "gradient_relative": (None, BF16_GRADIENT),
        }
        for share, reading in coarse.items():
            way = "shared prefix" if share else "plain rows"
            add(Row(f"bfloat16, {way}: float32", model.name, differences(reading, exact), bounds))
        add(Row("bfloat16: shared prefix, plain rows", model.name, differences(*coarse.values()), bounds))
        # each of the two tokens may have moved by as much as any was seen to, and decoding rounds once more
        tie = 4 * (coarse[True].logits - exact.logits).abs().max().item()
        found = {**compare_answers(policy, prompts, right, answers, tie), "tie_nats": tie}
        add(Row("bfloat16: greedy answers, float32", model.name, found, {"different_beyond_a_tie": (0, 0)}))


def compiled(bench: Bench, clock: Clock, add: Add) -> None:
    """Compiled layers against eager ones: the same numbers, and how long a step takes."""
    try:
        from nlu_ppo.models.compiling import compile_layers
    except ImportError:
        raise SkippedError("not there yet: nlu_ppo.models.compiling") from None
    with _warnings_of(compile_layers.__module__) as said:
        _compiled_alike(bench, clock, add, compile_layers)
        _compiled_speed(bench, clock, add, compile_layers)
    if said:  # what can't be compiled runs as it is, so that the rows compare eager with eager
        raise SkippedError(f"not compiled: {said[0]}")


@contextlib.contextmanager
def _warnings_of(module: str) -> Iterator[list[str]]:
    """What a module warns of in the block."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listener = Listener(logging.WARNING)
    logging.getLogger(module).addHandler(listener)
    try:
        yield said
    finally:
        logging.getLogger(module).removeHandler(listener)


def _compiled_alike(bench: Bench, clock: Clock, add: Add, compile_layers: Any) -> None:
    model = bench.sizes.wide
    workload = bench.workload(model, bench.sizes.short, bench.sizes.batch, dtype="float32")
    with exact_float32():
        built = bench.build(workload)
        policy, completions = policy_of(built, workload), completions_for(workload)
        prompts = workload.prompts
        eager = {share: look(policy, prompts, completions, share) for share in (True, False)}
        answers = generate(policy, prompts, workload.response_tokens)
        compile_layers(built)
        clock.check()
        bounds: dict[str, tuple[float | None, float | None]] = {
            "logits_relative": (None, COMPILED),
            "gradient_relative": (None, COMPILED),
        }
        for share, before in eager.items():
            found = differences(look(policy, prompts, completions, share), before)
            way = "shared prefix" if share else "plain rows"
            add(Row(f"float32, {way}: compiled, eager", model.name, found, bounds))
        again = generate(policy, prompts, workload.response_tokens)
        figures = compare_answers(policy, prompts, answers, again, TIE)
        add(Row("float32: greedy answers, compiled", model.name, figures, {"different_beyond_a_tie": (0, 0)}))


def _compiled_speed(bench: Bench, clock: Clock, add: Add, compile_layers: Any) -> None:
    model = bench.sizes.main
    workload = replace(bench.workload(model, bench.sizes.short, bench.sizes.batch), name="step")
    for name in ("eager", "compiled"):
        clock.check()
        built = bench.build(workload)
        if name == "compiled":
            compile_layers(built)
        step = make_step(workload, built, policy_of(built, workload, value_head=False).tokenizer)
        # what is compiled for one step may not fit the next one's shapes
        seconds, rounds, _ = rounds_of(step, clock, bench.sizes.rounds, warm_up=2)
        figures = {"step_s": seconds, "samples_per_s": len(workload.prompts) / seconds, "rounds": rounds}
        add(Row(f"bfloat16: PPO step, {name}", model.name, figures))
        del step, built
