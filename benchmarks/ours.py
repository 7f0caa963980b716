"""This project as a contender: the engine of `method=ppo`, and the label scoring of its evaluation."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.worker import Outcome, Step, serve, timed
from benchmarks.workload import Workload
from nlu_ppo.config import PPOConfig
from nlu_ppo.inference.decoder import score_answers
from nlu_ppo.methods.optimization import build_optimizer
from nlu_ppo.models.policy import Policy
from nlu_ppo.ppo.rollout import collect
from nlu_ppo.ppo.update import update
from nlu_ppo.prompting import Prompt
from nlu_ppo.tasks.record import Example, Label

PLAIN = "NLU_PPO_BENCH_PLAIN"  # set: without sharing prefixes
ONE_PREFIX = (
    "NLU_PPO_BENCH_ONE_PREFIX"  # set: with the one prefix that all rows share, as without tree attention
)


def judge(text: str, example: Example) -> tuple[float, Label | None, bool]:
    """A rule: the completion's last word is an even one."""
    right = text.endswith(("0", "2", "4", "6", "8"))
    return (1.0 if right else -1.0), int(right), right


def ppo_config(workload: Workload, share_prefix: bool) -> PPOConfig:
    return PPOConfig(
        name="ppo",
        learning_rate=1e-5,
        batch_size=workload.batch_size,
        minibatch_size=workload.minibatch_size,
        micro_batch_size=workload.minibatch_size,
        ppo_epochs=workload.epochs,
        share_prefix=share_prefix,
    )


def make_step(workload: Workload, model: Any, tokenizer: Any, share_prefix: bool = True) -> Step:
    policy = Policy(model.eval(), tokenizer, workload.shape.positions)
    if os.environ.get(ONE_PREFIX):
        policy.reads_trees = False
    return _labels(policy, workload) if workload.kind == "eval" else _ppo(policy, workload, share_prefix)


def _ppo(policy: Policy, workload: Workload, share_prefix: bool) -> Step:
    config = ppo_config(workload, share_prefix)
    policy.freeze_reference()
    policy.add_value_head()
    optimizer = build_optimizer([p for _, p in policy.trainable()], config)
    sampling = torch.Generator(policy.device).manual_seed(workload.seed)
    shuffling = torch.Generator().manual_seed(workload.seed)
    prompts = [Prompt("", row) for row in workload.prompts]
    examples = [Example(f"train-{i}", {}, None) for i in range(len(prompts))]

    def step() -> Outcome:
        phases: dict[str, float] = {}
        with _timed_reference(policy, phases), timed(phases, "rollout"):
            rollouts = collect(
                policy, prompts, examples, judge, config, workload.response_tokens, 0.2, sampling
            )
        # the rest of `collect`: drawing, and the policy's own log-probabilities and values
        phases["rollout"] -= phases["reference"]
        with timed(phases, "update"):
            figures = update(policy, optimizer, rollouts, config, shuffling)
        return Outcome([len(c) for c in rollouts.completions], phases, figures)

    return step


@contextlib.contextmanager
def _timed_reference(policy: Policy, phases: dict[str, float]) -> Iterator[None]:
    """Times whatever runs while the policy plays its own reference."""
    original = policy.reference

    @contextlib.contextmanager
    def reference() -> Iterator[Policy]:
        with timed(phases, "reference"), original() as found:
            yield found

    policy.reference = reference  # type: ignore[method-assign]
    try:
        yield
    finally:
        policy.reference = original  # type: ignore[method-assign]


def _labels(policy: Policy, workload: Workload) -> Step:
    answers = [workload.labels] * len(workload.prompts)

    def step() -> Outcome:
        scores = score_answers(policy, workload.prompts, answers, batch_size=workload.batch_size)
        return Outcome(scores=scores)

    return step


if __name__ == "__main__":
    serve(lambda w, m, t: make_step(w, m, t, share_prefix=not os.environ.get(PLAIN)))
