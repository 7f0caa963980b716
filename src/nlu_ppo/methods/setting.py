"""What a method gets and gives back, and what the methods that train share."""

from __future__ import annotations

import contextlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, count, pairwise
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nlu_ppo import ranks, stopping
from nlu_ppo.config import Config, EvalConfig, TrainingConfig
from nlu_ppo.errors import DataError
from nlu_ppo.evaluation import Evaluation, evaluate, longest_answer
from nlu_ppo.methods import mixing
from nlu_ppo.models.policy import Policy
from nlu_ppo.prompt_cache import count_shortened
from nlu_ppo.prompting import Prompt, Prompter
from nlu_ppo.tasks.rationales import Rationales
from nlu_ppo.tasks.record import Example, Task
from nlu_ppo.tasks.splits import TaskData
from nlu_ppo.tasks.spool import select

if TYPE_CHECKING:
    from nlu_ppo.run import Recorder


@dataclass(frozen=True)
class Part:
    """One task of a run: its examples, and how they are prompted."""

    data: TaskData
    prompter: Prompter
    rationales: Rationales | None = None

    @property
    def task(self) -> Task:
        return self.data.task

    @property
    def longest_answer(self) -> int:
        """Tokens that the longest legal completion of any example takes."""
        splits = (*self.data.evaluation.values(), self.data.train, self.data.selection)
        return max(longest_answer(self.prompter, split) for split in splits if split)

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
    scorers: Mapping[str, Callable[[str, Sequence[Example], Sequence[str]], list[float]]] = field(
        default_factory=dict
    )  # the reward models that the run's reward asks: task name, examples and completions to scores

    def part_of(self, example: Example) -> Part:
        """The task that an example belongs to."""
        if len(self.parts) == 1:
            return self.parts[0]
        return next(part for part in self.parts if part.task.name == example.task)

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


def training_examples(part: Part) -> Sequence[Example]:
    """A task's training examples.

    Raises:
        DataError: there is none.
    """
    if not part.data.train:
        raise DataError(f"task {part.task.name}: the train split is empty, so there is nothing to fit")
    return part.data.train


class TrainingStream:
    """The training examples of all tasks of a run, mixed as the config says.

    They go by number, those of the first task first: hundreds of thousands of them need not be in memory.

    Raises:
        DataError: a task has none.
    """

    def __init__(self, setting: Setting) -> None:
        self._parts = setting.parts
        self._examples = [training_examples(part) for part in setting.parts]
        self._starts = list(accumulate(map(len, self._examples), initial=0))
        self._numbers = [range(*ends) for ends in pairwise(self._starts)]
        self._prompts: list[_Prepared] = []
        task = setting.config.task
        self._mixing = (task.mixing, task.mixing_temperature, setting.config.seed)
        self._difficulty: Sequence[float] | None = None

    def in_order_of(self, difficulty: Sequence[float]) -> None:
        """Every epoch comes in ascending order of `difficulty` (by number); equal ones stay shuffled."""
        assert len(difficulty) == len(self)
        self._difficulty = difficulty

    def __len__(self) -> int:
        """Examples in one epoch."""
        return self._starts[-1]

    def first_epoch(self) -> list[int]:
        return self._epoch(0)

    def __iter__(self) -> Iterator[int]:
        """Endless epochs, each in its own order."""
        for number in count():
            yield from self._epoch(number)

    def _epoch(self, number: int) -> list[int]:
        numbers = mixing.epoch(self._numbers, *self._mixing, number=number)
        return numbers if self._difficulty is None else sorted(numbers, key=self._difficulty.__getitem__)

    def part(self, number: int) -> Part:
        """The task that an example belongs to."""
        return self._parts[self._place(number)[0]]

    def example(self, number: int) -> Example:
        part, row = self._place(number)
        return self._examples[part][row]

    def prepare(self, numbers: Iterable[int]) -> None:
        """Tokenises the prompts of these examples, through the cache; `prompt` then has them."""
        wanted = sorted(set(numbers))
        self._prompts = []
        for part, examples, own in zip(self._parts, self._examples, self._numbers, strict=True):
            first, last = bisect_left(wanted, own.start), bisect_left(wanted, own.stop)
            rows: Sequence[int] = [number - own.start for number in wanted[first:last]]
            if len(rows) == len(examples):
                rows = range(len(examples))
            else:
                examples = select(examples, rows)
            self._prompts.append(_Prepared(rows, part.prompter.prepare(examples)))

    def prompt(self, number: int) -> Prompt:
        part, row = self._place(number)
        prepared = self._prompts[part]
        return prepared.prompts[bisect_left(prepared.rows, row)]

    def learn_answers(self) -> None:
        """Tokenises gold answers in words, through the cache; of other tasks the few answers are known."""
        for part, examples in zip(self._parts, self._examples, strict=True):
            if part.task.kind.in_words:
                labels = (example.label for example in examples)
                golds = (part.prompter.completion(label) for label in labels if label is not None)
                part.prompter.learn_completions(golds)

    @property
    def shortened(self) -> int:
        """How many of the prepared prompts were cut to fit."""
        return sum(count_shortened(prepared.prompts) for prepared in self._prompts)

    def _place(self, number: int) -> tuple[int, int]:
        """The number of an example's task, and the example's row in it."""
        part = bisect_right(self._starts, number) - 1
        return part, number - self._starts[part]


