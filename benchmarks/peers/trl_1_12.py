"""TRL 1.12's `experimental.ppo`, the last PPO trainer that TRL had.

It has no way to do a single step, so that a step here is a `train()` over one batch. Two ways to have a critic:
a model of its own, all of it trained (as its documentation does), or, with NLU_PPO_BENCH_SHARED_CRITIC set, a
value head on the policy's trunk, which the trainer runs once more for it.
"""

from __future__ import annotations

import os
import tempfile
import types
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForSequenceClassification
from trl.experimental.ppo import PPOConfig, PPOTrainer

from benchmarks.worker import Outcome, Step, draw_weights, serve
from benchmarks.workload import Workload

SHARED_CRITIC = "NLU_PPO_BENCH_SHARED_CRITIC"


class RuleReward(nn.Module):
    """A rule in the form of a reward model, the only form that the trainer takes: it sees token ids alone."""

    base_model_prefix = "backbone"

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _Parity()
        self.score = nn.Identity()


class _Parity(nn.Module):
    """1 on even tokens, -1 on odd ones."""

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return types.SimpleNamespace(hidden_states=[(1.0 - 2.0 * (input_ids % 2)).unsqueeze(-1)])


class SharedCritic(nn.Module):
    """A value head on the policy's own trunk."""

    base_model_prefix = "trunk"

    def __init__(self, trunk: nn.Module, hidden: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.score = nn.Linear(hidden, 1)


def own_critic(workload: Workload, policy: Any) -> Any:
    config = type(policy.config)(**{**policy.config.to_dict(), "num_labels": 1})
    with torch.device(workload.device):
        critic: Any = AutoModelForSequenceClassification.from_config(config)
    draw_weights(critic, workload.seed)
    return critic.to(getattr(torch, workload.dtype))


def make_step(workload: Workload, model: Any, tokenizer: Any) -> Step:
    shared = bool(os.environ.get(SHARED_CRITIC))
    trunk = model.get_base_model().model
    critic = SharedCritic(trunk, workload.shape.hidden) if shared else own_critic(workload, model)
    args = PPOConfig(
        output_dir=tempfile.mkdtemp(),
        # Rows of a device, times accumulation, are the batch. With 8 and 2 the number of optimizer steps would
        # vary from batch to batch; with 16 and 1 it is epochs times minibatches.
        per_device_train_batch_size=workload.batch_size,
        gradient_accumulation_steps=1,
        num_mini_batches=workload.batch_size // workload.minibatch_size,
        num_ppo_epochs=workload.epochs,
        total_episodes=workload.batch_size,
        local_rollout_forward_batch_size=workload.batch_size,
        response_length=workload.response_tokens,
        temperature=1.0,
        kl_coef=0.2,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=workload.device == "cpu",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=workload.seed,
    )
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=model,
        ref_model=None,
        reward_model=RuleReward(),
        train_dataset=Dataset.from_dict({"input_ids": [list(row) for row in workload.prompts]}),
        value_model=critic,
    )

    def step() -> Outcome:
        trainer.train()
        # without a stop token, every completion has `response_length` tokens
        return Outcome([workload.response_tokens] * len(workload.prompts))

    return step


if __name__ == "__main__":
    serve(make_step)
