"""Optimizers and learning rate schedules of the methods that train."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.optimization import Adafactor

from nlu_ppo.config import TrainingConfig
from nlu_ppo.errors import TrainingDivergedError

FLOOR = 0.1  # the cosine ends at a tenth of the peak (paper A, appendix C)


def build_optimizer(parameters: list[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adafactor":
        # as PPO on language models uses it: the given rate, not the relative steps of the original paper
        return Adafactor(
            parameters,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            scale_parameter=False,
            relative_step=False,
            warmup_init=False,
        )
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True if _on_cuda(parameters) else None,
    )


def _on_cuda(parameters: list[nn.Parameter]) -> bool:
    """Whether one kernel can move all parameters; on the CPU torch's own choice stays, and every bit with it."""
    return all(p.device.type == "cuda" and p.is_floating_point() for p in parameters)


def rate_factor(config: TrainingConfig, step: int, steps: int) -> float:
    """Learning rate of step `step` (from 0) of `steps`, as a fraction of the peak."""
    warmup = round(config.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(steps - warmup, 1)
    if config.schedule == "linear":
        return 1.0 - done
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * done))


def diverged(step: int, error: Exception) -> TrainingDivergedError:
    """The error of a training that has run away in its step `step` (from 1), with what to do."""
    return TrainingDivergedError(
        f"step {step}: {error}. Checkpoints are from before: if it was chance, such as a fault of the machine, the "
        f"same command goes on from the last one"
    )


def steps_of(config: TrainingConfig, examples: int) -> int:
    """Steps that `epochs` passes over so many examples take, at most `max_steps`."""
    steps = max(1, math.ceil(config.epochs * examples / config.batch_size))
    return min(steps, config.max_steps) if config.max_steps else steps
