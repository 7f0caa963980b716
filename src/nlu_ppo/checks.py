"""What makes no sense together, found before anything is loaded. Needs no torch."""

from __future__ import annotations

from nlu_ppo import ranks
from nlu_ppo.config import (
    Config,
    EvalConfig,
    PPOConfig,
    RewardedConfig,
    RewardModelConfig,
    SFTConfig,
    TrainingConfig,
    ZeroShotConfig,
)
from nlu_ppo.errors import ConfigError
from nlu_ppo.further import further_tasks
from nlu_ppo.preference.pairs import check_pairs
from nlu_ppo.rationales.writing import check_writer
from nlu_ppo.rewards import get_reward, needed_models
from nlu_ppo.tasks import Task, tasks_of
from nlu_ppo.tasks.published import check_published
from nlu_ppo.tasks.rationales import MODEL, check_rationales
from nlu_ppo.tasks.splits import check_source
from nlu_ppo.tasks.submission_sets import check_submission


def check_run(config: Config) -> None:
    """Whether task, source, model, method and reward of a run fit together.

    Raises:
        UserError: they don't; the message says why, and what to do.
    """
    for task in tasks_of(config.task):
        check_source(task, config.task)
        if config.eval.submission:
            check_submission(task)
        if not isinstance(config.method, ZeroShotConfig) and not task.trainable:
            raise ConfigError(_no_training_split(task))
        if getattr(config.method, "order", None) == "confidence" and not task.lists_answers:
            raise ConfigError(
                f"method.order=confidence compares the likelihoods of legal answers, and those of task={task.name} "
                f"can't be listed: take method.order=short_first"
            )
        if isinstance(config.method, RewardedConfig):
            get_reward(config.reward, task)
            if config.reward.model is not None and not needed_models(config.reward):
                raise ConfigError(
                    f"reward.model: reward={config.reward.name} asks no reward model that could use it"
                )
            for name in needed_models(config.reward):
                check_pairs(getattr(config.reward, name), task, config.task.rationale, f"reward.{name}")
        if isinstance(config.method, RewardModelConfig):
            check_pairs(config.method, task, config.task.rationale)
            if config.method.init == "none":  # otherwise they are for the SFT run
                _check_no_answers(config.eval)
        if config.task.rationale is not None:
            _check_rationale(config, task)
        if isinstance(config.method, SFTConfig):
            check_answer_words(config.method, task)
    if config.model.kind == "encoder" and not isinstance(config.method, RewardModelConfig):
        check_encoder(config)
    if config.model.decoder == "vllm":
        check_vllm(config)
    if config.model.shard and config.model.kind != "decoder":
        raise ConfigError(f"model.shard=true is for policies, and model={config.model.name} is none")
    if config.eval.scoring == "as_published":
        for task in (*tasks_of(config.task), *(task for task, _ in further_tasks(config))):
            check_published(task)
    further_tasks(config)


def check_vllm(config: Config) -> None:
    """Raises ConfigError where vLLM would draw from other weights than the policy's, or has nothing to draw."""
    trains = isinstance(config.method, TrainingConfig)
    for key, given in (
        ("model.adapter", config.model.adapter is not None),
        ("lora=none", trains and not config.lora.enabled),
        ("model.shard=true", config.model.shard),
        (f"model.kind={config.model.kind}", config.model.kind != "decoder"),
    ):
        if given:
            raise ConfigError(f"model.decoder=vllm doesn't go with {key}: take model.decoder=own")


def check_processes(config: Config) -> None:
    """Raises ConfigError where several processes can't share the work of a run."""
    method = config.method
    if config.model.decoder == "vllm":
        raise ConfigError("model.decoder=vllm works in one process: take model.decoder=own with several")
    if config.model.kind == "endpoint":
        raise ConfigError(f"model={config.model.name} is behind a server, which one process can ask as well")
    if config.model.kind == "encoder":
        raise ConfigError(f"model={config.model.name} is an encoder, which trains in one process")
    if isinstance(method, TrainingConfig):
        ranks.check_divisible("method.batch_size", method.batch_size)
    if isinstance(method, PPOConfig):
        ranks.check_divisible("method.minibatch_size", method.minibatch_size)
    if isinstance(method, TrainingConfig) and not isinstance(method, (SFTConfig, PPOConfig)):
        raise ConfigError(
            f"method={method.name} trains in one process: start it without accelerate launch or torchrun. A run that "
            f"needs such a model, started so afterwards, finds it"
        )


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


def _check_no_answers(config: EvalConfig) -> None:
    """Raises ConfigError where a reward model is asked for answers, which it doesn't write."""
    for name in ("also", "submission", "perplexity"):
        if getattr(config, name):
            raise ConfigError(
                f"method=reward_model writes no answers, so that eval.{name} makes no sense with it"
            )


def _check_rationale(config: Config, task: Task) -> None:
    """Raises ConfigError where answers with an analysis don't fit task, method or scoring."""
    assert config.task.rationale is not None
    check_rationales(task, config.task.rationale)
    check_writer(config)
    if config.model.kind == "encoder" and not isinstance(config.method, RewardModelConfig):
        raise ConfigError(
            f"task.rationale needs a model that writes, and model={config.model.name} is an encoder"
        )
    if config.task.rationale == MODEL and (config.model.kind == "encoder" or config.reward.model is not None):
        raise ConfigError(
            "task.rationale=model asks the run's own base model, and here the reward model has another one: have the "
            "analyses written first (python -m nlu_ppo.rationales), and name the file with task.rationale=FILE"
        )
    if config.task.rationale == MODEL and config.model.kind == "endpoint":
        raise ConfigError(
            f"task.rationale=model asks the run's own base model, and model={config.model.name} is behind a server: "
            f"task.rationale=endpoint asks a server"
        )
    if config.method.name == "few_shot":
        raise ConfigError("task.rationale: the demonstrations of method=few_shot have no analysis to show")
    if isinstance(config.method, SFTConfig) and config.method.answer_words:
        raise ConfigError(
            "task.rationale and method.answer_words don't go together: no analysis argues for such words"
        )


def check_answer_words(method: SFTConfig, task: Task) -> None:
    """Raises ConfigError where `method.answer_words` names what is no label of the task."""
    strangers = [label for label in method.answer_words if label not in task.labels]
    if strangers:
        there = f"its labels are {', '.join(task.labels)}" if task.labels else "its answers have no labels"
        raise ConfigError(f"method.answer_words: {strangers[0]} is no label of {task.name}: {there}")


def _no_training_split(task: Task) -> str:
    return (
        f"task={task.name} has no training split: train on {task.train_on or 'another task'} "
        f"(task={task.train_on or 'OTHER'} eval.also=[{task.name}]), or evaluate it with method=zero_shot, of "
        f"a trained model with model.adapter=<folder of its run>/adapter"
    )
