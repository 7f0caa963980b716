"""What makes no sense with an encoder's one head, found before anything is loaded. Needs no torch."""

from __future__ import annotations

from nlu_ppo.config import Config
from nlu_ppo.errors import ConfigError
from nlu_ppo.further import further_tasks
from nlu_ppo.tasks import tasks_of


def check_encoder(config: Config) -> None:
    """Whether one head can answer all that the run asks.

    Raises:
        ConfigError: the answers are no fixed labels and no numbers, or those of several tasks.
    """
    first, *others = tasks_of(config.task)
    model = config.model.name
    if others:
        raise ConfigError(
            f"task={config.task.name} is {1 + len(others)} tasks, and model={model} is an encoder with one head: take "
            f"them one by one, task={first.name},{others[0].name},..."
        )
    if first.kind.in_words:
        raise ConfigError(
            f"task={first.name} is answered in words of its text, and model={model} is an encoder whose head knows "
            f"fixed labels only: take a language model"
        )
    for task, _ in further_tasks(config):
        if (task.kind, task.verbalizers) != (first.kind, first.verbalizers):
            raise ConfigError(
                f"eval.also: {task.name} has other answers than {first.name}, and model={model} is an encoder whose "
                f"head knows those of {first.name} only"
            )