@dataclass(frozen=True)
class _Prepared:
    """Prompts of some of a task's training examples: `prompts[i]` belongs to `rows[i]`, which ascend."""

    rows: Sequence[int]
    prompts: Sequence[Prompt]


class Selector:
    """Scores the selection slice (of several tasks: each, and their mean) and remembers the best weights.

    Attributes:
        best: the best score so far, percent; `None` before the first.
        scored: the last step that was scored.
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
        self.scored = -1

    def due(self, step: int, last: bool) -> bool:
        every = self._method.select_every
        return bool(self._slices) and (last or (every > 0 and step % every == 0))

    def after(self, step: int, examples: int, last: bool = False) -> None:
        """Scores the slice if that is due after `step`, and was not done before the run was interrupted.

        Whoever asks the run to end doesn't wait for it: the resumed run then begins with it.
        """
        if self.due(step, last) and self.scored < step:
            with contextlib.suppress(stopping.Interrupted):
                self.score(step, examples)

    def score(self, step: int, examples: int) -> float:
        """Scores and logs the slice, and keeps the weights if they are the best so far.

        Raises:
            Interrupted: the run was asked to end meanwhile; nothing is logged or kept.
        """
        setting = self._setting
        # several processes score together, so that none may leave on its own
        with stopping.at_once() if ranks.world() == 1 else contextlib.nullcontext():
            found = self._evaluate()
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
        self.scored = step
        return score

    def _evaluate(self) -> dict[str, Evaluation]:
        policy, model = self._setting.policy, self._setting.policy.model
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                return {
                    part.task.name: evaluate(policy, part.prompter, part.data.selection, self._quick)
                    for part in self._slices
                }
        finally:
            model.train(training)

    def restore_best(self) -> None:
        """Puts the best weights back; without a selection slice the last ones stay."""
        if self._weights is not None:
            self._setting.policy.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint needs to hold of it, and of what the run recorded."""
        return {
            "best": self.best,
            "scored": self.scored,
            "weights": self._weights,
            "recorded": self._setting.recorder.state_dict(),
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.best = state["best"]  # type: ignore[assignment]
        self.scored = state["scored"]  # type: ignore[assignment]
        self._weights = state["weights"]  # type: ignore[assignment]
        self._setting.recorder.load_state_dict(state["recorded"])  # type: ignore[arg-type]


def finished(setting: Setting, examples_seen: int) -> Setting:
    return replace(setting, examples_seen=examples_seen)
