"""What a user's own task (`task.record`) must keep to, checked while a run is composed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

from nlu_ppo.errors import ConfigError

if TYPE_CHECKING:
    from nlu_ppo.config import RecordConfig

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
# By kind, those that make sense of any data; the first one or two are the default.
METRICS = {
    "classify": ("accuracy", "f1", "f1_macro", "matthews"),
    "regress": ("pearson", "spearman"),
    "choose": ("em", "f1"),
}
DEFAULT_METRICS = {"classify": ("accuracy",), "regress": ("pearson", "spearman"), "choose": ("em",)}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # it names folders
_SLOT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_record(name: str, record: RecordConfig, source: str) -> None:
    """Raises ConfigError for the first thing that is wrong; every message names the key."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"task.name={name!r} names folders: use letters, digits, and _ . - within")
    if not record.instruction.strip():
        raise _wrong("instruction", "is empty: say what is to be done")
    slots = template_slots(record.template)
    _check_answers(record, slots)
    _check_metrics(record)
    for slot in record.columns:
        if slot not in slots:
            raise _wrong("columns", f"names the slot {slot!r}, but the template has {_list(slots)}")
    _check_splits(record, source)


def template_slots(template: str) -> tuple[str, ...]:
    """The slots of a template, in order, each once.

    Raises:
        ConfigError: it has none, or anything else in braces.
    """
    try:
        fields = [(name, spec, how) for _, name, spec, how in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise _wrong("template", f"can't be read ({error}): write {{{{ for a brace") from error
    for name, spec, how in fields:
        if not _SLOT.fullmatch(name) or spec or how:
            raise _wrong("template", f"has {{{name}}}, which is no plain name such as {{text}}")
    if not fields:
        raise _wrong("template", "shows nothing of an example: name a column in braces, such as {text}")
    return tuple(dict.fromkeys(name for name, _, _ in fields))


def answer_words(record: RecordConfig) -> tuple[str, ...]:
    """The answer words in the order in which the labels first name them: the order of the label ids."""
    return tuple(dict.fromkeys(str(word) for word in record.labels.values() if word is not None))


def splits_of(record: RecordConfig, source: str) -> dict[str, str]:
    """Split -> file, or the hub's name of the split."""
    return record.files if source == "raw" else record.hub.splits


def eval_splits(record: RecordConfig, source: str) -> tuple[str, ...]:
    """The splits that a run is evaluated on."""
    if record.eval_splits:
        return tuple(record.eval_splits)
    return tuple(split for split in ("validation", "test") if split in splits_of(record, source))[:1]


# -- parts ---------------------------------------------------------------------------------------------------


def _check_answers(record: RecordConfig, slots: tuple[str, ...]) -> None:
    if record.kind == "classify":
        _check_labels(record)
    elif record.labels:
        raise _wrong("labels", f"is for kind=classify, not for kind={record.kind}")
    if record.kind == "regress" and not record.low < record.high:
        raise _wrong("low", f"={record.low:g} must be less than task.record.high={record.high:g}")
    if record.kind == "choose" and record.candidates is None:
        raise _wrong("candidates", "is missing: kind=choose needs the slot that lists the candidates")
    if record.candidates is not None:
        if record.kind != "choose":
            raise _wrong("candidates", f"is for kind=choose, not for kind={record.kind}")
        if record.candidates not in slots:
            raise _wrong("candidates", f"={record.candidates} is no slot: the template has {_list(slots)}")


def _check_labels(record: RecordConfig) -> None:
    for label, word in record.labels.items():
        for value in (label, word):
            if isinstance(value, bool):
                raise _wrong(
                    "labels",
                    f"holds {_yaml(label)}: {_yaml(word)}, where YAML reads an unquoted yes, no, on, off, true "
                    f'or false as a truth value: put it into quotes, as in "no": "No"',
                )
        if not (word is None or (isinstance(word, (str, int, float)) and str(word).strip())):
            raise _wrong("labels", f"gives {label!r} the answer word {word!r}: a word is due, or null")
    words = answer_words(record)
    if len(words) < 2:
        raise _wrong(
            "labels", f"has {len(words)} answer words and needs two at least, such as {{0: No, ...}}"
        )


def _check_metrics(record: RecordConfig) -> None:
    legal = METRICS[record.kind]
    for metric in record.metrics:
        if metric not in legal:
            raise _wrong("metrics", f"holds {metric!r}: kind={record.kind} has {', '.join(legal)}")
    if len(set(record.metrics)) < len(record.metrics):
        raise _wrong("metrics", "names a metric twice")
    if record.kind == "classify" and "f1" in record.metrics and len(answer_words(record)) != 2:
        raise _wrong("metrics", "holds 'f1', which is for two answer words (it is that of the second): "
                     "use f1_macro")  # fmt: skip


def _check_splits(record: RecordConfig, source: str) -> None:
    if source == "generated":
        raise ConfigError("task.source=generated does not fit task.record: use raw (with files) or hub")
    splits = splits_of(record, source)
    if source == "hub" and record.hub.path is None:
        hint = " (for record.files, say source: raw)" if record.files else ""
        raise _wrong("hub.path", f"is missing, and task.source=hub{hint}")
    if not splits:
        key, example = ("files", "data/train.csv") if source == "raw" else ("hub.splits", "train")
        raise _wrong(key, f"is empty: name the splits, such as {{train: {example}, validation: ...}}")
    for split in splits:
        if not _SLOT.fullmatch(split):
            raise _wrong("files" if source == "raw" else "hub.splits", f"has the split {split!r}: use a word")
    for split, file in record.files.items():
        if Path(file).suffix not in SUFFIXES:
            raise _wrong(f"files.{split}", f"={file} must end in {', '.join(SUFFIXES)}")
    evaluated = eval_splits(record, source)
    if not evaluated:
        raise _wrong("eval_splits", f"is empty, and there is neither validation nor test in {_list(splits)}")
    for split in evaluated:
        if split not in splits:
            raise _wrong("eval_splits", f"names {split!r}, but there is {_list(splits)}")


def _wrong(key: str, what: str) -> ConfigError:
    return ConfigError(f"task.record.{key}{'' if what.startswith('=') else ' '}{what}")


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
