"""Splits of a task as examples, from the hub, from raw files, or generated.

All sources first become rows in the hub's schema (its columns and label ids), then examples, by one function:
for the same underlying data all sources therefore give the same ids, fields and labels, in the same order.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nlu_ppo.errors import ConfigError, DataError
from nlu_ppo.tasks.fields import record_answers
from nlu_ppo.tasks.rawfiles import Located, locate, raw_rows
from nlu_ppo.tasks.record import CLOSE, OWN, Example, Kind, Label, Row, RowError, Source, Task
from nlu_ppo.tasks.registry import get_task

SOURCES = ("hub", "raw", "generated")

logger = logging.getLogger(__name__)

# Turns what a source writes for a label into the task's label; `None` = unlabelled.
_ToLabel = Callable[[Task, Any], "Label | None"]


class _LeftOutError(Exception):
    """A row that the benchmark itself leaves out: no agreed label, or known to be broken."""


def read_split(
    task: str | Task,
    split: str,
    source: str | None = None,
    data_dir: str | Path | None = None,
    on_bad_row: str = "error",
    *,
    hub_path: str | Path | None = None,
    bad_rows: list[str] | None = None,
) -> Iterator[Example]:
    """The examples of a split, in the order of the source, one at a time.

    Missing files, unknown splits and the like are reported at once, bad rows when they are reached.

    Args:
        split: "train", "validation", "test"; MNLI also has "validation_mismatched" and "test_mismatched".
        source: "hub", "raw" (files below `data_dir`, as the benchmarks release them) or "generated" (toys).
            By default the hub, or what there is where a task isn't on the hub.
        on_bad_row: "error" stops at the first row that can't be read; "skip" leaves such rows out and counts
            them.
        hub_path: takes the place of the hub's repository: another id, or a folder with its parquet files.
        bad_rows: a list that takes one message per skipped row, with file and line, for the caller to
            report; without it their number is logged.

    Raises:
        ConfigError: unknown task, source or `on_bad_row`.
        DataError: names file and line, and what to do: missing file, wrong number of columns, unknown label,
            invalid JSON, missing text, no rows at all.
    """
    record = get_task(task)
    source = source or default_source(record)
    if on_bad_row not in ("error", "skip"):
        raise ConfigError(f"on_bad_row={on_bad_row!r}: choose error or skip")
    if source == "generated":
        return _generated(record, split)
    to_label: _ToLabel
    if source == "raw":
        if data_dir is None and not (record.raw and record.raw.root):
            raise DataError(
                f"task {record.name}: task.source=raw needs task.data_dir=DIR, a folder that holds the "
                f"benchmark's own files, such as {_first_file(record)}"
            )
        rows, to_label = raw_rows(record, split, data_dir), _raw_label
        place = f"{locate(record, split, data_dir)[0]}"
    elif source == "hub":
        # Imported here: raw and generated splits don't need the library, which takes seconds to load.
        from nlu_ppo.tasks.hub import hub_rows

        rows, names, place = hub_rows(record, split, hub_path)
        to_label = _hub_label(names)
    else:
        raise ConfigError(f"task.source={source!r}: choose one of {', '.join(SOURCES)}")
    return _examples(record, split, rows, to_label, place, bad_rows, skip=on_bad_row == "skip")


def default_source(task: str | Task) -> str:
    """Where a task's data come from unless the user says otherwise: "hub", "raw" or "generated"."""
    return sources(get_task(task))[0]


def sources(task: Task) -> list[str]:
    """The sources that a task has, the usual one first."""
    there = [name for name, source in (("hub", task.hub), ("raw", task.raw)) if source is not None]
    return there or ["generated"]


def raw_files(task: str | Task, splits: Iterable[str], data_dir: str | Path | None) -> list[Path]:
    """The existing files that reading these splits from `data_dir` opens, each once, in order."""
    record = get_task(task)
    files: dict[Path, None] = {}
    for split in splits:
        try:
            files.update(dict.fromkeys(locate(record, split, data_dir)))
        except DataError:
            continue
    return list(files)


