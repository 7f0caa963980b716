"""The examples of one run: training examples, the selection slice held out of them, evaluation splits.

Examples are passed on one at a time and kept by `tasks.spool`, so that large training sets take no memory.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nlu_ppo.config import TaskConfig
from nlu_ppo.errors import ConfigError, DataError
from nlu_ppo.tasks.parquet import parquet_files
from nlu_ppo.tasks.rawfiles import locate
from nlu_ppo.tasks.readers import raw_files, read_split, sources
from nlu_ppo.tasks.record import OWN, Example, Label, Task
from nlu_ppo.tasks.registry import get_task, tasks_of
from nlu_ppo.tasks.spool import hold, select


@dataclass(frozen=True)
class TaskData:
    """A task's examples as one run uses them.

    Attributes:
        train: training examples, without the selection slice; empty if the task has none.
        selection: the slice of train that model selection looks at; validation is only ever reported.
        evaluation: split name to examples; the first split gives the run's score.
        train_labels: labels of the whole train split, whatever the limit, for the majority row.
        bad_rows: by split, what was wrong with the rows that `task.on_bad_row=skip` left out.
    """

    task: Task
    train: Sequence[Example]
    selection: Sequence[Example]
    evaluation: Mapping[str, Sequence[Example]]
    train_labels: list[Label]
    bad_rows: Mapping[str, list[str]] = field(default_factory=dict)


def check_source(task: Task, config: TaskConfig) -> None:
    """Raises ConfigError where task and source don't go together."""
    legal = sources(task)
    if config.source not in legal:
        raise ConfigError(
            f"task.source={config.source} does not fit task={task.name}: use {' or '.join(legal)}"
        )


def load_task(task: Task, config: TaskConfig, scratch: Path | None = None) -> TaskData:
    """Reads all splits that a run on `task` needs.

    Args:
        scratch: folder for temporary files, which large splits need; by default the system's.

    Raises:
        DataError: a file is missing or malformed, or a split is empty.
    """
    check_source(task, config)
    bad_rows: dict[str, list[str]] = {}
    labels: list[Label] = []
    train: Sequence[Example] = []
    if task.trainable:
        rows = _read(task, "train", config, bad_rows.setdefault("train", []))
        train = hold(_noting(labels, rows), scratch)
    evaluation = load_evaluation(task, config, scratch, bad_rows)
    kept, selection = _hold_out(train, config.selection)
    if task.train_rows:
        kept = select(kept, task.train_rows(kept))
    return TaskData(task, _subset(kept, config.limit.train), selection, evaluation, labels, bad_rows)


def load_evaluation(
    task: Task, config: TaskConfig, scratch: Path | None, bad_rows: dict[str, list[str]]
) -> dict[str, Sequence[Example]]:
    """The splits that a task is evaluated on.

    Args:
        bad_rows: takes, by split, what was wrong with rows that were skipped.

    Raises:
        DataError: a file is missing or malformed, or a split is empty or without labels.
    """
    check_source(task, config)
    evaluation = {
        split: evaluation_examples(task, split, config, scratch, bad_rows.setdefault(split, []))
        for split in task.eval_splits
    }
    for split, examples in evaluation.items():
        if any(e.label is None for e in examples):
            raise DataError(_unlabelled(task, split))
    return evaluation


def evaluation_examples(
    task: Task,
    split: str,
    config: TaskConfig,
    scratch: Path | None = None,
    bad_rows: list[str] | None = None,
) -> Sequence[Example]:
    """The examples of a split that isn't trained on, as far as `task.limit.eval` lets them in."""
    return _subset(hold(_read(task, split, config, bad_rows), scratch), config.limit.eval)


def commonest_label(labels: Sequence[Label]) -> Label:
    """The most frequent label; of equally frequent ones the first by name."""
    counts = Counter(labels)
    return max(sorted(counts, key=str), key=counts.__getitem__)


def _read(task: Task, split: str, config: TaskConfig, bad_rows: list[str] | None) -> Iterator[Example]:
    return read_split(
        task,
        split,
        config.source,
        config.data_dir,
        config.on_bad_row,
        hub_path=config.hub_path,
        bad_rows=bad_rows,
    )


def _noting(labels: list[Label], examples: Iterable[Example]) -> Iterator[Example]:
    """The examples as they are, their labels noted in passing."""
    for example in examples:
        if example.label is not None:
            labels.append(example.label)
        yield example


