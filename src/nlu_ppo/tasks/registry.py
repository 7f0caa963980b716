"""Names to records."""

from __future__ import annotations

import difflib

from nlu_ppo.config import TaskConfig
from nlu_ppo.errors import ConfigError
from nlu_ppo.tasks.averages import GLUE_TASKS, SUPERGLUE_TASKS
from nlu_ppo.tasks.benchmarks import BENCHMARK_TASKS
from nlu_ppo.tasks.record import Task
from nlu_ppo.tasks.squad import SQUAD

try:
    from nlu_ppo.tasks.toy import TOY_TASKS
except ModuleNotFoundError as error:  # a checkout without the generated tasks still serves the benchmarks
    if error.name != "nlu_ppo.tasks.toy":
        raise
    TOY_TASKS = {}

TASKS: dict[str, Task] = {**BENCHMARK_TASKS, SQUAD.name: SQUAD, **TOY_TASKS}

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
    group = TASK_GROUPS.get(config.name)
    if group is None:
        if config.members is not None:
            raise ConfigError(
                f"task.members belongs to a group of tasks ({', '.join(TASK_GROUPS)}), and task={config.name} "
                f"is a single one"
            )
        return (get_task(config.name),)
    members = group if config.members is None else tuple(config.members)
    strangers = [name for name in members if name not in group]
    if strangers or not members or len(set(members)) != len(members):
        wrong = f"{', '.join(strangers)} isn't in it" if strangers else "name at least one, and each once"
        raise ConfigError(f"task.members of task={config.name}: {wrong}; it has {', '.join(group)}")
    return tuple(TASKS[name] for name in members)


def get_task(task: str | Task) -> Task:
    """The record of that name; a record passes through.

    Raises:
        ConfigError: no such task; names the closest match and all there are.
    """
    if isinstance(task, Task):
        return task
    if task in TASKS:
        return TASKS[task]
    wanted = str(task)
    folded = {name.replace("_", ""): name for name in TASKS}
    key = "".join(c for c in wanted.casefold() if c.isalnum())
    close = difflib.get_close_matches(key, folded, n=1)
    hint = f" Did you mean {folded[close[0]]!r}?" if close else ""
    raise ConfigError(f"there is no task {wanted!r}.{hint} The tasks are: {', '.join(sorted(TASKS))}.")