def _first_file(task: Task) -> str:
    return next(iter(task.raw.files.values()))[0] if task.raw else "(none: this task has no raw files)"


def _generated(task: Task, split: str) -> Iterator[Example]:
    try:
        from nlu_ppo.tasks import toy
    except ImportError as error:
        raise DataError(f"task {task.name}: this installation has no generated tasks ({error})") from error
    if task.name not in toy.TOY_TASKS:
        raise DataError(
            f"task {task.name} isn't generated: task.source=generated fits {', '.join(toy.TOY_TASKS)}; "
            f"use task.source=hub or task.source=raw"
        )
    return iter(toy.generate(task.name, split))


# -- rows to examples ---------------------------------------------------------------------------------------


def _examples(
    task: Task,
    split: str,
    rows: Iterator[Located],
    to_label: _ToLabel,
    place: str,
    bad_rows: list[str] | None,
    *,
    skip: bool,
) -> Iterator[Example]:
    seen: dict[str, int] = {}
    bad: list[str] = [] if bad_rows is None else bad_rows
    left_out = good = 0
    for where, row in rows:
        try:
            if isinstance(row, RowError):
                raise row
            if row is None:
                raise _LeftOutError
            found = _examples_of(task, split, row, to_label)
        except _LeftOutError:
            left_out += 1
            continue
        except RowError as error:
            message = f"{where}: {error}"
            if not skip:
                raise DataError(
                    f"task {task.name}: {message}. Mend the row, or leave such rows out "
                    f"with task.on_bad_row=skip"
                ) from error
            bad.append(message)
            continue
        good += 1
        for example in found:
            repeats = seen[example.id] = seen.get(example.id, 0) + 1
            if repeats > 1:  # some copies of WiC hold an index twice
                example = replace(example, id=f"{example.id}.{repeats}")
            yield example
    if bad and bad_rows is None:
        logger.warning(
            "task %s, split %s: skipped %d bad rows; first: %s", task.name, split, len(bad), bad[0]
        )
    if left_out:
        logger.info("task %s, split %s: %d rows without usable label left out", task.name, split, left_out)
    if not good:
        raise DataError(
            f"task {task.name}: split {split!r} is empty: {place} has no usable rows"
            + (f" ({len(bad)} bad ones were skipped; first: {bad[0]})" if bad else "")
        )


def _examples_of(task: Task, split: str, row: Row, to_label: _ToLabel) -> list[Example]:
    try:
        items = (row,) if task.items_of is None else list(task.items_of(row))
        return [_example(task, split, item, to_label) for item in items]
    except RowError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        missing = f"no {error.args[0]!r}" if isinstance(error, KeyError) else f"not the right shape: {error}"
        raise RowError(missing) from error


def _example(task: Task, split: str, row: Row, to_label: _ToLabel) -> Example:
    for column in task.columns:
        if row.get(column) is None:
            raise RowError(f"no {column!r} (the row has: {', '.join(map(str, row))})")
    if row.get(task.index_column) is None:
        raise RowError(f"no {task.index_column!r}")
    idx = _index(row[task.index_column]) if task.index_column == "idx" else str(row[task.index_column])
    label = task.label_of(row) if task.label_of else to_label(task, row.get("label"))
    if label is None and not split.startswith("test"):
        if task.hub and str(row.get("label")) in task.hub.left_out:
            raise _LeftOutError
        raise RowError(f"no label, but split {split!r} is a labelled one")
    try:
        fields = task.fields_of(row) if task.fields_of else {c: row[c].strip() for c in task.columns}
        candidates = task.candidates_of(row) if task.candidates_of else ()
        accepted = (record_answers(row) or ()) if task.judged_as else ()
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise (
            error if isinstance(error, RowError) else RowError(f"a column of the wrong type ({error})")
        ) from error
    _check_texts(fields, label, candidates)
    numbers = idx.values() if isinstance(idx, dict) else (idx,)
    return Example(
        id="-".join([split, *map(str, numbers)]),
        fields=fields,
        label=label,
        group=_group(task, idx, fields),
        candidates=candidates,
        idx=idx,
        task=task.name,
        accepted=accepted,
    )


