"""The update: several epochs of clipped steps on one batch of rollouts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import torch

from nlu_ppo import ranks
from nlu_ppo.config import PPOConfig
from nlu_ppo.errors import TrainingDivergedError
from nlu_ppo.models.policy import Policy
from nlu_ppo.ppo import maths
from nlu_ppo.ppo.forward import in_micro_batches, score_completions
from nlu_ppo.ppo.rollout import Rollouts


class ForwardMismatchError(RuntimeError):
    """Two forward passes of one policy differ by more than rounding, so that PPO's ratios mean nothing."""


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    rollouts: Rollouts,
    config: PPOConfig,
    generator: torch.Generator,
) -> dict[str, float]:
    """`ppo_epochs` passes over the rollouts, one optimizer step per minibatch.

    Several processes (`ranks`) each take their share of every minibatch, and add up what they find.

    Returns:
        means over all minibatches of the losses and of the clip fractions; `ppo/optimizer_steps`, fewer than all
        where `target_kl` ended the passes; and `ppo/first_ratio_error`, the largest |ratio - 1| of the first
        minibatch, which only rounding may move from 0.

    Raises:
        TrainingDivergedError: a loss or the gradient is NaN or infinite; the weights were not moved by it.
    """
    totals: dict[str, float] = defaultdict(float)
    seen, steps, first_ratio_error = 0, 0, 0.0
    parameters = [p for _, p in policy.trainable()]
    for minibatch in _minibatches(len(rollouts.completions), config, generator):
        found = _gradients(policy, optimizer, rollouts, minibatch, config)
        ranks.add_gradients(parameters)
        for name, value in found.sums.items():
            totals[name] += value
        if seen == 0:
            first_ratio_error = found.ratio_error
        seen += 1
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or math.inf)
        if not math.isfinite(totals["ppo/loss"]) or not torch.isfinite(norm):
            raise TrainingDivergedError(
                f"PPO's loss or gradient is no longer finite (loss {totals['ppo/loss']:.4g}, gradient "
                f"norm {norm:.4g}): lower method.learning_rate, set method.max_grad_norm, or look for huge rewards"
            )
        totals["ppo/grad_norm"] += norm.item()
        if config.target_kl is not None and found.sums["approx_kl"] > config.target_kl:
            break  # the policy has gone far enough from the one that drew these rollouts
        optimizer.step()
        steps += 1
    return {
        "ppo/loss": totals["ppo/loss"] / seen,
        "ppo/policy_loss": totals["policy"] / seen,
        "ppo/value_loss": totals["value"] / seen,
        "ppo/entropy": totals["entropy"] / seen,
        "ppo/clip_fraction": totals["policy_clipped"] / seen,
        "ppo/value_clip_fraction": totals["value_clipped"] / seen,
        "ppo/approx_kl": totals["approx_kl"] / seen,
        "ppo/grad_norm": totals["ppo/grad_norm"] / seen,
        "ppo/optimizer_steps": steps,
        "ppo/first_ratio_error": first_ratio_error,
    }


def _minibatches(rows: int, config: PPOConfig, generator: torch.Generator) -> Iterator[list[int]]:
    """Row numbers of one minibatch after another, over all passes, each in its own order."""
    for _ in range(config.ppo_epochs):
        order = torch.randperm(rows, generator=generator).tolist()
        for start in range(0, rows, config.minibatch_size):
            yield order[start : start + config.minibatch_size]


@dataclass
class _Found:
    """What a minibatch's forward passes say, beside its gradient: means over its tokens, and the first ratios."""

    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    ratio_error: float = 0.0

    def of_all(self) -> _Found:
        """The same of the shares of all processes."""
        parts = ranks.gather(self)
        if len(parts) == 1:
            return self
        sums = {name: sum(part.sums[name] for part in parts) for name in self.sums}
        return _Found(sums, max(part.ratio_error for part in parts))


def _gradients(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    rollouts: Rollouts,
    minibatch: list[int],
    config: PPOConfig,
) -> _Found:
    """Puts the gradient of this process' share of the minibatch into the parameters, in parts that add up to it.

    Returns:
        what all processes have found.

    Raises:
        NoRoomError: not even one row fits into memory.
    """
    tokens, mine = rollouts.mask[minibatch].sum(), ranks.share(minibatch)

    def run(parts: list[list[int]]) -> _Found:
        optimizer.zero_grad(set_to_none=True)  # also of what a larger part has left that didn't fit
        found = _Found()
        for part in parts:
            terms, ratio_error = _losses(policy, rollouts, [mine[i] for i in part], config)
            loss = (
                terms.policy + config.value_coef * terms.value - config.entropy_coef * terms.entropy
            ) / tokens
            policy.backward(loss)
            found.sums["ppo/loss"] += loss.item()
            for item in fields(terms):
                found.sums[item.name] += (getattr(terms, item.name) / tokens).item()
            found.ratio_error = max(found.ratio_error, ratio_error)
        return found

    prompts, completions = ([x[i] for i in mine] for x in (rollouts.prompts, rollouts.completions))
    return in_micro_batches(policy, "the update", prompts, completions, config, run).of_all()


def _losses(
    policy: Policy, rollouts: Rollouts, rows: list[int], config: PPOConfig
) -> tuple[maths.LossTerms, float]:
    new = score_completions(
        policy,
        [rollouts.prompts[i] for i in rows],
        [rollouts.completions[i] for i in rows],
        temperature=config.temperature,
        share_prefix=config.share_prefix,
        entropy_gradient=config.entropy_coef != 0,
        allow=rollouts.allowed[rows] if rollouts.allowed is not None else None,
    )
    width = new.mask.shape[1]  # rows of this micro-batch may all be shorter than the batch's longest
    old = {
        name: getattr(rollouts, name)[rows, :width]
        for name in ("logprobs", "values", "advantages", "returns")
    }
    terms = maths.loss_terms(
        new.logprobs,
        new.values,
        new.entropy,
        old["logprobs"],
        old["values"],
        old["advantages"],
        old["returns"],
        new.mask,
        config.clip_range,
        config.value_clip_range,
    )
    ratio_error = ((new.logprobs - old["logprobs"]).exp() - 1).abs().max().item()
    return terms, ratio_error
