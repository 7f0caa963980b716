"""From an error to what the user did: one message that names the wrong thing and says what there is."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationToMissingValueError,
    OmegaConfBaseException,
    ValidationError,
)

from nlu_ppo.config import METHOD_SCHEMAS, Config, RecordConfig, walk
from nlu_ppo.errors import UserError
from nlu_ppo.storage import as_disk_error

PACKAGE = Path(__file__).parent
WANTED = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list[str]": "a list such as [a,b]",
    "dict[str, str]": "a mapping such as {a: b}",
    "dict[str, float]": "a mapping such as {a: 1}",
    "ModelConfig": "a mapping of the keys of model",
    "SFTConfig": "a mapping of the keys of method=sft",
    "RewardModelConfig": "a mapping of the keys of method=reward_model",
    "dict[Any, Any]": "a mapping such as {a: b}",
    "RecordConfig": "a mapping of the keys of task.record",
}


def explain(error: BaseException) -> str | None:
    """The user's mistake behind an error in one message, or `None` if the program is at fault."""
    disk = as_disk_error(error)
    if disk is not None:
        return str(disk)
    if not isinstance(error, (UserError, HydraException, OmegaConfBaseException)):
        return None
    links = list(_chain(error))
    for link in links:
        if isinstance(link, UserError):
            return str(link)
        if not isinstance(link, (HydraException, OmegaConfBaseException)) and _went_through_us(link):
            return None
    for link in links:
        if isinstance(link, MissingConfigException) and link.missing_cfg_file:
            return _unknown_choice(link)
        if isinstance(link, OverrideParseException):
            return _unreadable(link)
        if isinstance(link, (ConfigKeyError, ConfigAttributeError)) and link.full_key:
            return _unknown_key(link)
        if isinstance(link, ValidationError) and link.full_key:
            return _wrong_type(link)
        if isinstance(link, InterpolationToMissingValueError):
            key = str(link).splitlines()[0].rpartition(":")[2].strip()
            return f"no value given for {key}: say {key}=..."
    return _own_words(links[0])


def told(error: BaseException) -> str:
    """An error as it is listed among others: the user's mistake, or else its type and its words."""
    return explain(error) or f"{type(error).__name__}: {error}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__  # OmegaConf hides causes that are wanted here


def _went_through_us(error: BaseException) -> bool:
    """Hydra and OmegaConf wrap errors of all kinds; those of a resolver are ours, not the user's."""
    step = error.__traceback__
    while step is not None:
        if Path(step.tb_frame.f_code.co_filename).is_relative_to(PACKAGE):
            return True
        step = step.tb_next
    return False


def _own_words(error: BaseException) -> str:
    """Hydra's message, without its advice on Hydra's internals."""
    text = str(error)
    if text.startswith("Ambiguous value"):
        return f"{text.split(chr(39))[1]} holds several values: add -m to run them all, or write key=[a,b]"
    if text.startswith("Could not override") and "No match in the defaults list" in text:
        return f"{text.splitlines()[0]} To add a group write +group=choice, as in -m +sweeps=demo"
    return text


def _unreadable(error: OverrideParseException) -> str:
    said = error.message.partition("\nSee https://hydra.cc")[0]
    if "=" not in error.override:
        return f"can't read {error.override!r}: write group=choice or key=value (see train.py --help)"
    return f"can't read {error.override!r} ({said}): put values with special characters into quotes, twice"


# -- what there is -------------------------------------------------------------------------------------------


def _unknown_choice(error: MissingConfigException) -> str:
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    options = [str(option) for option in error.options or ()]
    if not options:
        return f"there is no group {group}, so {group}={name} means nothing (see train.py --help)"
    return (
        f"there is no {group}={name}.{_did_you_mean(name, options, f'{group}=')} "
        f"The choices are: {', '.join(sorted(options))}."
    )


def _unknown_key(error: OmegaConfBaseException) -> str:
    """`method.max_stpes` is unknown: what is close to it, where it does exist, and what there is."""
    key = str(error.full_key)
    parent, _, wrong = key.rpartition(".")
    prefix = f"{parent}." if parent else ""
    known = _names(error)
    hint = _did_you_mean(wrong, known, prefix) or _elsewhere(wrong, parent)
    there = f" There is: {', '.join(sorted(known))}." if known else ""
    return f"unknown key {key}.{hint}{there}"


def _names(error: OmegaConfBaseException) -> list[str]:
    schema: Any = error.object_type
    if dataclasses.is_dataclass(schema):
        return [item.name for item in dataclasses.fields(schema)]
    return [str(name) for name in error.parent_node or ()]


def _elsewhere(wrong: str, parent: str) -> str:
    """Where a key of that name does exist: in another group, or in another method."""
    owners = [name for name, schema in METHOD_SCHEMAS.items() if _has(schema, wrong)]
    if owners and parent == "method":
        return f" {wrong} belongs to {' and '.join(f'method={name}' for name in owners)}."
    everywhere = {key: None for key, _, _ in all_fields()}
    same = [key for key in everywhere if key.rpartition(".")[2] == wrong]
    if not same:
        leaves = {key.rpartition(".")[2]: key for key in everywhere}
        same = [leaves[close] for close in difflib.get_close_matches(wrong, leaves, n=1)]
    return f" Did you mean {' or '.join(same)}?" if same else ""


def _has(schema: type, name: str) -> bool:
    return any(item.name == name for item in dataclasses.fields(schema))


def _did_you_mean(wrong: str, known: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(wrong, list(known), n=1)
    return f" Did you mean {prefix}{close[0]}?" if close else ""


def all_fields() -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """(Dotted key, field, default) of every leaf of the schema, every method's and a task record's among them."""
    yield from walk(Config())
    yield from walk(RecordConfig(), "task.record.")
    for schema in METHOD_SCHEMAS.values():
        yield from walk(schema(), "method.")


def _wrong_type(error: OmegaConfBaseException) -> str:
    key = str(error.full_key)
    field = next((item for name, item, _ in all_fields() if name == key), None)
    if field is None:
        return f"{key}: {str(error).splitlines()[0]}"
    value = "null" if error.value is None else error.value
    return f"{key}={value} is of the wrong type: it takes {wanted(field)} ({field.metadata['help']})"


def wanted(field: dataclasses.Field[Any]) -> str:
    """What values a schema field takes, in words."""
    # the annotations of config.py are not evaluated, so they are the text that stands there
    kind, _, rest = str(field.type).partition(" | ")
    return WANTED[kind] + (" or null" if rest else "")
