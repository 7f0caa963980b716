"""The mathematics of PPO on completions: tensors in, tensors out, no model and no state.

Shapes: B completions, T completion tokens (padded on the right), V vocabulary. `mask_BT` is 1 on completion
tokens. Position t holds the token drawn at step t, its log-probability, and the value of the state before it.

Sources: PPO, clip and value clip: arXiv 1707.06347 and its released code; GAE: arXiv 1506.02438; per-token KL
penalty with the score on the last token, whitening, adaptive KL weight: arXiv 1909.08593 and its released
code; KL estimators k1 and k3: J. Schulman, "Approximating KL divergence" (2020); running moments: Chan, Golub and
LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens where `mask` is 1; 0 where there is none."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


def masked_variance(x: Tensor, mask: Tensor) -> Tensor:
    """Population variance over the tokens where `mask` is 1."""
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)


def whiten(x_BT: Tensor, mask_BT: Tensor, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Deviation 1 over valid tokens; mean 0 if `shift_mean`, otherwise the mean that it had.

    All-equal input, or a single valid token, gives 0 (plus the mean if kept), never NaN. Padding is 0.
    """
    mean = masked_mean(x_BT, mask_BT)
    white = (x_BT - mean) * torch.rsqrt(masked_variance(x_BT, mask_BT) + eps)
    return (white if shift_mean else white + mean) * mask_BT


def last_token_mask(mask_BT: Tensor) -> Tensor:
    """1 at the last completion token of every row, where the score is paid."""
    remaining = mask_BT.flip(1).cumsum(1).flip(1)
    return mask_BT * (remaining == 1)


def token_rewards(
    scores_B: Tensor, logprobs_BT: Tensor, ref_logprobs_BT: Tensor, mask_BT: Tensor, kl_coef: float
) -> Tensor:
    """Reward of every token: minus the KL penalty (k1 estimator), plus the score at the last one."""
    penalty = -kl_coef * (logprobs_BT - ref_logprobs_BT) * mask_BT
    return penalty + scores_B.unsqueeze(1) * last_token_mask(mask_BT)


def advantages_and_returns(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation; the state after the last token is terminal and worth 0.

    Returns:
        advantages and returns (advantages + values), both (B, T), 0 on padding.
    """
    values_BT, rewards_BT = values_BT * mask_BT, rewards_BT * mask_BT
    advantages_BT = torch.zeros_like(rewards_BT)
    running_B = torch.zeros_like(rewards_BT[:, 0])
    for t in range(rewards_BT.shape[1] - 1, -1, -1):
        following = values_BT[:, t + 1] if t + 1 < values_BT.shape[1] else torch.zeros_like(running_B)
        delta_B = rewards_BT[:, t] + gamma * following - values_BT[:, t]
        running_B = (delta_B + gamma * lam * running_B) * mask_BT[:, t]
        advantages_BT[:, t] = running_B
    return advantages_BT, (advantages_BT + values_BT) * mask_BT


@dataclass(frozen=True)
class LossTerms:
    """Sums over valid tokens (not means), so that micro-batches add up to the loss of the whole minibatch."""

    policy: Tensor
    value: Tensor
    entropy: Tensor
    policy_clipped: Tensor
    value_clipped: Tensor
    approx_kl: Tensor
    tokens: Tensor


def loss_terms(
    logprobs_BT: Tensor,
    values_BT: Tensor,
    entropy_BT: Tensor,
    old_logprobs_BT: Tensor,
    old_values_BT: Tensor,
    advantages_BT: Tensor,
    returns_BT: Tensor,
    mask_BT: Tensor,
    clip_range: float,
    value_clip_range: float,
) -> LossTerms:
    """Clipped surrogate loss, clipped value loss (with its factor 1/2), entropy: sums over valid tokens."""
    log_ratio_BT = (logprobs_BT - old_logprobs_BT) * mask_BT
    ratio_BT = log_ratio_BT.exp()
    unclipped = -advantages_BT * ratio_BT
    clipped = -advantages_BT * ratio_BT.clamp(1 - clip_range, 1 + clip_range)
    near = old_values_BT + (values_BT - old_values_BT).clamp(-value_clip_range, value_clip_range)
    error, near_error = (values_BT - returns_BT) ** 2, (near - returns_BT) ** 2
    return LossTerms(
        policy=(torch.maximum(unclipped, clipped) * mask_BT).sum(),
        value=0.5 * (torch.maximum(error, near_error) * mask_BT).sum(),
        entropy=(entropy_BT * mask_BT).sum(),
        policy_clipped=((clipped > unclipped) * mask_BT).sum().detach(),
        value_clipped=((near_error > error) * mask_BT).sum().detach(),
        approx_kl=((ratio_BT - 1 - log_ratio_BT) * mask_BT).sum().detach(),
        tokens=mask_BT.sum(),
    )


def kl_k1(logprobs_BT: Tensor, ref_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """KL of policy from reference per completion, (B,), nats: unbiased, may be negative on a sample."""
    return ((logprobs_BT - ref_logprobs_BT) * mask_BT).sum(1)


def kl_k3(logprobs_BT: Tensor, ref_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The same by the estimator r - 1 - log r with r = reference/policy, per token never negative."""
    log_r = (ref_logprobs_BT - logprobs_BT) * mask_BT
    return (log_r.exp() - 1 - log_r).sum(1)


def explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns); 0 where the returns don't vary."""
    spread = masked_variance(returns_BT, mask_BT).item()
    if spread < 1e-12:
        return 0.0
    return 1.0 - masked_variance(returns_BT - values_BT, mask_BT).item() / spread


@dataclass
class RunningMoments:
    """Mean and sample deviation of all numbers taken so far, in float64.

    `squares` is the sum of squared differences from the mean.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, numbers: Sequence[float]) -> None:
        """Takes one batch of at least one number; joins its moments to those so far."""
        mean, total = fmean(numbers), self.count + len(numbers)
        apart = mean - self.mean
        self.squares += sum((x - mean) ** 2 for x in numbers) + apart**2 * self.count * len(numbers) / total
        self.mean += apart * len(numbers) / total
        self.count = total

    @property
    def deviation(self) -> float:
        """With n - 1 in the denominator; 0 before the second number, and where all are equal."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0


@dataclass
class RewardScaler:
    """Puts rewards on the scale of their own history: r / s, or (r - m) / s.

    m and s are running mean and deviation of all rewards of the run, the present batch included, as in
    `PPOTrainer.step` of TRL 0.x with `use_score_scaling` (and `use_score_norm`). Unlike there, rewards that never
    differed are not divided: TRL divides them by the smallest positive step of float32.
    """

    kind: str  # none, running or standardized
    moments: RunningMoments = field(default_factory=RunningMoments)

    def __call__(self, rewards: Sequence[float]) -> list[float]:
        """Takes the rewards of one batch into the moments; returns them scaled."""
        if self.kind == "none":
            return list(rewards)
        self.moments.update(rewards)
        shift = self.moments.mean if self.kind == "standardized" else 0.0
        return [(reward - shift) / (self.moments.deviation or 1.0) for reward in rewards]


@dataclass
class KLController:
    """The KL weight: fixed, or moved in proportion to the clipped relative error (arXiv 1909.08593, 2.2)."""

    coef: float
    adaptive: bool
    target: float
    horizon: int

    def update(self, kl: float, samples: int) -> None:
        """Takes the mean KL per completion (nats) of `samples` completions."""
        if self.adaptive and math.isfinite(kl):
            error = min(max(kl / self.target - 1.0, -0.2), 0.2)
            self.coef *= 1.0 + error * samples / self.horizon
