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
from nlu_ppo.messages import MessagePrompter
from nlu_ppo.models.classifier import Classifier
from nlu_ppo.models.policy import Policy
from nlu_ppo.prompt_cache import count_shortened, token_ids
from nlu_ppo.prompting import Prompt, Prompter
from nlu_ppo.remote import RemoteModel
from nlu_ppo.statistics import bootstrap_interval
from nlu_ppo.tasks.answers import is_correct, parse_answer
from nlu_ppo.tasks.metrics import Scorer, score
from nlu_ppo.tasks.published import guess, read_as_published
from nlu_ppo.tasks.record import Example, Kind, Label, Task, accepted_answers
from nlu_ppo.tasks.reduction import Judged, judge
from nlu_ppo.tasks.splits import commonest_label

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
    completions = set(map(prompter.close, answers))
    if isinstance(prompter, MessagePrompter):
        return prompter.longest_reply(completions)
    prompter.learn_completions(completions)
    longest = max(len(prompter.completion_ids(text)) for text in completions)
    return longest + SPARE_TOKENS + prompter.analysis_tokens


def _longest(answers: set[str], count: int = 256) -> set[str]:
    """The longest in bytes. To tokenise each of a hundred thousand answers would take minutes, and the longest in
    tokens is among these, or has a length that spare tokens make up for."""
    return set(sorted(answers, key=lambda answer: (-len(answer.encode()), answer))[:count])


@dataclass(frozen=True)
class Answers:
    """What a model wrote, example by example, and the labels that it gives (`None`: unparsable)."""

    prompts: Sequence[Prompt]
    texts: list[str]
    labels: Sequence[Label | None]
    guessed: int = 0  # labels that were drawn at random, as only `eval.scoring=as_published` does


def answer(
    policy: Policy | Classifier | RemoteModel,
    prompter: Prompter,
    examples: Sequence[Example],
    config: EvalConfig,
    seed: int = 0,
    progress: str | None = None,
) -> Answers:
    """Answers every example; needs no gold labels."""
    if isinstance(policy, Classifier):
        return Answers(*policy.answer(prompter.task, examples, config.batch_size, progress))
    prompts: Sequence[Prompt]
    limit = config.max_new_tokens or longest_answer(prompter, examples)
    if isinstance(policy, RemoteModel):
        assert isinstance(prompter, MessagePrompter)
        prompts, texts = policy.answer(prompter, examples, limit, progress)
    else:
        prompts, texts = _written(policy, prompter, examples, limit, config, seed, progress)
    if config.scoring == "as_published":
        return _as_published(prompter.task, prompts, texts, examples, seed)
    labels = [
        parse_answer(prompter.task, text, example.candidates)
        for text, example in zip(texts, examples, strict=True)
    ]
    return Answers(prompts, texts, labels)


def _written(
    policy: Policy,
    prompter: Prompter,
    examples: Sequence[Example],
    limit: int,
    config: EvalConfig,
    seed: int,
    progress: str | None,
) -> tuple[Sequence[Prompt], list[str]]:
    prompts = prompter.prepare(examples)
    completions = generate(
        policy,
        token_ids(prompts),
        limit,
        temperature=config.temperature if config.decoding == "sample" else 0.0,
        generator=torch.Generator(policy.device).manual_seed(seed),
        batch_size=config.batch_size,
        progress=progress,
    )
    return prompts, [policy.tokenizer.decode(c, skip_special_tokens=True) for c in completions]


def _as_published(
    task: Task, prompts: Sequence[Prompt], texts: list[str], examples: Sequence[Example], seed: int
) -> Answers:
    found = [read_as_published(task, text) for text in texts]
    labels = [
        guess(task, seed, example.id) if label is None else label
        for label, example in zip(found, examples, strict=True)
    ]
    return Answers(prompts, texts, labels, guessed=sum(label is None for label in found))


def evaluate(
    policy: Policy | Classifier | RemoteModel,
    prompter: Prompter,
    examples: Sequence[Example],
    config: EvalConfig,
    seed: int = 0,
    progress: str | None = None,
) -> Evaluation:
    """Answers every example and scores the answers as the task's benchmark does."""
    task = prompter.task
    found = answer(policy, prompter, examples, config, seed, progress)
    judged = judge(task, examples, found.labels)
    metrics = _metrics(judged)
    likely = None
    if config.likelihood and task.lists_answers and not isinstance(policy, Classifier | RemoteModel):
        labels, strengths = _most_likely(
            policy, prompter, examples, token_ids(found.prompts), config, progress
        )
        likely = judge(task, examples, labels, strengths)
        metrics |= {f"likelihood/{k}": v for k, v in _metrics(likely).items()}
    return Evaluation(
        metrics=metrics,
        score=100 * metrics["score"],
        interval=_interval(judged, config.bootstrap_samples),
        likelihood=100 * metrics["likelihood/score"] if likely is not None else None,
        unparsable=found.guessed + sum(a is None for a in judged.answers),
        shortened=count_shortened(found.prompts),
        predictions=_predictions(examples, found, judged, likely),
    )


def _predictions(
    examples: Sequence[Example], found: Answers, judged: Judged, likely: Judged | None
) -> list[dict[str, Any]]:
    """One line per scored answer. A question's shows the item that gave its answer, and all its items."""
    hashes = [hashlib.sha256(prompt.text.encode()).hexdigest()[:16] for prompt in found.prompts]
    lines = []
    for number, (example, label, rows) in enumerate(
        zip(judged.examples, judged.answers, judged.rows, strict=True)
    ):
        line: dict[str, Any] = {
            "id": example.id,
            "prompt_sha": hashes[rows[0]],
            "completion": found.texts[rows[0]],
            "label": label,
            "reference": example.label,
            "correct": is_correct(judged.task, label, example.label),
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
                    "completion": found.texts[i],
                    "label": found.labels[i],
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
