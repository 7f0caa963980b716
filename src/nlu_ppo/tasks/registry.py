"""Names to records."""

from __future__ import annotations

import difflib

from nlu_ppo.errors import ConfigError
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
