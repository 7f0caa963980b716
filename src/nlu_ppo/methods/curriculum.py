"""The order in which training examples come: shuffled, or by length, or those first of which the model is sure."""

from __future__ import annotations

import logging
from collections.abc import Callable

from nlu_ppo.config import TrainingConfig
from nlu_ppo.inference.decoder import score_answers
from nlu_ppo.methods.setting import Part, Setting, TrainingStream, training_examples
from nlu_ppo.prompt_cache import token_ids
from nlu_ppo.tasks.record import Example, Task, accepted_answers

log = logging.getLogger(__name__)


def training_stream(setting: Setting) -> TrainingStream:
    """The run's training examples, every epoch in the order of `method.order`."""
    method = setting.config.method
    assert isinstance(method, TrainingConfig)
    stream = TrainingStream(setting)
    if method.order != "shuffled":
        log.info("order of the training examples: %s", method.order)
        measure = DIFFICULTIES[method.order]
        stream.in_order_of([value for part in setting.parts for value in measure(setting, part)])
    return stream


def by_length(_: Setting, part: Part) -> list[float]:
    """Characters of an example's texts: what a prompt has beyond the instruction that all share."""
    return [float(sum(map(len, example.fields.values()))) for example in training_examples(part)]


def by_brevity(setting: Setting, part: Part) -> list[float]:
    return [-length for length in by_length(setting, part)]


def by_confidence(setting: Setting, part: Part) -> list[float]:
    """By how much the model that training starts from prefers a wrong answer, in nats.

    The log-likelihood of the likeliest wrong answer, minus that of the (likeliest) right one: negative where the
    model is right.
    """
    task, examples = part.task, training_examples(part)
    words = [task.answers(example) for example in examples]
    distinct = {word for row in words for word in row}
    part.prompter.learn_completions(map(part.prompter.close, distinct))
    tokens = {word: part.prompter.completion_ids(part.prompter.close(word)) for word in distinct}
    model = setting.policy.model
    training = model.training
    model.eval()
    scores = score_answers(
        setting.policy,
        token_ids(part.prompter.prepare(examples)),
        [[tokens[word] for word in row] for row in words],
        batch_size=setting.config.eval.batch_size,
        progress=f"{task.name}, confidence",
    )
    model.train(training)
    return [
        _doubt(dict(zip(row, found, strict=True)), _right(task, example))
        for row, found, example in zip(words, scores, examples, strict=True)
    ]


def _right(task: Task, example: Example) -> set[str]:
    assert example.label is not None
    if task.kind.in_words:
        return set(accepted_answers(example.label))
    return {task.verbalize(example.label)}


def _doubt(scores: dict[str, float], right: set[str]) -> float:
    """Of an example whose answers are all right, or all wrong, nothing can be preferred: neither easy nor hard."""
    good = [value for word, value in scores.items() if word in right]
    bad = [value for word, value in scores.items() if word not in right]
    return max(bad) - max(good) if good and bad else 0.0


DIFFICULTIES: dict[str, Callable[[Setting, Part], list[float]]] = {
    "short_first": by_length,
    "long_first": by_brevity,
    "confidence": by_confidence,
}
