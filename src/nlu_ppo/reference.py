"""`python -m nlu_ppo.reference`: writes docs/configuration.md from the schemas and conf/, tasks.md and models.md."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nlu_ppo.choices import CONF, STUDIES, Choice, default_choices, read_groups
from nlu_ppo.config import (
    METHOD_SCHEMAS,
    MISSING,
    Config,
    MethodConfig,
    RecordConfig,
    RewardedConfig,
    TaskConfig,
    TrainingConfig,
    walk,
)
from nlu_ppo.markdown import prose, table
from nlu_ppo.models.page import page as models_page
from nlu_ppo.tasks import TASKS
from nlu_ppo.tasks.page import BENCHMARKS
from nlu_ppo.tasks.page import page as tasks_page

DOCS = CONF.parent / "docs"
PAGE = DOCS / "configuration.md"
TASKS_PAGE = DOCS / "tasks.md"
MODELS_PAGE = DOCS / "models.md"

FAMILIES = {TrainingConfig: "train", RewardedConfig: "learn from a reward"}  # methods with keys in common
INTRODUCTION = """\
# Configuration

<!-- Written by `make docs` from src/nlu_ppo/config.py and conf/: edit those, not this page. -->

A run is composed from groups and keys. `group=choice` takes a whole YAML file from `conf/`, and `key=value`
changes one value of it:

```
python train.py task=rte method=sft method.learning_rate=1e-4 seed=1
```

Names and types are checked while the run is composed, ranges and choices right after, before any model or
data file is opened. `python train.py ... --cfg job` prints what a command line comes to.

Column **key**: whether the value is part of the run's key, which names its folder. A value that can't change
the result isn't, and neither is one that the run's method doesn't use. Files count by their contents, not by
the folder they lie in ("contents"). Of a choice, only what it sets counts, not its name.

