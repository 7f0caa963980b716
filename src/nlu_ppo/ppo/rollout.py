"""Rollouts: completions drawn from the policy, their rewards, and what the update needs to know of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch
from torch import Tensor

from nlu_ppo import ranks
from nlu_ppo.config import PPOConfig
from nlu_ppo.inference.decoder import Drawn, draw, random_numbers
from nlu_ppo.inference.filters import allowed_tokens
from nlu_ppo.inference.prefix import SharedPrefix
from nlu_ppo.models.policy import Policy
from nlu_ppo.ppo import maths
from nlu_ppo.ppo.forward import Scored, in_micro_batches, score_completions, score_drawn
from nlu_ppo.prompting import Prompt, common_prefix_length
from nlu_ppo.tasks.record import Example, Label


@dataclass(frozen=True)
class Rollouts:
    """B completions, T tokens. Tensors are (B, T), except `scores`, (B,): rewards as paid, scaled and clipped."""

    prompts: list[tuple[int, ...]]
    completions: list[list[int]]
    answers: list[Label | None]
    correct: list[bool]
    rewards: list[float]
    scores: Tensor
    mask: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    allowed: Tensor | None  # (B, T, V): tokens that top-k and top-p left; None where all could be drawn


@torch.no_grad()
def collect(
    policy: Policy,
    prompts: Sequence[Prompt],
    examples: Sequence[Example],
    judge: Callable[[str, Example], tuple[float, Label | None, bool]],
    config: PPOConfig,
    max_new_tokens: int,
    kl_coef: float,
    generator: torch.Generator,
    scaler: maths.RewardScaler | None = None,
) -> Rollouts:
    """Draws one completion per prompt and prepares the batch for its update.

    Several processes (`ranks`) each draw and score their share of the rows; all of them get all rows.

    Args:
        judge: completion text and example to (reward, parsed answer or `None`, whether it is right).
        max_new_tokens: longest completion; what hasn't closed its tag by then counts as unparsable.
        generator: at the same state in all processes.
        scaler: takes the batch's rewards into its moments; without one rewards are not scaled.
    """
    numbers = random_numbers(policy, len(prompts), max_new_tokens, generator)
    mine = ranks.share(range(len(prompts)))
    own = _draw_and_score(policy, prompts, examples, judge, config, numbers, mine)
    completions, judged, old, ref = _of_all(own, policy.device)

    earned = [j[0] for j in judged]
    scaled = scaler(earned) if scaler is not None else earned
    scores = torch.tensor(scaled, dtype=torch.float32, device=policy.device)
    if config.reward_clip is not None:
        scores = scores.clamp(-config.reward_clip, config.reward_clip)
    rewards = maths.token_rewards(scores, old.logprobs, ref.logprobs, old.mask, kl_coef)
    if config.whiten_rewards:
        rewards = maths.whiten(rewards, old.mask, shift_mean=False)
    advantages, returns = maths.advantages_and_returns(
        rewards, old.values, old.mask, config.gamma, config.lam
    )
    if config.whiten_advantages:
        advantages = maths.whiten(advantages, old.mask)
    return Rollouts(
        prompts=[p.ids for p in prompts],
        completions=completions,
        answers=[j[1] for j in judged],
        correct=[j[2] for j in judged],
        rewards=earned,
        scores=scores,
        mask=old.mask,
        logprobs=old.logprobs,
        ref_logprobs=ref.logprobs,
        values=old.values,
        advantages=advantages,
        returns=returns,
        allowed=old.allowed,
    )


Judged = list[tuple[float, Label | None, bool]]  # reward, parsed answer, whether it is right
Own = tuple[
    list[list[int]], Judged, Scored, Scored
]  # completions, judgements, under the policy and its reference


def _draw_and_score(
    policy: Policy,
    prompts: Sequence[Prompt],
    examples: Sequence[Example],
    judge: Callable[[str, Example], tuple[float, Label | None, bool]],
    config: PPOConfig,
    numbers: Tensor,
    rows: Sequence[int],
) -> Own:
    """What this process does of a batch: the given rows."""
    ids, examples = [prompts[i].ids for i in rows], [examples[i] for i in rows]
    drawn = draw(
        policy,
        ids,
        numbers.shape[1],
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        numbers=numbers[list(rows)],
    )
    completions = [d.ids for d in drawn]
    texts = [policy.tokenizer.decode(c, skip_special_tokens=True) for c in completions]
    many = getattr(judge, "many", None)  # a reward model reads a batch at once
    judged = many(texts, examples) if many else [judge(t, e) for t, e in zip(texts, examples, strict=True)]
    old = _score_old(policy, drawn, ids, config)
    with policy.reference() as reference:
        prefix = _reference_prefix(reference, ids) if config.share_prefix else None
        ref = _score(reference, ids, completions, config, with_values=False, prefix=prefix, allow=old.allowed)
    return completions, judged, old, ref


def _of_all(own: Own, device: torch.device) -> Own:
    """The same of the whole batch, from what every process has done of it."""
    if ranks.world() == 1:
        return own
    completions, judged, old, ref = own
    parts = ranks.gather((completions, judged, old.to("cpu"), ref.to("cpu")))
    return (
        [ids for part in parts for ids in part[0]],
        [found for part in parts for found in part[1]],
        Scored.joined([part[2] for part in parts]).to(device),
        Scored.joined([part[3] for part in parts]).to(device),
    )


def _score_old(
    policy: Policy, drawn: Sequence[Drawn], prompts: Sequence[Sequence[int]], config: PPOConfig
) -> Scored:
    """Log-probabilities and values of what was drawn, under the policy that drew it."""
    filtered = config.top_k is not None or config.top_p is not None
    quantized = getattr(policy.base, "is_quantized", False)
    exact = torch.finfo(policy.trunk.dtype).bits >= 32 and not quantized and policy.decoder is None
    if exact and not filtered:
        return score_drawn(policy, drawn)
    # In bfloat16 and with quantized weights decoding and training round differently, by more than the clip range
    # forgives: the same path for both. And what top-k and top-p leave is found from that path's logits.
    allow = partial(allowed_tokens, top_k=config.top_k, top_p=config.top_p) if filtered else None
    return _score(policy, prompts, [d.ids for d in drawn], config, with_values=True, allow=allow)


def _score(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    config: PPOConfig,
    with_values: bool,
    prefix: SharedPrefix | None = None,
    allow: Tensor | Callable[[Tensor], Tensor] | None = None,
) -> Scored:
    """Scores in micro-batches like the update's, padded to one width."""
    batches: list[list[int]] = []

    def run(found: list[list[int]]) -> list[Scored]:
        batches[:] = found
        return [
            score_completions(
                policy,
                [prompts[i] for i in rows],
                [completions[i] for i in rows],
                temperature=config.temperature,
                share_prefix=config.share_prefix,
                with_values=with_values,
                prefix=prefix,
                allow=allow[rows] if isinstance(allow, Tensor) else allow,
            )
            for rows in found
        ]

    parts = in_micro_batches(policy, "scoring", prompts, completions, config, run)
    back = torch.tensor([i for rows in batches for i in rows], device=policy.device).argsort()
    return Scored.joined(parts)[back]


