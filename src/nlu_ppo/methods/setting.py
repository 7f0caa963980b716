"""What a method gets and gives back, and what the methods that train share."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nlu_ppo.config import Config, EvalConfig, TrainingConfig
from nlu_ppo.errors import DataError, ModelError
from nlu_ppo.evaluation import evaluate, longest_answer
from nlu_ppo.models.policy import Policy
from nlu_ppo.prompting import Prompter
from nlu_ppo.tasks.record import Example
from nlu_ppo.tasks.splits import TaskData

if TYPE_CHECKING:
    from nlu_ppo.run import Recorder


@dataclass(frozen=True)
class Setting:
    """A policy, how it is prompted, and its data. A method takes one and returns the one to evaluate."""

    config: Config
    policy: Policy
    prompter: Prompter
    data: TaskData
    recorder: Recorder
    examples_seen: int = 0

    @property
    def completion_limit(self) -> int:
        """Longest completion in tokens that any step of this run may write."""
        evaluated = [e for split in self.data.evaluation.values() for e in split]
        examples = evaluated + self.data.train + self.data.selection
        fitting = longest_answer(self.prompter, examples)
        wanted = [self.config.eval.max_new_tokens, getattr(self.config.method, "max_new_tokens", None)]
        return max(w or fitting for w in wanted)

    def with_room_for_answers(self) -> Setting:
        """Prompts that leave room for the completion in the model's context.

        Raises:
            ModelError: the context has no room for any prompt.
        """
        room = self.policy.context_length - self.completion_limit
        if room < 1:
            raise ModelError(
                f"the model's context of {self.policy.context_length} tokens has no room for answers of "
                f"{self.completion_limit} tokens"
            )
        self.prompter.max_prompt_tokens = room
        return self


def training_examples(setting: Setting) -> list[Example]:
    """The task's training examples.

    Raises:
        DataError: there is none.
    """
    if not setting.data.train:
        raise DataError(
            f"task {setting.data.task.name}: the train split is empty, so there is nothing to fit"
        )
    return setting.data.train


def epochs(examples: list[Example], seed: int) -> Iterator[Example]:
    """Endless passes over `examples`, each in its own order; the whole order follows from the seed."""
    number = 0
    while True:
        order = list(examples)
        random.Random(f"{seed}/{number}").shuffle(order)
        yield from order
        number += 1


class Selector:
    """Scores the selection slice during training and remembers the best weights.

    Attributes:
        best: the best score so far, percent; `None` before the first.
    """

    def __init__(self, setting: Setting, method: TrainingConfig) -> None:
        self._setting = setting
        self._method = method
        self._quick = EvalConfig(
            likelihood=False, bootstrap_samples=10, batch_size=setting.config.eval.batch_size
        )
        self._weights: dict[str, Tensor] | None = None
        self.best: float | None = None

    def due(self, step: int, last: bool) -> bool:
        every = self._method.select_every
        return bool(self._setting.data.selection) and (last or (every > 0 and step % every == 0))

    def score(self, step: int, examples: int) -> float:
        """Scores and logs the slice, and keeps the weights if they are the best so far."""
        setting, model = self._setting, self._setting.policy.model
        training = model.training
        model.eval()
        with torch.no_grad():
            found = evaluate(setting.policy, setting.prompter, setting.data.selection, self._quick)
        model.train(training)
        values = {
            "select/score": found.score,
            "select/unparsable": found.unparsable / found.n,
        }
        setting.recorder.log(step, examples, values)
        if self.best is None or found.score >= self.best:
            self.best = found.score
            setting.recorder.best = {"select_score": found.score, "step": step, "examples": examples}
            if self._method.keep == "best":
                self._weights = setting.policy.state_dict()
        return found.score

    def restore_best(self) -> None:
        """Puts the best weights back; without a selection slice the last ones stay."""
        if self._weights is not None:
            self._setting.policy.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, object]:
        return {"best": self.best, "weights": self._weights, "recorded": self._setting.recorder.best}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.best = state["best"]  # type: ignore[assignment]
        self._weights = state["weights"]  # type: ignore[assignment]
        self._setting.recorder.best = state["recorded"]  # type: ignore[assignment]


def finished(setting: Setting, examples_seen: int) -> Setting:
    return replace(setting, examples_seen=examples_seen)
