"""The one decoder that all methods share: greedy and sampled completions, and label likelihood.

Prompts of a task begin alike, so their common prefix is run once per call; rows leave the batch as soon as
they close the judgement tag.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from nlu_ppo.inference.prefix import SharedPrefix, pad, pad_id
from nlu_ppo.models.policy import Policy
from nlu_ppo.progress import bar
from nlu_ppo.prompting import CLOSE

Ids = Sequence[int]


@torch.inference_mode()
def generate(
    policy: Policy,
    prompts: Sequence[Ids],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    batch_size: int = 64,
    progress: str | None = None,
) -> list[list[int]]:
    """Completions of `prompts`, each ending with the closing tag, with end-of-sequence, or at the limit.

    Args:
        temperature: 0 is greedy; above, tokens are drawn from exactly softmax(logits / temperature).
        progress: label of a progress bar; none if `None`.
    """
    prefix = SharedPrefix(policy, prompts)
    completions: list[list[int]] = [[] for _ in prompts]
    for rows in _batches(prompts, batch_size, progress):
        for row, ids in _decode(policy, prefix, prompts, rows, max_new_tokens, temperature, generator):
            completions[row] = ids
    return completions


def _batches(prompts: Sequence[Ids], batch_size: int, progress: str | None) -> Iterator[list[int]]:
    """Row numbers in batches of similar length, longest first: the biggest batch fails first, if any does."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    total = len(prompts)
    with bar(total=total, desc=progress, unit="ex", disable=progress is None, leave=False) as shown:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            yield rows
            shown.update(len(rows))


def _prefill(
    policy: Policy, prefix: SharedPrefix, prompts: Sequence[Ids], rows: Sequence[int]
) -> tuple[DynamicCache, Tensor, Tensor, Tensor]:
    """Runs the prompts behind the prefix.

    Returns:
        the cache, its mask (rows, tokens), the position of the next token (rows, 1), and the logits that
        predict it (rows, vocabulary). Suffixes are padded on the left, so that the last column is everyone's
        last prompt token.
    """
    suffixes = [prompts[i][prefix.length :] for i in rows]
    ids, mask = pad(suffixes, pad_id(policy.tokenizer), "left", policy.device)
    mask = torch.cat([mask.new_ones(len(suffixes), prefix.length), mask], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = prefix.expand(len(suffixes))
    hidden = policy.hidden(ids, mask, positions[:, prefix.length :], cache)
    return cache, mask, positions[:, -1:] + 1, policy.logits(hidden[:, -1])


def _decode(
    policy: Policy,
    prefix: SharedPrefix,
    prompts: Sequence[Ids],
    rows: list[int],
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
) -> Iterator[tuple[int, list[int]]]:
    """Decodes one batch; yields (row, completion) as rows finish."""
    cache, mask, position, logits = _prefill(policy, prefix, prompts, rows)
    live, texts = list(rows), {row: list[int]() for row in rows}
    eos = policy.tokenizer.eos_token_id
    for step in range(max_new_tokens):
        tokens = _choose(logits, temperature, generator)
        keep = []
        for i, (row, token) in enumerate(zip(live, tokens.tolist(), strict=True)):
            texts[row].append(token)
            if token == eos or step + 1 == max_new_tokens or CLOSE in policy.tokenizer.decode(texts[row]):
                yield row, texts[row]
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
        hidden = policy.hidden(tokens.unsqueeze(1), mask, position, cache)
        logits, position = policy.logits(hidden[:, -1]), position + 1


def _choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    if temperature == 0.0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits / temperature, -1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


@torch.inference_mode()
def score_answers(
    policy: Policy,
    prompts: Sequence[Ids],
    answers: Sequence[Sequence[Ids]],
    *,
    batch_size: int = 64,
    progress: str | None = None,
) -> list[list[float]]:
    """Log-probability of every answer of every prompt, in nats.

    Args:
        answers: per prompt its legal completions as tokens, closing tag included, so that an answer which
            begins another one does not collect the other's probability.
        batch_size: rows of one forward pass, a row being one answer of one prompt.
    """
    prefix = SharedPrefix(policy, prompts)
    scores: list[list[float]] = [[] for _ in prompts]
    widest = max((len(choices) for choices in answers), default=1)
    for rows in _batches(prompts, max(1, batch_size // widest), progress):
        cache, mask, position, logits = _prefill(policy, prefix, prompts, rows)
        owner = torch.tensor([i for i, row in enumerate(rows) for _ in answers[row]], device=policy.device)
        flat = [answer for row in rows for answer in answers[row]]
        # One tree step: every answer continues its own prompt's cache.
        cache.batch_select_indices(owner)
        ids, answer_mask = pad(flat, pad_id(policy.tokenizer), "right", policy.device)
        if ids.shape[1] > 1:
            inputs, grown = ids[:, :-1], torch.cat([mask[owner], answer_mask[:, :-1]], dim=1)
            steps = torch.arange(inputs.shape[1], device=policy.device)
            hidden = policy.hidden(inputs, grown, position[owner] + steps, cache)
            predicted = torch.cat([logits[owner].unsqueeze(1), policy.logits(hidden)], dim=1)
        else:
            predicted = logits[owner].unsqueeze(1)
        logprobs = predicted.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        totals = (logprobs * answer_mask).sum(1)
        for i, total in zip(owner.tolist(), totals.tolist(), strict=True):
            scores[rows[i]].append(total)
    return scores
