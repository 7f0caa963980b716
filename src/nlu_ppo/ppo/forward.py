"""One forward path for old, new and reference policy: log-probabilities, values and entropy of completions.

What the rows share runs once, with gradient, and only states that predict a completion token meet the output
head, each once. Loss and gradients equal those of plain padded rows (tests/test_shared_prefix.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from nlu_ppo.config import PPOConfig
from nlu_ppo.inference.decoder import Drawn
from nlu_ppo.inference.prefix import SharedPrefix
from nlu_ppo.inference.reading import read_completions, reads_trees
from nlu_ppo.inference.tree import bundles
from nlu_ppo.models.policy import Policy
from nlu_ppo.models.room import fitting

T = TypeVar("T")


@dataclass(frozen=True)
class Scored:
    """What a forward says of completions, (B, T) each; anything on padding is 0.

    `allowed`, (B, T, V), marks the tokens that could be drawn; `None` where all could.
    """

    logprobs: Tensor
    values: Tensor
    entropy: Tensor
    mask: Tensor
    allowed: Tensor | None = None

    @staticmethod
    def joined(parts: Sequence[Scored]) -> Scored:
        """The rows of all parts, padded to one width."""
        width = max(part.mask.shape[1] for part in parts)

        def join(name: str) -> Tensor:
            tensors = [getattr(part, name) for part in parts]
            behind = (0, 0) * (tensors[0].ndim - 2)  # nothing to add in the dimensions behind the tokens
            return torch.cat([functional.pad(x, (*behind, 0, width - x.shape[1])) for x in tensors])

        allowed = join("allowed") if parts[0].allowed is not None else None
        return Scored(join("logprobs"), join("values"), join("entropy"), join("mask"), allowed)

    def to(self, device: torch.device | str) -> Scored:
        return self._each(lambda x: x.to(device))

    def __getitem__(self, rows: Tensor) -> Scored:
        return self._each(lambda x: x[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Scored:
        allowed = change(self.allowed) if self.allowed is not None else None
        logprobs, values, entropy, mask = map(change, (self.logprobs, self.values, self.entropy, self.mask))
        return Scored(logprobs, values, entropy, mask, allowed)


def score_completions(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    share_prefix: bool = True,
    with_values: bool = True,
    entropy_gradient: bool = True,
    prefix: SharedPrefix | None = None,
    allow: Tensor | Callable[[Tensor], Tensor] | None = None,
) -> Scored:
    """Scores `completions` behind their `prompts` under the policy as it is now.

    Args:
        temperature: that of the sampling distribution softmax(logits / temperature).
        share_prefix: run common prefixes once; otherwise every row runs all of its tokens (the plain way).
        entropy_gradient: entropies pass a gradient on; otherwise they are for watching only.
        prefix: one of these prompts that has been run already, under this policy.
        allow: where only some tokens could be drawn, these, (B, at least T, V), or how to find them from the
            logits, (B, T, V). Log-probabilities and entropy are those of the distribution over them.
    """
    read = read_completions(policy, prompts, completions, share_prefix, prefix)
    if allow is None:
        logprobs, of_states = policy.token_logprobs(
            read.hidden, read.which, read.targets, temperature, entropy_gradient
        )
        entropy, allowed = of_states[read.which], None
    else:
        logits = policy.logits(read.hidden) / temperature
        logprobs, entropy, allowed = _over_allowed(logits[read.which], read.targets, allow)
    values = policy.values(read.hidden)[read.which] if with_values else torch.zeros_like(logprobs)
    weights = read.mask.to(logprobs.dtype)
    return Scored(logprobs * weights, values * weights, entropy * weights, weights, allowed)


def _over_allowed(
    logits: Tensor, targets: Tensor, allow: Tensor | Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities and entropy, (B, T), over the allowed tokens, and these, from logits (B, T, V).

    Position by position, though rows share states: the rounding of another forward may have ended their sets
    elsewhere. For the same reason the token that was drawn always is one of them.
    """
    allowed = allow[:, : targets.shape[1]] if isinstance(allow, Tensor) else allow(logits.detach())
    allowed = allowed.scatter(-1, targets.unsqueeze(-1), True)
    log_p = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
    entropy = -(log_p.exp() * log_p.masked_fill(~allowed, 0.0)).sum(-1)
    return log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1), entropy, allowed


def score_drawn(policy: Policy, drawn: Sequence[Drawn]) -> Scored:
    """What drawing completions has said of them already; entropies, which nobody asks for there, are 0."""
    width = max(len(d.ids) for d in drawn)

    def padded(row: Tensor) -> Tensor:
        return functional.pad(row, (0, width - len(row)))

    logprobs = torch.stack([padded(torch.stack(d.logprobs)) for d in drawn])
    values = torch.stack([padded(policy.values(torch.stack(d.states))) for d in drawn])
    mask = torch.stack([padded(torch.ones(len(d.ids), device=logprobs.device)) for d in drawn])
    return Scored(logprobs, values, torch.zeros_like(values), mask)


def in_micro_batches(
    policy: Policy,
    work: str,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    config: PPOConfig,
    run: Callable[[list[list[int]]], T],
) -> T:
    """What `run` gives of the rows in micro-batches: those that the config asks for or, where they don't fit into
    memory, smaller ones. `run` is then called again from its beginning.

    Args:
        work: what is done with them; other work may fit in larger ones.
        run: takes lists of row numbers, a forward each.

    Raises:
        NoRoomError: not even one row fits.
    """
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    by_tokens = config.micro_batch_tokens is not None
    return fitting(
        policy.room,
        work,
        config.micro_batch_tokens if by_tokens else config.micro_batch_size,
        sum(lengths) if by_tokens else len(lengths),
        lambda size: run(list(_micro_batches(policy, prompts, completions, config, size))),
        "tokens" if by_tokens else "rows",
        max(lengths) if by_tokens else 1,
    )


def _micro_batches(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    config: PPOConfig,
    size: int,
) -> Iterator[list[int]]:
    """Row numbers, a forward at a time: rows that share most together, or else rows of similar length.

    Args:
        size: rows of a forward or, with `config.micro_batch_tokens`, tokens.
    """
    by_tokens = config.micro_batch_tokens is not None
    if config.share_prefix and reads_trees(policy):
        rows = [[*p, *c] for p, c in zip(prompts, completions, strict=True)]
        yield from bundles(rows, size, size if by_tokens else None)
        return
    longest = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
    order, step = sorted(range(len(prompts)), key=lambda i: len(prompts[i])), size
    if by_tokens:
        step = max(1, size // longest)
    for start in range(0, len(order), step):
        yield order[start : start + step]
