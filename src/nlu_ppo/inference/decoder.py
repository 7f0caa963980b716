"""The one decoder that all methods share: greedy and sampled completions, and label likelihood.

Prompts of a task begin alike, so their common prefix is run once per call, and what some of them have in common
beyond it (a passage with several questions) once per batch. Rows leave the batch as soon as they close the
judgement tag.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from nlu_ppo import ranks
from nlu_ppo.errors import NotFiniteError
from nlu_ppo.inference.cache import make_room
from nlu_ppo.inference.filters import allowed_tokens
from nlu_ppo.inference.prefix import SharedPrefix, pad, pad_id
from nlu_ppo.inference.reading import prefill, read_completions, reads_trees
from nlu_ppo.inference.tree import Ids, alike
from nlu_ppo.models.policy import Policy
from nlu_ppo.models.room import MOST_ROWS, fitting, in_batches
from nlu_ppo.progress import bar

NO_NUMBER = -1  # in a token's place: its row's logits are NaN or infinite


@torch.inference_mode()
def generate(
    policy: Policy,
    prompts: Sequence[Ids],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = 64,
    progress: str | None = None,
) -> list[list[int]]:
    """Completions of `prompts`, each ending with the closing tag, with end-of-sequence, or at the limit.

    Several processes (`ranks`) share the batches; all of them get all completions. So it is with `score_answers`.

    Args:
        temperature: 0 is greedy; above, tokens are drawn from exactly softmax(logits / temperature).
        top_k, top_p: draw from that over the allowed tokens only (`allowed_tokens`).
        generator: of the random numbers, which every prompt has its own of: what is drawn for one doesn't depend
            on which others are in its batch.
        batch_size: prompts at a time; `None` for as many as fit. What doesn't fit is decoded in smaller batches.
        progress: label of a progress bar; none if `None`.

    Raises:
        NoRoomError: not even one prompt fits into memory.
    """
    numbers = random_numbers(policy, len(prompts), max_new_tokens, generator) if temperature else None
    if policy.decoder is not None:
        filters = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        shown = progress is not None
        return policy.decoder.complete(prompts, max_new_tokens, numbers=numbers, progress=shown, **filters)
    prefix = SharedPrefix(policy, prompts)
    completions: list[list[int]] = [[] for _ in prompts]
    choose = partial(_choose, temperature=temperature, top_k=top_k, top_p=top_p)

    def keep(drawn: Drawn) -> int:
        completions[drawn.row] = drawn.ids
        return drawn.row

    def run(rows: list[int]) -> Iterator[Drawn]:
        return _decode(policy, prefix, prompts, rows, max_new_tokens, choose, numbers)

    order = _own_rows(prompts, prefix.length, batch_size)
    with bar(total=len(order), desc=progress, unit="ex", disable=progress is None, leave=False) as shown:
        in_batches(policy.room, "decoding", order, batch_size, run, keep, shown.update)
    return _joined(completions)


def random_numbers(policy: Policy, rows: int, steps: int, generator: torch.Generator | None) -> Tensor:
    """Uniform on [0, 1), (rows, steps): what decides each token of each completion that is drawn."""
    return torch.rand(rows, steps, dtype=torch.float64, device=policy.device, generator=generator)


# the next tokens, (rows,), from their logits, (rows, vocabulary), and a random number each if they are drawn, which
# then comes with their log-probabilities
Choice = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


@dataclass
class Drawn:
    """A completion of row `row` of the prompts.

    Attributes:
        logprobs: of its tokens in the distribution that they were drawn from, () each; empty if greedy, or drawn
            elsewhere (`Policy.decoder`).
        states: that its tokens were drawn from, (hidden,) each; empty in the same cases.
    """

    row: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)


@torch.inference_mode()
def draw(
    policy: Policy,
    prompts: Sequence[Ids],
    max_new_tokens: int,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    numbers: Tensor,
) -> list[Drawn]:
    """One completion of each prompt, in one batch or in as few as fit; arguments as of `generate`.

    Args:
        numbers: from `random_numbers`, (prompts, max_new_tokens).

    Raises:
        NoRoomError: not even one prompt fits into memory.
    """
    if policy.decoder is not None:
        filters = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        found = policy.decoder.complete(prompts, max_new_tokens, numbers=numbers, **filters)
        return [Drawn(row, ids) for row, ids in enumerate(found)]
    prefix, rows = SharedPrefix(policy, prompts), list(range(len(prompts)))
    choose = partial(_choose, temperature=temperature, top_k=top_k, top_p=top_p)

    def run(size: int) -> list[Drawn]:
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        decode = partial(_decode, policy, prefix, prompts)
        return [d for batch in batches for d in decode(batch, max_new_tokens, choose, numbers)]

    drawn = fitting(policy.room, "drawing", len(rows), len(rows), run)
    return sorted(drawn, key=lambda d: d.row)


def _own_rows(prompts: Sequence[Ids], common: int, batch_size: int | None) -> list[int]:
    """Row numbers of this process' batches: prompts that share much stay together, and the longest come first, since
    the biggest batch fails first, if any does. All prompts share `common` tokens."""
    families = sorted(_families(prompts, common), key=lambda rows: -max(len(prompts[i]) for i in rows))
    order = [row for rows in families for row in rows]
    size = min(
        batch_size or MOST_ROWS, max(1, -(-len(order) // ranks.world()))
    )  # something to do for everyone
    starts = range(0, len(order), size)[ranks.rank() :: ranks.world()]
    return [row for start in starts for row in order[start : start + size]]


def _families(prompts: Sequence[Ids], common: int) -> list[list[int]]:
    """Rows that share at least half of what lies behind the common tokens, as those of one passage do."""
    found: list[list[int]] = []
    for row in sorted(range(len(prompts)), key=lambda i: (tuple(prompts[i]), i)):
        own = len(prompts[row]) - common
        if found and 2 * (alike(prompts[found[-1][-1]], prompts[row]) - common) >= own:
            found[-1].append(row)
        else:
            found.append([row])
    return found


def _decode(
    policy: Policy,
    prefix: SharedPrefix,
    prompts: Sequence[Ids],
    rows: list[int],
    max_new_tokens: int,
    choose: Choice,
    numbers: Tensor | None,
) -> Iterator[Drawn]:
    """Decodes one batch; yields completions as they end.

    Args:
        numbers: of all prompts; `None` if greedy.
    """
    cache, mask, position, last = prefill(policy, prefix, [prompts[i] for i in rows])
    make_room(cache, max_new_tokens)
    live = [Drawn(row) for row in rows]
    eos, closing = policy.tokenizer.eos_token_id, policy.closing
    for step in range(max_new_tokens):
        column = numbers[[drawn.row for drawn in live], step] if numbers is not None else None
        tokens, logprobs = choose(policy.logits(last), column)
        keep = []
        for i, (drawn, token) in enumerate(zip(live, tokens.tolist(), strict=True)):
            if token == NO_NUMBER:
                raise _not_finite("next-token scores")
            drawn.ids.append(token)
            if logprobs is not None:
                drawn.logprobs.append(logprobs[i])
                drawn.states.append(last[i])
            if token == eos or step + 1 == max_new_tokens or closing in policy.tokenizer.decode(drawn.ids):
                yield drawn
            else:
                keep.append(i)
        if not keep:
            return
        if len(keep) < len(live):
            index = torch.tensor(keep, device=policy.device)
            cache.batch_select_indices(index)
            mask, position, tokens = mask[index], position[index], tokens[index]
            live = [live[i] for i in keep]
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
        last = policy.hidden(tokens.unsqueeze(1), mask, position, cache)[:, -1]
        position = position + 1


def _choose(
    logits: Tensor, numbers: Tensor | None, temperature: float, top_k: int | None, top_p: float | None
) -> tuple[Tensor, Tensor | None]:
    if numbers is None:
        best = logits.max(-1)  # NaN if any is
        return best.indices.masked_fill(~best.values.isfinite(), NO_NUMBER), None
    scaled = logits.double() / temperature
    if top_k is not None or top_p is not None:
        scaled.masked_fill_(~allowed_tokens(scaled, top_k, top_p), -torch.inf)
    # The inverse of the cumulated distribution: one random number a row, where torch.multinomial draws one a token.
    probabilities = torch.softmax(scaled, -1)
    cumulated = probabilities.cumsum(-1)
    # scaled by the sum, which rounding leaves a little off 1; right=True passes over tokens of probability 0
    total = cumulated[:, -1:]
    tokens = torch.searchsorted(cumulated, numbers.unsqueeze(1) * total, right=True)
    broken = ~total.isfinite()  # such a row's token is none of the vocabulary's
    logprobs = probabilities.gather(1, tokens.masked_fill(broken, 0)).log().to(logits.dtype)
    return tokens.masked_fill_(broken, NO_NUMBER).squeeze(1), logprobs.squeeze(1)


def _not_finite(what: str) -> NotFiniteError:
    return NotFiniteError(
        f"the model's {what} are NaN or infinite: its weights are damaged, or have run away in training (lower "
        f"method.learning_rate), or are too large for model.dtype"
    )


@torch.inference_mode()
def score_answers(
    policy: Policy,
    prompts: Sequence[Ids],
    answers: Sequence[Sequence[Ids]],
    *,
    batch_size: int | None = 64,
    progress: str | None = None,
) -> list[list[float]]:
    """Log-probability of every answer of every prompt, in nats.

    Args:
        answers: per prompt its legal completions as tokens, closing tag included, so that an answer which
            begins another one does not collect the other's probability.
        batch_size: rows of one forward pass, a row being one answer of one prompt; `None` for as many as fit.

    Raises:
        NoRoomError: not even one prompt's answers fit into memory.
    """
    prefix = SharedPrefix(policy, prompts)
    scores: list[list[float]] = [[] for _ in prompts]
    widest = max((len(choices) for choices in answers), default=1)
    score = _score_tree if reads_trees(policy) else _score_behind_prompts

    def run(rows: list[int]) -> Iterator[int]:
        owners = [row for row in rows for _ in answers[row]]
        found = score(policy, prefix, [prompts[i] for i in rows], [answers[i] for i in rows])
        for row, total in zip(owners, found.tolist(), strict=True):
            if math.isnan(total):
                raise _not_finite("answers' log-probabilities")
            scores[row].append(total)
        yield from rows

    wanted = batch_size and max(1, batch_size // widest)
    order = _own_rows(prompts, prefix.length, wanted)
    with bar(total=len(order), desc=progress, unit="ex", disable=progress is None, leave=False) as shown:
        in_batches(policy.room, "scoring answers", order, wanted, run, int, shown.update)
    return _joined(scores)


Found = TypeVar("Found")


def _joined(mine: list[list[Found]]) -> list[list[Found]]:
    """What is found of each row, where each process has some rows' and nothing of the others'."""
    parts = ranks.gather({number: found for number, found in enumerate(mine) if found})
    every = {number: found for part in parts for number, found in part.items()}
    return [every.get(number, []) for number in range(len(mine))]


def _score_tree(
    policy: Policy, prefix: SharedPrefix, prompts: Sequence[Ids], answers: Sequence[Sequence[Ids]]
) -> Tensor:
    """Log-probabilities of all answers, (answers,): prompts and answers are one tree, read in one forward."""
    pairs = [(p, answer) for p, choices in zip(prompts, answers, strict=True) for answer in choices]
    read = read_completions(policy, [p for p, _ in pairs], [a for _, a in pairs], prefix=prefix)
    logprobs, _ = policy.token_logprobs(read.hidden, read.which, read.targets)
    return (logprobs * read.mask).sum(1)


def _score_behind_prompts(
    policy: Policy, prefix: SharedPrefix, prompts: Sequence[Ids], answers: Sequence[Sequence[Ids]]
) -> Tensor:
    """The same in two steps, where attention can't be told of a tree: every answer continues its own prompt's
    cache."""
    cache, mask, position, last = prefill(policy, prefix, prompts)
    owner = torch.tensor([i for i, choices in enumerate(answers) for _ in choices], device=policy.device)
    cache.batch_select_indices(owner)
    flat = [answer for choices in answers for answer in choices]
    ids, answer_mask = pad(flat, pad_id(policy.tokenizer), "right", policy.device)
    predicted = policy.logits(last)[owner].unsqueeze(1)
    if ids.shape[1] > 1:
        inputs, grown = ids[:, :-1], torch.cat([mask[owner], answer_mask[:, :-1]], dim=1)
        steps = torch.arange(inputs.shape[1], device=policy.device)
        hidden = policy.hidden(inputs, grown, position[owner] + steps, cache)
        predicted = torch.cat([predicted, policy.logits(hidden)], dim=1)
    logprobs = predicted.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return (logprobs * answer_mask).sum(1)