def _unlabelled(task: Task, split: str) -> str:
    advice = ""
    if task.raw and split in task.raw.files:
        advice = f": use task.source=raw with a labelled {task.raw.files[split][0]} below task.data_dir"
    return f"task {task.name}: split {split} has examples without a label, so it can't be scored{advice}"


def _subset(examples: Sequence[Example], limit: int | None) -> Sequence[Example]:
    """A fixed random subset in the order of the file: files sorted by label stay balanced when shortened.

    Groups stay whole, so that a limit may be passed by the rest of one group.
    """
    if limit is None or limit >= len(examples):
        return examples
    names = list(map(_group_name, examples))
    chosen = _draw(names, limit)
    return select(examples, [i for i, name in enumerate(names) if name in chosen])


def _hold_out(train: Sequence[Example], size: int) -> tuple[Sequence[Example], Sequence[Example]]:
    """Splits off `size` examples, at most a tenth; whole passages, so that none stands on both sides."""
    size = min(size, len(train) // 10)
    if size == 0:
        return train, []
    names = list(map(_passage_name, train))
    chosen = _draw(names, size)
    return (
        select(train, [i for i, name in enumerate(names) if name not in chosen]),
        select(train, [i for i, name in enumerate(names) if name in chosen]),
    )


def _draw(names: Iterable[str], size: int) -> set[str]:
    """Names of groups drawn at random, until they hold `size` examples; `names` has one for each example."""
    sizes = Counter(names)
    order = sorted(sizes)
    random.Random(0).shuffle(order)
    drawn, count = set[str](), 0
    for name in order:
        if count >= size:
            break
        drawn.add(name)
        count += sizes[name]
    return drawn


def _group_name(example: Example) -> str:
    return example.id if example.group is None else str(example.group)


def _passage_name(example: Example) -> str:
    """Questions on one text share it: MultiRC's and ReCoRD's index begins with its number."""
    if isinstance(example.idx, Mapping):
        return str(next(iter(example.idx.values())))
    return _group_name(example)


def load_tasks(config: TaskConfig, scratch: Path | None = None) -> list[TaskData]:
    """Reads all that a run needs, of every task that it is about; `scratch` as for `load_task`."""
    return [load_task(task, config, scratch) for task in tasks_of(config)]


def data_fingerprint(task: Task, config: TaskConfig, splits: Sequence[str] | None = None) -> str:
    """What identifies the examples, whatever folder they lie in: contents of files, or the hub's revision.

    Args:
        splits: those that count; by default the ones that a run fits and evaluates.
    """
    splits = splits or [*(["train"] if task.trainable else []), *task.eval_splits]
    if config.source == "raw" and task.benchmark == OWN:
        return _hash_files(_own_files(task, splits, config.data_dir))
    if config.source == "raw":
        return _hash_files([(file.name, file) for file in raw_files(task, splits, config.data_dir)])
    if config.source == "hub":
        assert task.hub is not None
        if config.hub_path and Path(config.hub_path).is_dir():
            files = parquet_files(Path(config.hub_path), task.hub.config)
            return _hash_files([(file.name, file) for file in files])
        where = config.hub_path or f"{task.hub.path}@{task.hub.revision}"
        return f"hub:{where}/{task.hub.config}"
    return _hash_generated(task.name, tuple(splits))


def _own_files(task: Task, splits: Sequence[str], data_dir: str | None) -> list[tuple[str, Path]]:
    """Of a user's own files the name doesn't count, but which split they are and how they are read does."""
    named = []
    for split in splits:
        try:
            named += [(f"{split}{file.suffix}", file) for file in locate(task, split, data_dir)]
        except DataError:
            continue
    return named


def _hash_files(files: Sequence[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, file in files:
        if file.is_file():  # a missing one gets its error from the reader, with line and advice
            digest.update(f"{name}:{file.stat().st_size}:".encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return f"sha256:{digest.hexdigest()}"


@functools.cache  # a run asks for it several times, and what is generated doesn't change
def _hash_generated(name: str, splits: tuple[str, ...]) -> str:
    task, digest = get_task(name), hashlib.sha256()
    for split in splits:
        for example in read_split(task, split, "generated"):
            digest.update(repr((example.id, sorted(example.fields.items()), example.label)).encode())
    return f"sha256:{digest.hexdigest()}"
