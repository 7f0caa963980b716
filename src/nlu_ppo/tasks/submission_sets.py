"""The test sets whose answers a run hands in: which they are, their examples, and what they add to its key."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from nlu_ppo.config import TaskConfig
from nlu_ppo.errors import ConfigError, MissingSplitError
from nlu_ppo.tasks.record import Example, Task
from nlu_ppo.tasks.registry import get_task
from nlu_ppo.tasks.splits import data_fingerprint, evaluation_examples
from nlu_ppo.tasks.submission import OFFICIAL_FILES, OfficialFile, files_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SubmissionSet:
    """Examples, and the files that their answers go into: two for RTE, which both benchmarks have.

    Attributes:
        task: whose model answers, and whose prompt it gets; of a diagnostic set not its own record.
    """

    task: Task
    files: tuple[OfficialFile, ...]
    examples: list[Example]


@dataclass(frozen=True)
class SubmissionSets:
    """All test sets that one run answers.

    Attributes:
        missing: file name to reason, for the diagnostic sets that the data don't hold.
    """

    sets: tuple[SubmissionSet, ...]
    missing: Mapping[str, str]


def check_submission(task: Task) -> None:
    """Raises ConfigError where no file of a submission is this task's."""
    if files_of(task.name):
        return
    for file in OFFICIAL_FILES:
        if file.diagnostic == task.name:
            raise ConfigError(
                f"eval.submission=true: {file.name} is answered by the model of {file.task}, so say "
                f"task={file.task} in place of task={task.name}"
            )
    names = dict.fromkeys(file.task for file in OFFICIAL_FILES)
    raise ConfigError(
        f"eval.submission=true: no benchmark's server takes answers to task={task.name}; it fits "
        f"{', '.join(names)}"
    )


def load_submission(tasks: Sequence[Task], config: TaskConfig) -> SubmissionSets:
    """Reads the tasks' test splits and their diagnostic sets. `task.limit.eval` shortens them too.

    Raises:
        MissingSplitError: names all test splits that are missing.
        DataError: a file is malformed.
    """
    sets: list[SubmissionSet] = []
    missing: dict[str, str] = {}
    needed: list[str] = []
    for task, (name, split), files in _grouped(tasks):
        try:
            examples = evaluation_examples(get_task(name), split, config)
        except MissingSplitError as error:
            told = ", ".join(file.name for file in files)
            if name == task.name:
                needed.append(f"{told}: {error}")
            else:
                logger.warning("%s will be missing from submission/: %s", told, error)
                missing |= {file.name: str(error) for file in files}
            continue
        own = [_as_own(task, get_task(name), example) for example in examples]
        sets.append(SubmissionSet(task, tuple(files), own))
    if needed:
        raise MissingSplitError(
            "\n  ".join(["eval.submission=true needs test examples that aren't there:", *needed])
            + "\nTo run without a submission, leave eval.submission out"
        )
    return SubmissionSets(tuple(sets), missing)


def _grouped(tasks: Sequence[Task]) -> Iterator[tuple[Task, tuple[str, str], list[OfficialFile]]]:
    """The tasks' files by what they answer: a task, then name and split of a test set, then its files."""
    for task in tasks:
        grouped: dict[tuple[str, str], list[OfficialFile]] = {}
        for file in files_of(task.name):
            grouped.setdefault((file.examples_of, file.split), []).append(file)
        for which, files in grouped.items():
            yield task, which, files


def _as_own(task: Task, diagnostic: Task, example: Example) -> Example:
    """A diagnostic example as one of the task's, so that the task's prompt (and demonstrations) fit it."""
    if diagnostic is task:
        return example
    pairs = zip(task.columns, diagnostic.columns, strict=True)
    fields = {ours: example.fields[theirs] for ours, theirs in pairs}
    return replace(example, fields=fields, task=task.name)


def submission_fingerprint(tasks: Sequence[Task], config: TaskConfig) -> dict[str, str]:
    """What identifies the test sets, by the name of their task."""
    splits: dict[str, list[str]] = {}
    for _, (name, split), _ in _grouped(tasks):
        splits.setdefault(name, []).append(split)
    return {name: data_fingerprint(get_task(name), config, wanted) for name, wanted in splits.items()}
