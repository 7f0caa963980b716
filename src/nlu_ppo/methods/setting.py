"""What a method gets and gives back, and what the methods that train share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nlu_ppo.config import Config, EvalConfig, TrainingConfig
from nlu_ppo.errors import DataError
from nlu_ppo.evaluation import evaluate, longest_answer
from nlu_ppo.methods import mixing
from nlu_ppo.models.policy import Policy
from nlu_ppo.prompting import Prompt, Prompter
from nlu_ppo.tasks.record import Example, Task
from nlu_ppo.tasks.splits import TaskData

if TYPE_CHECKING:
    from nlu_ppo.run import Recorder


@dataclass(frozen=True)
class Part:
    """One task of a run: its examples, and how they are prompted."""

    data: TaskData
    prompter: Prompter

    @property
    def task(self) -> Task:
        return self.data.task

    @property
    def longest_answer(self) -> int:
        """Tokens that the longest legal completion of any example takes."""
        evaluated = [e for split in self.data.evaluation.values() for e in split]
        examples = evaluated + self.data.train + self.data.selection
        return longest_answer(self.prompter, examples)

    def leave_room_for_answers(self, policy: Policy, config: EvalConfig) -> None:
        """Shortens prompts so that the completion fits into the model's context; for tasks only evaluated on.

        Raises:
            ModelError: the context has no room for any prompt.
        """
        needed = config.max_new_tokens or self.longest_answer
        self.prompter.max_prompt_tokens = policy.room_for_prompts(needed)


@dataclass(frozen=True)
class Setting:
    """A policy and its task, or its tasks. A method takes one and returns the one to evaluate."""

    config: Config
    policy: Policy
    parts: tuple[Part, ...]
    recorder: Recorder
    examples_seen: int = 0

    def part_of(self, example: Example) -> Part:
        """The task that an example belongs to."""
        if len(self.parts) == 1:
            return self.parts[0]
        return next(part for part in self.parts if part.task.name == example.task)

    def encode(self, examples: Sequence[Example]) -> list[Prompt]:
        """Tokenised prompts, each as its task wants it, in the order of the examples."""
        found: dict[int, Prompt] = {}
        for part in self.parts:
            chosen = [i for i, example in enumerate(examples) if self.part_of(example) is part]
            prompts = part.prompter.encode(examples[i] for i in chosen)
            found.update(zip(chosen, prompts, strict=True))
        return [found[i] for i in range(len(examples))]

    @property
    def completion_limit(self) -> int:
        """Longest completion in tokens that any step of this run may write."""
        fitting = max(part.longest_answer for part in self.parts)
        wanted = [self.config.eval.max_new_tokens, getattr(self.config.method, "max_new_tokens", None)]
        return max(w or fitting for w in wanted)

    def with_room_for_answers(self) -> Setting:
        """Prompts that leave room for the completion in the model's context.

        Raises:
            ModelError: the context has no room for any prompt.
        """
        room = self.policy.room_for_prompts(self.completion_limit)
        for part in self.parts:
            part.prompter.max_prompt_tokens = room
        return self


def training_examples(part: Part) -> list[Example]:
    """A task's training examples.

    Raises:
        DataError: there is none.
    """
    if not part.data.train:
        raise DataError(f"task {part.task.name}: the train split is empty, so there is nothing to fit")
    return part.data.train


class TrainingStream:
    """The training examples of all tasks of a run, mixed as the config says.

    Raises:
        DataError: a task has none.
    """

    def __init__(self, setting: Setting) -> None:
        self._parts = [training_examples(part) for part in setting.parts]
        task = setting.config.task
        self._mixing = (task.mixing, task.mixing_temperature, setting.config.seed)

    def __len__(self) -> int:
        """Examples in one epoch."""
        return sum(map(len, self._parts))

    def first_epoch(self) -> list[Example]:
        return mixing.epoch(self._parts, *self._mixing, number=0)

    def __iter__(self) -> Iterator[Example]:
        """Endless epochs, each in its own order."""
        return mixing.epochs(self._parts, *self._mixing)


class Selector:
    """Scores the selection slice (of several tasks: each, and their mean) and remembers the best weights.

    Attributes:
        best: the best score so far, percent; `None` before the first.
    """

    def __init__(self, setting: Setting, method: TrainingConfig) -> None:
        self._setting = setting
        self._method = method
        self._quick = EvalConfig(
            likelihood=False, bootstrap_samples=10, batch_size=setting.config.eval.batch_size
        )
        self._slices = [part for part in setting.parts if part.data.selection]
        self._weights: dict[str, Tensor] | None = None
        self.best: float | None = None

    def due(self, step: int, last: bool) -> bool:
        every = self._method.select_every
        return bool(self._slices) and (last or (every > 0 and step % every == 0))

    def score(self, step: int, examples: int) -> float:
        """Scores and logs the slice, and keeps the weights if they are the best so far."""
        setting, model = self._setting, self._setting.policy.model
        training = model.training
        model.eval()
        with torch.no_grad():
            found = {
                part.task.name: evaluate(setting.policy, part.prompter, part.data.selection, self._quick)
                for part in self._slices
            }
        model.train(training)
        score = fmean(f.score for f in found.values())
        values = {
            "select/score": score,
            "select/unparsable": sum(f.unparsable for f in found.values()) / sum(f.n for f in found.values()),
        }
        if len(setting.parts) > 1:
            values |= {f"select/{name}/score": f.score for name, f in found.items()}
        setting.recorder.log(step, examples, values)
        if self.best is None or score >= self.best:
            self.best = score
            setting.recorder.best = {"select_score": score, "step": step, "examples": examples}
            if self._method.keep == "best":
                self._weights = setting.policy.state_dict()
        return score

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
