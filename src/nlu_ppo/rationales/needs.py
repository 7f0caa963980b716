"""Which analyses a run learns from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nlu_ppo.config import Config, RewardModelConfig, SFTConfig
from nlu_ppo.preference.pairs import LABELS, from_file, wrong_labels
from nlu_ppo.tasks.record import Example, Task
from nlu_ppo.tasks.splits import TaskData


@dataclass(frozen=True)
class Need:
    """An analysis that argues for a label, right or wrong, of an example of a split."""

    task: Task
    split: str
    example: Example
    label: int

    @property
    def text(self) -> str:
        """The example as the task's prompts have it: files of analyses go by it."""
        return self.task.template.format_map(self.example.fields).strip()


def needs(config: Config, data: TaskData) -> Iterator[Need]:
    """The analyses that a run itself needs of one task; those of the runs that it starts from are theirs.

    SFT learns the right answers. A reward model needs what its pairs are made of, the held-out ones included. What
    learns from a reward, or not at all, needs none.
    """
    method, task = config.method, data.task
    if isinstance(method, SFTConfig):
        for example in data.train:
            yield Need(task, "train", example, _label(example))
    elif isinstance(method, RewardModelConfig) and not from_file(method.pairs):
        for split, examples in _splits(method, data).items():
            for example in examples:
                yield Need(task, split, example, _label(example))
                if method.pairs == LABELS:
                    for label in wrong_labels(task, example, method.wrong_labels, config.seed):
                        yield Need(task, split, example, label)


def _splits(method: RewardModelConfig, data: TaskData) -> dict[str, Sequence[Example]]:
    found: dict[str, Sequence[Example]] = {"train": data.train}
    if method.held_out_pairs is None:
        name = next(iter(data.evaluation))
        found[name] = data.evaluation[name]
    return found


def _label(example: Example) -> int:
    assert isinstance(example.label, int)  # `check_rationales` has seen to it
    return example.label
