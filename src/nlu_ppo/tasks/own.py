"""A user's own task: from `task.record` in a YAML file to a record like those of the benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from yaml import YAMLError

from nlu_ppo.choices import CONF
from nlu_ppo.config import RecordConfig, TaskConfig, check_ranges
from nlu_ppo.errors import MALFORMED, ConfigError, first_words
from nlu_ppo.record_checks import DEFAULT_METRICS, answer_words, eval_splits, splits_of, template_slots
from nlu_ppo.tasks.record import CLOSE, OWN, HubSource, Kind, RawSource, Row, RowError, Task

ROOT = CONF.parent  # where `record.files` lie unless task.data_dir says otherwise
_INHERITED = ("/schema/task@_here_", "_self_")


def read_task_file(path: Path) -> TaskConfig:
    """The task that a YAML file describes, as `task=NAME` would give it.

    Raises:
        ConfigError: not readable, or not a legal task; names the file.
    """
    # here, so that whoever uses records only (the engine, a machine with nothing but torch) needs no OmegaConf
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from nlu_ppo.composition import check_task

    try:
        tree: Any = OmegaConf.load(path)
        others = [item for item in tree.pop("defaults", []) if item not in _INHERITED]
        if others:
            raise ConfigError(
                f"its defaults list names {others}: only {', '.join(_INHERITED)} can be read here"
            )
        config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TaskConfig), tree))
        check_ranges(config, "task.")
        check_task(config)
    except OSError as error:
        raise ConfigError(f"{path}: there is no such task file ({error.strerror})") from error
    except (ConfigError, OmegaConfBaseException, YAMLError, *MALFORMED) as error:
        raise ConfigError(f"{path}: {first_words(error)}") from error
    return config


def own_task_files() -> dict[str, Path]:
    """The YAML files in conf/task that describe a task of their own, by name."""
    files = sorted((CONF / "task").glob("*.yaml"))
    return {file.stem: file for file in files if b"\nrecord:" in file.read_bytes()}


def build_task(name: str, record: RecordConfig, source: str) -> Task:
    """The record of a checked `task.record`.

    Raises:
        ConfigError: two answer words that a parsed answer couldn't be told apart by.
    """
    kind = Kind(record.kind)
    slots = template_slots(record.template)
    words = answer_words(record)
    _check_words(words)
    written = {str(label): word for label, word in record.labels.items()}
    labels = {label: words.index(str(word)) for label, word in written.items() if word is not None}
    names: dict[str, Any] = {
        "labels": labels,
        "columns": {slot: (column,) for slot, column in record.columns.items()},
        "label_columns": (record.label_column,),
        "left_out": tuple(label for label, word in written.items() if word is None),
        "numbered": True,
    }
    hub = record.hub
    return Task(
        name=name,
        benchmark=OWN,
        kind=kind,
        instruction=record.instruction.strip(),
        template=record.template.strip(),
        labels=tuple(next(label for label, i in labels.items() if i == n) for n in range(len(words))),
        verbalizers=words,
        low=record.low,
        high=record.high,
        metrics=tuple(record.metrics) or DEFAULT_METRICS[record.kind],
        columns=slots,
        fields_of=_fields_of(slots, record.candidates),
        candidates_of=_candidates_of(record.candidates) if record.candidates else None,
        label_of=_label_of(record.candidates) if record.candidates else None,
        eval_splits=eval_splits(record, source),
        trainable="train" in splits_of(record, source),
        hub=HubSource(hub.path, hub.config or "", hub.revision, hub.splits, **names) if hub.path else None,
        raw=RawSource({split: (file,) for split, file in record.files.items()}, root=ROOT, **names)
        if record.files
        else None,
    )


def _check_words(words: tuple[str, ...]) -> None:
    from nlu_ppo.tasks.answers import normalize_answer  # it needs the registry, which needs this module

    seen: dict[str, str] = {}
    for word in words:
        plain = normalize_answer(word)
        if not plain or CLOSE in word:
            raise ConfigError(f"task.record.labels has the answer word {word!r}, which no answer can match")
        if plain in seen:
            raise ConfigError(
                f"task.record.labels has the answer words {seen[plain]!r} and {word!r}: answers are compared "
                f"without case and punctuation, so these are one"
            )
        seen[plain] = word


# -- rows ----------------------------------------------------------------------------------------------------


def _fields_of(slots: tuple[str, ...], candidates: str | None) -> Callable[[Row], dict[str, str]]:
    def fields_of(row: Row) -> dict[str, str]:
        texts = {slot: _text(slot, row[slot]) for slot in slots if slot != candidates}
        if texts and not any(texts.values()):
            raise RowError(f"nothing to show: {' and '.join(texts)} is empty")
        if candidates:
            texts[candidates] = "\n".join(f"- {c}" for c in _candidates(row[candidates]))
        return texts

    return fields_of


def _candidates_of(slot: str) -> Callable[[Row], tuple[str, ...]]:
    return lambda row: _candidates(row[slot])


def _label_of(slot: str) -> Callable[[Row], tuple[str, ...] | None]:
    def label_of(row: Row) -> tuple[str, ...] | None:
        if row.get("label") is None:
            return None
        answer = _squeezed(_text("label", row["label"]))
        candidates = _candidates(row[slot])
        if answer not in candidates:
            raise RowError(f"the answer {answer!r} is none of the candidates: {', '.join(candidates)}")
        return (answer,)

    return label_of


def _candidates(value: Any) -> tuple[str, ...]:
    """A list, or a text with the candidates between bars, as tables have to write them."""
    parts = value.split("|") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)):
        raise RowError(f"the candidates are {value!r}: a list is due, or a text such as 'red | blue'")
    candidates = tuple(dict.fromkeys(_squeezed(_text("candidate", part)) for part in parts))
    if len(candidates) < 2 or "" in candidates:
        raise RowError(f"the candidates are {value!r}: two different ones at least are due")
    return candidates


def _text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise RowError(f"{name!r} is {value!r}, neither text nor number")


def _squeezed(text: str) -> str:
    return " ".join(text.split())
