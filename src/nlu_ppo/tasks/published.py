"""Answers as paper A's released code reads them: for the study of what that does, and for nothing else.

Its scorer looks for an answer word anywhere in the text before the closing tag (in all of it where there is
none), as written, and where that gives no label it draws one at random. On two-class tasks whose words both
occur it takes the second label (Positive, of SST-2); with more classes it guesses then, too. Here the draw
follows from seed and example, so that a run can be repeated.
"""

from __future__ import annotations

import random

from nlu_ppo.errors import ConfigError
from nlu_ppo.tasks.record import CLOSE, Kind, Task


def check_published(task: Task) -> None:
    """Raises ConfigError where the rule doesn't apply: it reads labels, one example at a time."""
    if task.kind is not Kind.CLASSIFY or task.judged_as is not None:
        raise ConfigError(
            f"eval.scoring=as_published is for tasks whose examples have labels of their own, and {task.name} "
            f"isn't one: leave it at eval.scoring=whole"
        )


def read_as_published(task: Task, completion: str) -> int | None:
    """The label that the released scorer finds, `None` where it guesses."""
    text = completion.partition(CLOSE)[0]
    found = [label for label, word in enumerate(task.verbalizers) if word in text]
    if len(found) == 2 and len(task.verbalizers) == 2:
        return found[-1]
    return found[0] if len(found) == 1 else None


def guess(task: Task, seed: int, example_id: str) -> int:
    """A label drawn at random, the same for the same seed and example."""
    return random.Random(f"{seed}/{example_id}").randrange(len(task.labels))