def _reference_prefix(reference: Policy, prompts: Sequence[Sequence[int]]) -> SharedPrefix | None:
    """What the prompts begin with, run by the reference once for many batches, since it never changes.

    A batch whose prompts have less in common replaces it, so that in the end it is what all batches share.
    """
    kept: SharedPrefix | None = reference.reference_prefix
    common = prompts[0][: common_prefix_length(prompts)]
    if kept is None or tuple(common[: kept.length]) != kept.ids:
        kept = reference.reference_prefix = SharedPrefix(reference, prompts)
    return kept if kept.length else None


def statistics(rollouts: Rollouts, kl_coef: float) -> dict[str, float]:
    """What to watch of a batch: reward, right and unparsable answers, KL, length, the value head's fit.

    `train/reward_gap`, what right answers earn more than wrong but legal ones, needs some of both kinds.
    """
    count = len(rollouts.completions)
    judged = list(zip(rollouts.rewards, rollouts.answers, rollouts.correct, strict=True))
    right = [reward for reward, _, correct in judged if correct]
    wrong = [reward for reward, answer, correct in judged if answer is not None and not correct]
    gap = {"train/reward_gap": fmean(right) - fmean(wrong)} if right and wrong else {}
    k1 = maths.kl_k1(rollouts.logprobs, rollouts.ref_logprobs, rollouts.mask)
    k3 = maths.kl_k3(rollouts.logprobs, rollouts.ref_logprobs, rollouts.mask)
    return {
        "train/reward": fmean(rollouts.rewards),
        "ppo/score": rollouts.scores.mean().item(),
        "train/accuracy": sum(rollouts.correct) / count,
        "train/unparsable": sum(a is None for a in rollouts.answers) / count,
        "ppo/kl": k1.mean().item(),
        "ppo/kl_k3": k3.mean().item(),
        "ppo/kl_coef": kl_coef,
        "ppo/completion_tokens": rollouts.mask.sum(1).mean().item(),
        "ppo/explained_variance": maths.explained_variance(rollouts.values, rollouts.returns, rollouts.mask),
        **gap,
    }