Paper A is arXiv [2410.11020](https://arxiv.org/abs/2410.11020), whose settings are the defaults of PPO.
"""


def page() -> str:
    """The whole page."""
    groups, chosen = read_groups(), default_choices()
    parts = [INTRODUCTION, *_run_section()]
    for item in dataclasses.fields(Config):
        if item.name in groups:
            parts += _group_section(item.name, groups.pop(item.name), chosen[item.name])
    studies = groups.pop(STUDIES, [])
    for name, choices in groups.items():
        parts += [f"## {name}\n", _choices_table(choices, chosen.get(name))]
    if studies:
        parts += [
            "## Studies\n",
            "`python train.py -m +sweeps=NAME` runs every cell of `sweeps/NAME.yaml`.\n",
        ]
        parts += [f"### {study.name}\n\n{study.about}\n\n{_grid(study)}" for study in studies]
    return "\n".join(parts).rstrip() + "\n"


# -- sections ------------------------------------------------------------------------------------------------


def _run_section() -> Iterator[str]:
    leaves = [(key, item, value) for key, item, value in walk(Config()) if "." not in key]
    yield "## The run\n"
    yield _keys_table(leaves)


def _group_section(name: str, choices: list[Choice], default: str) -> Iterator[str]:
    schema = type(getattr(Config(), name))
    yield f"## {name}\n"
    if schema is MethodConfig:
        yield from _method_keys()
    else:
        yield f"{_first_line(schema)}\n"
        yield _keys_table(walk(schema(), f"{name}."))
        if schema is TaskConfig:
            yield from _record_keys()
    yield _choices_table(choices, default)


def _method_keys() -> Iterator[str]:
    yield "How the model comes to do the task. The keys depend on the method; all take `method.max_steps`.\n"
    for family, what in FAMILIES.items():
        names = [name for name, schema in METHOD_SCHEMAS.items() if issubclass(schema, family)]
        yield f"### Keys of the methods that {what}: {', '.join(names)}\n"
        yield _keys_table(_own_keys(family))
    for name, schema in METHOD_SCHEMAS.items():
        yield f"### Keys of {name}\n\n{_first_line(schema)}\n"
        if leaves := _own_keys(schema):
            yield _keys_table(leaves)


def _own_keys(schema: type[MethodConfig]) -> list[tuple[str, dataclasses.Field[Any], Any]]:
    """Its keys without those of a table above: of the families that it belongs to, and what all methods have."""
    above: list[type[MethodConfig]] = [f for f in FAMILIES if issubclass(schema, f) and schema is not f]
    if schema not in FAMILIES:
        above.append(MethodConfig)
    inherited = {item.name for family in above for item in dataclasses.fields(family)}
    return [leaf for leaf in walk(schema(), "method.") if leaf[1].name not in inherited]


def _record_keys() -> Iterator[str]:
    yield f"### Keys of task.record\n\n{_first_line(RecordConfig)}\n"
    yield _keys_table(walk(RecordConfig(), "task.record."))


def _first_line(schema: type) -> str:
    return (inspect.getdoc(schema) or "").splitlines()[0]


# -- tables --------------------------------------------------------------------------------------------------


def _keys_table(leaves: Iterable[tuple[str, dataclasses.Field[Any], Any]]) -> str:
    rows = [
        (
            f"`{key}`",
            str(item.type),
            "set by the choice" if value == MISSING else f"`{_yaml(value)}`",
            _legal(item.metadata),
            prose(item.metadata["help"]),
            _counts(item.metadata),
        )
        for key, item, value in leaves
    ]
    return table(("Key", "Type", "Default", "Legal", "Meaning", "key"), rows)


def _choices_table(choices: list[Choice], default: str | None) -> str:
    rows = [
        (
            f"`{choice.name}`" + (" (default)" if choice.name == default else ""),
            prose(" ".join(filter(None, (_about_task(choice), choice.about)))),
            ", ".join(f"`{key}={_yaml(value)}`" for key, value in _flat(choice.values)),
        )
        for choice in choices
    ]
    return table(("Choice", "What it is", "What it sets"), rows)


def _about_task(choice: Choice) -> str:
    """A task's record says what it is; its YAML file need not repeat that, but may add to it."""
    if choice.group != "task" or choice.name not in TASKS:
        return ""
    task = TASKS[choice.name]
    trained = "" if task.trainable else " No training split."
    benchmark = BENCHMARKS.get(task.benchmark, task.benchmark)
    return f"{benchmark}: {', '.join(task.metrics)}. {task.answer_format}{trained}"


def _grid(study: Choice) -> str:
    """What a study varies, and what it fixes: as one table, or cell by cell where it lists them."""
    sweeper = study.values.get("hydra", {}).get("sweeper", {})
    rows = [(f"`{key}`", _values(values)) for key, values in (sweeper.get("params") or {}).items()]
    fixed = {key: value for key, value in study.values.items() if key != "hydra"}
    rows += [(f"`{key}`", f"`{_yaml(value)}`") for key, value in _flat(fixed)]
    listed = [
        "- " + "; ".join(f"`{key}` {_values(value)}" for key, value in cell.items())
        for cell in sweeper.get("cells") or []
    ]
    grid = table(("Key", "Values"), rows)
    return "\n".join(["Cells, each with all that the table says:", "", *listed, "", grid]) if listed else grid


def _values(values: Any) -> str:
    return f"`{_yaml(values)}`" if isinstance(values, list) else _code(str(values).split(","))


def _code(words: Iterable[str]) -> str:
    return ", ".join(f"`{word.strip()}`" for word in words)


# -- cells ---------------------------------------------------------------------------------------------------


def _legal(metadata: Mapping[str, Any]) -> str:
    low, high, choices = metadata["low"], metadata["high"], metadata["choices"]
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    if low is not None:
        return f"at least {low:g}"
    return f"at most {high:g}" if high is not None else ""


def _counts(metadata: Mapping[str, Any]) -> str:
    if "contents count" in metadata["help"]:
        return "contents"
    return "yes" if metadata["key"] or metadata["resolved"] else "no"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values, without the name, which is the choice's own, and without Hydra's `_target_`."""
    for key, value in values.items():
        if key == "record":  # as long as a page; the file itself is the place to read it
            yield prefix + key, "..."
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif prefix or not (key == "name" or key.startswith("_")):
            yield prefix + key, value


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_yaml(k)}: {_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(_yaml, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value).replace(MISSING, "...")


def main(folder: Path = DOCS) -> None:
    """Writes the generated pages."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {PAGE: page(), TASKS_PAGE: tasks_page(), MODELS_PAGE: models_page()}
    for name, text in ((file.name, text) for file, text in pages.items()):
        (folder / name).write_text(text, encoding="utf-8")
        print(f"wrote {folder / name}")


if __name__ == "__main__":
    main()
