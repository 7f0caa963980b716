"""Runs one batch of TRL 1.12's PPO trainer and writes down all that it computes: the other side of
test_trl_agreement.py, run by the Python of TRL's own environment.

    python trl_peer.py FOLDER    reads FOLDER/cases.json and FOLDER/model, writes FOLDER/NAME.pt per case

The trainer is TRL's own, unchanged. Its `train` is one long function, so that what it computes is read from its
frame: of a minibatch when the optimizer steps, of the batch when it logs.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from float64 import in_float64
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer

OF_A_BATCH = (
    "queries",
    "responses",
    "query_responses",
    "logprobs",
    "ref_logprobs",
    "values",
    "scores",
    "sequence_lengths",
    "rewards",
    "advantages",
    "returns",
    "metrics",
)
OF_A_MINIBATCH = ("mini_batch_inds", "loss", "pg_loss", "vf_loss", "pg_clipfrac", "vf_clipfrac", "vpred")


class RuleReward(nn.Module):
    """A rule in the form of a reward model: 1 if a completion ends with an even token, else -1."""

    base_model_prefix = "rule"

    def __init__(self) -> None:
        super().__init__()
        self.rule, self.score = _Parity(), nn.Identity()


class _Parity(nn.Module):
    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        even = 1.0 - 2.0 * (input_ids % 2).to(torch.get_default_dtype())
        return types.SimpleNamespace(hidden_states=[even.unsqueeze(-1)])


class SharedCritic(nn.Module):
    """A value head on the policy's own trunk, whose gradient goes on into the trunk."""

    base_model_prefix = "trunk"

    def __init__(self, trunk: nn.Module, head: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.trunk = trunk
        self.score = nn.Linear(head["weight"].shape[1], 1).to(head["weight"].dtype)
        self.score.load_state_dict(head)


class Recorder(PPOTrainer):
    """TRL's trainer, and what it says of itself."""

    def watch(self) -> None:
        self.record: dict[str, Any] = {"steps": []}
        inner = self.optimizer.optimizer  # accelerate wraps it
        inner.register_step_pre_hook(lambda *_: self._before_step())
        inner.register_step_post_hook(lambda *_: self._after_step())

    def _weights(self) -> dict[str, torch.Tensor]:
        policy = {n: p for n, p in self.policy_model.named_parameters() if p.requires_grad}
        head = {f"value_head.linear.{n}": p for n, p in self.value_model.score.named_parameters()}
        return policy | head

    def _before_step(self) -> None:
        self.record["steps"].append(
            {
                "gradients": {n: p.grad.clone() for n, p in self._weights().items()},
                "before": {n: p.detach().clone() for n, p in self._weights().items()},
            }
        )

    def _after_step(self) -> None:
        frame = sys._getframe(1)
        while frame.f_code is not PPOTrainer.train.__code__:
            assert frame.f_back is not None
            frame = frame.f_back
        step = self.record["steps"][-1]
        step["after"] = {n: p.detach().clone() for n, p in self._weights().items()}
        # what is computed behind the step (clip fractions) is added when the next minibatch's step comes
        step |= {name: _kept(frame.f_locals[name]) for name in OF_A_MINIBATCH if name in frame.f_locals}

    def log(self, metrics: dict[str, float], *_: Any) -> None:
        inside = sys._getframe(1).f_locals
        self.record |= {name: _kept(inside[name]) for name in OF_A_BATCH}
        for name in ("pg_clipfrac_stats", "vf_clipfrac_stats", "entropy_stats"):
            self.record[name] = _kept(inside[name])


def _kept(value: Any) -> Any:
    return torch.as_tensor(value).detach().clone() if isinstance(value, torch.Tensor | np.ndarray) else value


def run(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    dtype = torch.float64 if case["float64"] else torch.float32
    model_dir = folder / "model"
    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).to(dtype)
    policy = PeftModel.from_pretrained(base, model_dir / "adapter", is_trainable=True).to(dtype)
    head = {n: t.to(dtype) for n, t in torch.load(model_dir / "value_head.pt").items()}
    with in_float64() if case["float64"] else contextlib.nullcontext():
        return train(case, tokenizer, policy, head)


def train(case: dict[str, Any], tokenizer: Any, policy: Any, head: dict[str, torch.Tensor]) -> dict[str, Any]:
    config = PPOConfig(
        output_dir=tempfile.mkdtemp(),
        # rows of a device, times accumulation, are the batch
        per_device_train_batch_size=len(case["prompts"]),
        gradient_accumulation_steps=1,
        total_episodes=len(case["prompts"]),
        local_rollout_forward_batch_size=len(case["prompts"]),
        lr_scheduler_type="constant",
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **case["trl"],
    )
    trainer = Recorder(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,  # the policy with its adapter off
        reward_model=RuleReward(),
        train_dataset=Dataset.from_dict({"input_ids": case["prompts"]}),
        value_model=SharedCritic(policy.get_base_model().model, head),
    )
    np.random.seed(case["trl"]["seed"])  # orders the minibatches
    trainer.watch()
    trainer.train()
    return trainer.record


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    for case in json.loads((folder / "cases.json").read_text(encoding="utf-8")):
        torch.save(run(folder, case), folder / f"{case['name']}.pt")


if __name__ == "__main__":
    main()
