"""What a completion earns: its answer is read, compared with the gold label, and rewarded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from nlu_ppo.methods.setting import Setting
from nlu_ppo.rewards import get_reward, needed_models
from nlu_ppo.rewards.noise import mislabelled
from nlu_ppo.tasks.answers import is_correct, parse_answer
from nlu_ppo.tasks.record import Example, Label

Judged = tuple[float, Label | None, bool]  # reward, parsed answer, whether it is right
# what a reward model says of completions of one task, by the task's name
Scorer = Callable[[str, Sequence[Example], Sequence[str]], list[float]]


class Judge:
    """Judges completions of a run's training examples: one, or (which reward models are faster at) many."""

    def __init__(self, setting: Setting) -> None:
        config = setting.config
        self._setting, self._noise, self._seed = setting, config.reward.noise, config.seed
        self._rewards = {p.task.name: get_reward(config.reward, p.task) for p in setting.parts}
        self._models = needed_models(config.reward)
        missing = [name for name in self._models if name not in setting.scorers]
        assert not missing, f"the setting lacks {missing}"

    def __call__(self, completion: str, example: Example) -> Judged:
        (judged,) = self.many([completion], [example])
        return judged

    def many(self, completions: Sequence[str], examples: Sequence[Example]) -> list[Judged]:
        """Judges a batch."""
        scores = self._scores(completions, examples)
        return [
            self._judge(completion, example, told)
            for completion, example, told in zip(completions, examples, scores, strict=True)
        ]

    def _judge(self, completion: str, example: Example, scores: Mapping[str, float]) -> Judged:
        part = self._setting.part_of(example)
        task = part.task
        # An answer that never closes its tag is no answer here: the policy has to learn when to stop.
        closed = part.prompter.closing in completion
        answer = parse_answer(task, completion, example.candidates) if closed else None
        shown = mislabelled(example, task, self._noise, self._seed) if self._noise else example
        reward = self._rewards[task.name](completion, answer, shown, scores)
        return reward, answer, is_correct(task, answer, example.label)

    def _scores(self, completions: Sequence[str], examples: Sequence[Example]) -> list[dict[str, float]]:
        found: list[dict[str, float]] = [{} for _ in completions]
        if not self._models:
            return found
        tasks = [self._setting.part_of(example).task.name for example in examples]
        for task in dict.fromkeys(tasks):
            rows = [i for i, name in enumerate(tasks) if name == task]
            for model in self._models:
                scorer = self._setting.scorers[model]
                told = scorer(task, [examples[i] for i in rows], [completions[i] for i in rows])
                for i, score in zip(rows, told, strict=True):
                    found[i][model] = score
        return found


def judge_by(setting: Setting) -> Judge:
    """Completion and example to (reward, parsed answer, whether it is right)."""
    return Judge(setting)