def _check_texts(fields: Mapping[str, Any], label: Label | None, candidates: tuple[str, ...]) -> None:
    """Raises RowError for what is no text, and for answers that nobody can give."""
    answers = (*(label if isinstance(label, tuple) else ()), *candidates)
    for name, text in (*fields.items(), *(("an answer", answer) for answer in answers)):
        if not isinstance(text, str):
            raise RowError(f"{name} is of type {type(text).__name__}, and a text is due")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowError(f"{name} holds half a character (a lone surrogate) at {error.start}") from None
    for answer in answers:
        if CLOSE in answer:
            raise RowError(f"the answer {answer[:80]!r} holds {CLOSE}, which ends every answer")


def _group(task: Task, idx: Any, fields: Mapping[str, str]) -> Any:
    if task.group_field:  # a digest, since every prediction of the run folder names its group
        return hashlib.sha256(fields[task.group_field].encode()).hexdigest()[:12]
    return task.group_of(idx) if task.group_of else None


def _index(value: Any) -> int | dict[str, int]:
    """AX-b writes its index as a text; MultiRC and ReCoRD have one with parts."""
    try:
        if isinstance(value, Mapping):
            return {str(name): int(part) for name, part in value.items()}
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise RowError(f"idx {value!r} is not a whole number") from None


# -- labels -------------------------------------------------------------------------------------------------


def _raw_label(task: Task, value: Any) -> Label | None:
    assert task.raw is not None  # rows came out of its files
    if value is None:
        return None
    return _similarity(task, value) if task.kind is Kind.REGRESS else _class(task, task.raw, value)


def _class(task: Task, source: Source, value: Any) -> int:
    """The id of a label as written; in other case only where the record has it in lower case."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, float) and value.is_integer():  # whole numbers beside missing ones
        text = str(int(value))
    else:
        text = str(value).strip()
    for written in (text, text.lower()):
        if written in source.left_out:
            raise _LeftOutError
        if written in source.labels:
            return source.labels[written]
    legal = ", ".join([*source.labels, *source.left_out])
    advice = ". If the label is right, give it a word in task.record.labels" * (task.benchmark == OWN)
    raise RowError(f"unknown label {value!r}; legal are {legal}{advice}")


def _hub_label(names: tuple[str, ...]) -> _ToLabel:
    """For a label column with these class names (none: plain numbers, which are ids)."""

    def to_label(task: Task, value: Any) -> Label | None:
        # -1 is how `datasets` marks a missing label, unless it is a label
        if value is None or (value == -1 and not _minus_one_is_a_label(task)):
            return None
        if task.kind is Kind.REGRESS:
            return _similarity(task, value)
        if task.hub and task.hub.labels:
            known_id = names and isinstance(value, int) and 0 <= value < len(names)
            return _class(task, task.hub, names[value] if known_id else value)
        legal = names or task.labels
        name = value if isinstance(value, str) else legal[value] if 0 <= value < len(legal) else None
        if name not in task.labels:
            raise RowError(f"unknown label {value!r}; legal are {', '.join(task.labels)}")
        return task.labels.index(name)

    return to_label


def _minus_one_is_a_label(task: Task) -> bool:
    if task.kind is Kind.REGRESS:
        return task.low <= -1
    hub = task.hub
    return hub is not None and bool(hub.labels) and "-1" in (*hub.labels, *hub.left_out)


def _similarity(task: Task, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise RowError(f"the score {value!r} is not a number") from None
    if not (math.isfinite(number) and task.low <= number <= task.high):
        raise RowError(f"the score {value!r} is not between {task.low} and {task.high}")
    return round(number, 5)  # the hub keeps 3.8 in single precision, as 3.7999999523
