"""One evaluation for all methods: greedy (or sampled) answers, label likelihood, score and interval."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nlu_ppo.config import EvalConfig
from nlu_ppo.inference.decoder import generate, score_answers
from nlu_ppo.models.policy import Policy
from nlu_ppo.prompt_cache import count_shortened, token_ids
from nlu_ppo.prompting import Prompter
from nlu_ppo.statistics import bootstrap_interval
from nlu_ppo.tasks.answers import is_correct, parse_answer
from nlu_ppo.tasks.metrics import Scorer, score
from nlu_ppo.tasks.record import Example, Kind, Label, Task
from nlu_ppo.tasks.reduction import Judged, judge

SPARE_TOKENS = 4  # room for an answer that is not worded as the longest legal one


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found. `metrics` are fractions, `score`, `interval` and `likelihood` percent.

    `n`, `unparsable` and `predictions` count what is scored: examples, or the questions that they make up.
    `shortened` counts prompts.
    """

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
    """Tokens that the longest legal completion of the examples takes, with a few to spare."""
    task = prompter.task
    asked = examples if task.kind is Kind.CHOOSE else examples[:1]  # elsewhere all have the same answers
    completions = {prompter.close(answer) for example in asked for answer in task.answers(example)}
    prompter.learn_completions(completions)
    return max(len(prompter.completion_ids(text)) for text in completions) + SPARE_TOKENS


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
    prompts = prompter.prepare(examples)
    ids = token_ids(prompts)
    limit = config.max_new_tokens or longest_answer(prompter, examples)
    generator = torch.Generator(policy.device).manual_seed(seed)
    completions = generate(
        policy,
        ids,
        limit,
        temperature=config.temperature if config.decoding == "sample" else 0.0,
        generator=generator,
        batch_size=config.batch_size,
        progress=progress,
    )
    texts = [policy.tokenizer.decode(c, skip_special_tokens=True) for c in completions]
    answers = [
        parse_answer(task, text, example.candidates) for text, example in zip(texts, examples, strict=True)
    ]
    judged = judge(task, examples, answers)
    metrics = _metrics(judged)
    likely = None
    if config.likelihood:
        labels, strengths = _most_likely(policy, prompter, examples, ids, config, progress)
        likely = judge(task, examples, labels, strengths)
        metrics |= {f"likelihood/{k}": v for k, v in _metrics(likely).items()}
    hashes = [hashlib.sha256(prompt.text.encode()).hexdigest()[:16] for prompt in prompts]
    return Evaluation(
        metrics=metrics,
        score=100 * metrics["score"],
        interval=_interval(judged, config.bootstrap_samples),
        likelihood=100 * metrics["likelihood/score"] if likely is not None else None,
        unparsable=sum(a is None for a in judged.answers),
        shortened=count_shortened(prompts),
        predictions=_predictions(judged, likely, examples, hashes, texts, answers),
    )


def _predictions(
    judged: Judged,
    likely: Judged | None,
    examples: Sequence[Example],
    hashes: Sequence[str],
    texts: Sequence[str],
    answers: Sequence[Label | None],
) -> list[dict[str, Any]]:
    """One line per scored answer. A question's shows the item that gave its answer, and all its items."""
    lines = []
    for number, (example, answer, rows) in enumerate(
        zip(judged.examples, judged.answers, judged.rows, strict=True)
    ):
        line: dict[str, Any] = {
            "id": example.id,
            "prompt_sha": hashes[rows[0]],
            "completion": texts[rows[0]],
            "label": answer,
            "reference": example.label,
            "correct": is_correct(judged.task, answer, example.label),
        }
        if example.group is not None:
            line["group"] = example.group
        if likely is not None:
            line["likely"] = likely.answers[number]
        if judged.examples is not examples:
            line["items"] = [
                {
                    "id": examples[i].id,
                    "candidate": examples[i].candidates[0],
                    "prompt_sha": hashes[i],
                    "completion": texts[i],
                    "label": answers[i],
                    "reference": examples[i].label,
                }
                for i in sorted(rows)
            ]
        lines.append(line)
    return lines


def score_answers_of(
    task: Task, answers: Sequence[Label | None], examples: Sequence[Example]
) -> dict[str, float]:
    """The task's metrics (fractions) of `answers` to `examples`."""
    return _metrics(judge(task, examples, answers))


def _metrics(judged: Judged) -> dict[str, float]:
    examples = judged.examples
    return score(judged.task, judged.answers, [e.label for e in examples], [e.group for e in examples])


def majority_score(task: Task, train_labels: Sequence[Label], examples: Sequence[Example]) -> float | None:
    """Score (percent) of always answering the most frequent training label (a number: the mean of them)."""
    if task.kind is Kind.CHOOSE or not train_labels:
        return None
    constant: Label
    if task.kind is Kind.REGRESS:
        constant = float(np.mean([float(v) for v in train_labels]))  # type: ignore[arg-type]
    else:
        counts = Counter(train_labels)
        constant = max(sorted(counts, key=str), key=counts.__getitem__)
    return 100 * score_answers_of(task, [constant] * len(examples), examples)["score"]


def _most_likely(
    policy: Policy,
    prompter: Prompter,
    examples: Sequence[Example],
    ids: Sequence[Sequence[int]],
    config: EvalConfig,
    progress: str | None,
) -> tuple[list[Label | None], list[float]]:
    """The legal answer of highest likelihood per example, and how probable the last of the legal ones is.

    Of yes and no, that is the probability of yes among the two: what the model gives to other texts says
    something of format, and nothing of the candidate.
    """
    task = prompter.task
    words = [task.answers(e) for e in examples]
    distinct = {word for row in words for word in row}
    prompter.learn_completions(map(prompter.close, distinct))
    tokens = {word: prompter.completion_ids(prompter.close(word)) for word in distinct}
    scores = score_answers(
        policy,
        ids,
        [[tokens[w] for w in ws] for ws in words],
        batch_size=config.batch_size,
        progress=f"{progress}, likelihood" if progress else None,
    )
    best = [ws[max(range(len(ws)), key=row.__getitem__)] for ws, row in zip(words, scores, strict=True)]
    labels: list[Label | None] = [
        parse_answer(task, word, e.candidates) for word, e in zip(best, examples, strict=True)
    ]
    return labels, [row[-1] - float(np.logaddexp.reduce(row)) for row in scores]


def _interval(judged: Judged, samples: int) -> tuple[float, float]:
    """95% bootstrap interval of the score (percent) over examples, whole groups where items are grouped."""

    examples = judged.examples
    groups = [e.group for e in examples]
    scorer = Scorer(judged.task, judged.answers, [e.label for e in examples], groups)
    grouped = groups[0] is not None
    low, high = bootstrap_interval(
        scorer.score, groups if grouped else len(examples), samples=samples, fresh_groups=grouped
    )
    return 100 * low, 100 * high
