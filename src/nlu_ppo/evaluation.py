"""One evaluation for all methods: greedy (or sampled) answers, label likelihood, score and interval."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nlu_ppo.config import EvalConfig
from nlu_ppo.inference.decoder import generate, score_answers
from nlu_ppo.models.policy import Policy
from nlu_ppo.prompting import Prompt, Prompter
from nlu_ppo.statistics import bootstrap_interval
from nlu_ppo.tasks.answers import is_correct, parse_answer
from nlu_ppo.tasks.metrics import Scorer, score
from nlu_ppo.tasks.record import Example, Kind, Label, Task, accepted_answers
from nlu_ppo.tasks.splits import commonest_label

SPARE_TOKENS = 4  # room for an answer that is not worded as the longest legal one


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found. `metrics` are fractions, `score`, `interval` and `likelihood` percent."""

    metrics: dict[str, float]
    score: float
    interval: tuple[float, float]
    likelihood: float | None
    unparsable: int
    shortened: int
    predictions: list[dict[str, Any]]

    @property
    def n(self) -> int:
        return len(self.predictions)


def longest_answer(prompter: Prompter, examples: Sequence[Example]) -> int:
    """Tokens that the longest legal completion of the examples takes, with a few to spare.

    Where legal answers can't be listed, the longest gold answer stands for them: one number for all examples,
    which tells nothing of a single one.
    """
    task = prompter.task
    if task.kind is Kind.EXTRACT:
        answers = _longest({gold for e in examples for gold in accepted_answers(e.label)})
    elif task.kind is Kind.CHOOSE:
        answers = {a for example in examples for a in task.answers(example)}
    else:
        answers = set(task.answers(examples[0]))
    return max(len(prompter.completion_ids(prompter.close(a))) for a in answers) + SPARE_TOKENS


def _longest(answers: set[str], count: int = 256) -> set[str]:
    """The longest in bytes. To tokenise each of a hundred thousand answers would take minutes, and the longest in
    tokens is among these, or has a length that spare tokens make up for."""
    return set(sorted(answers, key=lambda answer: (-len(answer.encode()), answer))[:count])


@dataclass(frozen=True)
class Answers:
    """What a model wrote, example by example, and the labels that it gives (`None`: unparsable)."""

    prompts: list[Prompt]
    texts: list[str]
    labels: Sequence[Label | None]


def answer(
    policy: Policy,
    prompter: Prompter,
    examples: Sequence[Example],
    config: EvalConfig,
    seed: int = 0,
    progress: str | None = None,
) -> Answers:
    """Answers every example; needs no gold labels."""
    prompts = prompter.encode(examples)
    completions = generate(
        policy,
        [p.ids for p in prompts],
        config.max_new_tokens or longest_answer(prompter, examples),
        temperature=config.temperature if config.decoding == "sample" else 0.0,
        generator=torch.Generator(policy.device).manual_seed(seed),
        batch_size=config.batch_size,
        progress=progress,
    )
    texts = [policy.tokenizer.decode(c, skip_special_tokens=True) for c in completions]
    labels = [
        parse_answer(prompter.task, text, example.candidates)
        for text, example in zip(texts, examples, strict=True)
    ]
    return Answers(prompts, texts, labels)


def evaluate(
    policy: Policy,
    prompter: Prompter,
    examples: Sequence[Example],
    config: EvalConfig,
    seed: int = 0,
    progress: str | None = None,
) -> Evaluation:
    """Answers every example and scores the answers as the task's benchmark does."""
    task = prompter.task
    found = answer(policy, prompter, examples, config, seed, progress)
    prompts, texts, answers = found.prompts, found.texts, found.labels
    ids = [p.ids for p in prompts]
    likely = None
    if config.likelihood and task.lists_answers:
        likely = _most_likely(policy, prompter, examples, ids, config, progress)
    predictions = [
        {
            "id": example.id,
            "prompt_sha": hashlib.sha256(prompt.text.encode()).hexdigest()[:16],
            "completion": text,
            "label": label,
            "reference": example.label,
            "correct": is_correct(task, label, example.label),
            **({"group": example.group} if example.group is not None else {}),
            **({"likely": likely[i]} if likely is not None else {}),
        }
        for i, (example, prompt, text, label) in enumerate(
            zip(examples, prompts, texts, answers, strict=True)
        )
    ]
    metrics = score_answers_of(task, answers, examples)
    if likely is not None:
        metrics |= {f"likelihood/{k}": v for k, v in score_answers_of(task, likely, examples).items()}
    return Evaluation(
        metrics=metrics,
        score=100 * metrics["score"],
        interval=_interval(task, answers, examples, config.bootstrap_samples),
        likelihood=100 * metrics["likelihood/score"] if likely is not None else None,
        unparsable=sum(a is None for a in answers),
        shortened=sum(p.shortened for p in prompts),
        predictions=predictions,
    )


def score_answers_of(
    task: Task, answers: Sequence[Label | None], examples: Sequence[Example]
) -> dict[str, float]:
    """The task's metrics (fractions) of `answers` to `examples`."""
    return score(task, answers, [e.label for e in examples], [e.group for e in examples])


def majority_score(task: Task, train_labels: Sequence[Label], examples: Sequence[Example]) -> float | None:
    """Score (percent) of always answering the most frequent training label (a number: the mean of them)."""
    if task.kind.in_words or not train_labels:
        return None
    constant: Label
    if task.kind is Kind.REGRESS:
        constant = float(np.mean([float(v) for v in train_labels]))  # type: ignore[arg-type]
    else:
        constant = commonest_label(train_labels)
    return 100 * score_answers_of(task, [constant] * len(examples), examples)["score"]


def _most_likely(
    policy: Policy,
    prompter: Prompter,
    examples: Sequence[Example],
    ids: Sequence[Sequence[int]],
    config: EvalConfig,
    progress: str | None,
) -> list[Label | None]:
    """The legal answer of highest likelihood, per example."""
    task = prompter.task
    words = [task.answers(e) for e in examples]
    tokens = {w: prompter.completion_ids(prompter.close(w)) for w in {w for ws in words for w in ws}}
    scores = score_answers(
        policy,
        ids,
        [[tokens[w] for w in ws] for ws in words],
        batch_size=config.batch_size,
        progress=f"{progress}, likelihood" if progress else None,
    )
    best = [ws[max(range(len(ws)), key=row.__getitem__)] for ws, row in zip(words, scores, strict=True)]
    return [parse_answer(task, word, e.candidates) for word, e in zip(best, examples, strict=True)]


def _interval(
    task: Task, answers: Sequence[Label | None], examples: Sequence[Example], samples: int
) -> tuple[float, float]:
    """95% bootstrap interval of the score (percent) over examples, whole groups where items are grouped."""

    groups = [e.group for e in examples]
    scorer = Scorer(task, answers, [e.label for e in examples], groups)
    grouped = groups[0] is not None
    low, high = bootstrap_interval(
        scorer.score, groups if grouped else len(examples), samples=samples, fresh_groups=grouped
    )
    return 100 * low, 100 * high
