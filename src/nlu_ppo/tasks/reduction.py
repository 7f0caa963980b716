"""From answers about single items to the answers that are scored.

Most tasks are scored item by item, or item by item within groups. Where `Task.judged_as` is set, the items of
a group ask about the candidates of one question (ReCoRD as yes or no), and only one candidate per question is
an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nlu_ppo.tasks.record import Example, Label, Task


@dataclass(frozen=True)
class Judged:
    """What is scored.

    Attributes:
        task: the task whose metrics count.
        examples: one per scored answer.
        answers: `None` where there is no legal one.
        rows: for each answer, the items it was made of, the one that gave it first.
    """

    task: Task
    examples: Sequence[Example]
    answers: Sequence[Label | None]
    rows: Sequence[Sequence[int]]


def judge(
    task: Task,
    examples: Sequence[Example],
    answers: Sequence[Label | None],
    strengths: Sequence[float] | None = None,
) -> Judged:
    """The answers to score, made of the answers to `examples`.

    Tasks without `judged_as` are scored as they are. For others, each group becomes one question, and its
    answer is

    * with `strengths`: the candidate of the greatest strength, of equals the first;
    * without: the first candidate that was affirmed (label 1); if none was, the first of all, which is as good
      a guess as any; `None` if not one item of the question has a legal answer.

    "First" goes by the order of `examples`: that of the candidates in the passage.

    Args:
        strengths: how probable it is that each item's candidate is right.
    """
    if task.judged_as is None:
        return Judged(task, examples, answers, [(i,) for i in range(len(examples))])
    groups: dict[object, list[int]] = {}
    for i, example in enumerate(examples):
        groups.setdefault(example.group, []).append(i)
    questions, chosen, rows = [], list[Label | None](), []
    for members in groups.values():
        if strengths is not None:
            best = max(members, key=strengths.__getitem__)
        else:
            best = next((i for i in members if answers[i] == 1), members[0])
        silent = strengths is None and all(answers[i] is None for i in members)
        questions.append(_question([examples[i] for i in members]))
        chosen.append(None if silent else examples[best].candidates[0])
        rows.append([best, *(i for i in members if i != best)])
    return Judged(task.judged_as, questions, chosen, rows)


def _question(items: Sequence[Example]) -> Example:
    """The example of `Task.judged_as` that the items are made of: their id and index without the last part."""
    first = items[0]
    idx = dict(list(first.idx.items())[:-1]) if isinstance(first.idx, Mapping) else first.idx
    return Example(
        id=first.id.rpartition("-")[0],
        fields={},
        label=first.accepted or None,
        candidates=tuple(item.candidates[0] for item in items),
        idx=idx,
    )
