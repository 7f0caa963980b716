"""TRL 0.11.4, the last release with `.generate` and `.step`, the interface that RL4GLUE was written for.

Two ways: with the workload's settings, or, with NLU_PPO_BENCH_RL4GLUE set, as RL4GLUE drives it (12 to 31 new
tokens without a stop at the closing tag, drawn in groups of 4, one optimizer step per epoch by accumulation).
"""

from __future__ import annotations

import os
from typing import Any

import torch
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer  # type: ignore[attr-defined]
from trl.core import LengthSampler

from benchmarks.worker import Outcome, Step, serve, timed
from benchmarks.workload import PAD, Workload

RL4GLUE = "NLU_PPO_BENCH_RL4GLUE"


def make_step(workload: Workload, model: Any, tokenizer: Any) -> Step:
    as_rl4glue = bool(os.environ.get(RL4GLUE))
    accumulation = workload.batch_size // workload.minibatch_size if as_rl4glue else 1
    config = PPOConfig(
        batch_size=workload.batch_size,
        mini_batch_size=workload.minibatch_size,
        gradient_accumulation_steps=accumulation,
        ppo_epochs=workload.epochs,
        learning_rate=1e-5,
        seed=workload.seed,
    )
    policy = AutoModelForCausalLMWithValueHead.from_pretrained(model)
    trainer = PPOTrainer(config, policy, ref_model=None, tokenizer=tokenizer)
    queries = [torch.tensor(row) for row in workload.prompts]
    drawing: dict[str, Any] = {
        "do_sample": True,
        "top_k": 0,
        "top_p": 1.0,
        "pad_token_id": PAD,
        "return_prompt": False,
    }
    if as_rl4glue:
        drawing |= {"length_sampler": LengthSampler(12, 32), "batch_size": 4}
    else:
        drawing |= {"max_new_tokens": workload.response_tokens, "batch_size": workload.batch_size}

    def step() -> Outcome:
        phases: dict[str, float] = {}
        with timed(phases, "rollout"):
            responses = trainer.generate(queries, **drawing)
        rewards = [torch.tensor(1.0 - 2.0 * (int(response[0]) % 2)) for response in responses]
        with timed(phases, "reference and update"):
            trainer.step(queries, responses, rewards)
        return Outcome([len(response) for response in responses], phases)

    return step


if __name__ == "__main__":
    serve(make_step)
