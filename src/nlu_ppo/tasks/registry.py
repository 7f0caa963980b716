"""Names to records: those of this package, and those that a user described in YAML."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from nlu_ppo.choices import CONF
from nlu_ppo.config import TaskConfig
from nlu_ppo.errors import ConfigError
from nlu_ppo.tasks.averages import GLUE_TASKS, SUPERGLUE_TASKS
from nlu_ppo.tasks.benchmarks import BENCHMARK_TASKS
from nlu_ppo.tasks.own import build_task, own_task_files, read_task_file
from nlu_ppo.tasks.record import Task
from nlu_ppo.tasks.squad import SQUAD
from nlu_ppo.tasks.transfer import TRANSFER_TASKS

try:
    from nlu_ppo.tasks.toy import TOY_TASKS
except ModuleNotFoundError as error:  # a checkout without the generated tasks still serves the benchmarks
    if error.name != "nlu_ppo.tasks.toy":
        raise
    TOY_TASKS = {}

TASKS: dict[str, Task] = {**BENCHMARK_TASKS, SQUAD.name: SQUAD, **TRANSFER_TASKS, **TOY_TASKS}

# Choices of `task=` that stand for several tasks: one model learns all of them, and each is scored.
TASK_GROUPS: dict[str, tuple[str, ...]] = {
    "glue": GLUE_TASKS,
    "superglue": SUPERGLUE_TASKS,
    "toys": tuple(TOY_TASKS),
}


def tasks_of(config: TaskConfig) -> tuple[Task, ...]:
    """The records that a run is about: one, or the members of a group.

    Raises:
        ConfigError: no such task; or `members` of what isn't a group, or names that aren't members.
    """
    group = None if config.record is not None else TASK_GROUPS.get(config.name)
    if group is None:
        if config.members is not None:
            raise ConfigError(
                f"task.members belongs to a group of tasks ({', '.join(TASK_GROUPS)}), and task={config.name} "
                f"is a single one"
            )
        return (task_of(config),)
    members = group if config.members is None else tuple(config.members)
    strangers = [name for name in members if name not in group]
    if strangers or not members or len(set(members)) != len(members):
        wrong = f"{', '.join(strangers)} isn't in it" if strangers else "name at least one, and each once"
        raise ConfigError(f"task.members of task={config.name}: {wrong}; it has {', '.join(group)}")
    return tuple(TASKS[name] for name in members)


def get_task(task: str | Task) -> Task:
    """The record of that name; a record passes through.

    A name that the package doesn't have may be that of a YAML file in conf/task with a `record:`, or its path.

    Raises:
        ConfigError: no such task; names the closest match and all there are.
    """
    if isinstance(task, Task):
        return task
    if task in TASK_GROUPS:
        _refuse(task)
    return TASKS[task] if task in TASKS else task_of(task_config(task))


def task_of(config: TaskConfig) -> Task:
    """The one record that a configuration names, or describes.

    Raises:
        ConfigError: no such task, or a description under the name of one that there is.
    """
    if config.record is None:
        return TASKS[config.name] if config.name in TASKS else _refuse(config.name)
    if config.name in TASKS or config.name in TASK_GROUPS:
        raise ConfigError(f"task.name={config.name} is the name of a task of this package: choose another")
    return build_task(config.name, config.record, config.source)


def task_config(word: str) -> TaskConfig:
    """The configuration of a task by its name (as `task=NAME` on the command line), or by a file's path.

    Raises:
        ConfigError: no such task or file, or a file that is no legal task.
    """
    if str(word).endswith((".yaml", ".yml")):
        return read_task_file(Path(word).expanduser())
    choice = CONF / "task" / f"{word}.yaml"
    if word in TASKS or word in TASK_GROUPS or word in own_task_files():
        return read_task_file(choice) if choice.is_file() else replace(TaskConfig(), name=word)
    _refuse(word)


def _refuse(word: str) -> NoReturn:
    wanted = str(word)
    names = [*TASKS, *own_task_files()]
    folded = {name.replace("_", ""): name for name in names}
    key = "".join(c for c in wanted.casefold() if c.isalnum())
    close = difflib.get_close_matches(key, folded, n=1)
    hint = f" Did you mean {folded[close[0]]!r}?" if close else ""
    raise ConfigError(f"there is no task {wanted!r}.{hint} The tasks are: {', '.join(sorted(names))}.")
