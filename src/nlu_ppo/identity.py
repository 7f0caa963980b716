"""What a run is: all that changes its result, and the key that stands for it. Needs no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nlu_ppo.config import (
    Config,
    EvalConfig,
    ModelConfig,
    PPOConfig,
    RewardConfig,
    RewardedConfig,
    RewardModelConfig,
    TaskConfig,
    TrainingConfig,
    ZeroShotConfig,
    key_fields,
)
from nlu_ppo.further import further_identity, further_tasks, record_identity
from nlu_ppo.models.locate import adapter_fingerprint, fingerprint
from nlu_ppo.preference.pairs import from_file
from nlu_ppo.rationales.writers import writer_identity
from nlu_ppo.rewards import needed_models
from nlu_ppo.tasks import Task, tasks_of
from nlu_ppo.tasks.rationales import WRITTEN
from nlu_ppo.tasks.splits import data_fingerprint
from nlu_ppo.tasks.submission_sets import submission_fingerprint
from nlu_ppo.tasks.texts import text_identity

REWARD_MODELS = "reward_models"  # the study of those that a run has trained because its reward asks them


def identity(config: Config) -> dict[str, Any]:
    """All that changes a run's result, and nothing else: what `key` hashes.

    Settings of groups that the method doesn't use stay out, so that a zero-shot run is the same run under any
    reward and any adapter. Files count by content, not by the folder they lie in.
    """
    method = config.method
    trains, uses_train = isinstance(method, TrainingConfig), not isinstance(method, ZeroShotConfig)
    tasks = tasks_of(config.task)
    parts: dict[str, Any] = {
        "task": _task_identity(config.task, tasks, trains and not isinstance(method, RewardModelConfig)),
        "data": {task.name: data_fingerprint(task, config.task) for task in tasks},
        "model": key_fields(config.model),
        "weights": _weights_identity(config.model),
        "adapter": adapter_fingerprint(config.model.adapter),
        "method": key_fields(method),
        "seed": config.seed,
    }
    for name in ("path", "revision"):  # the weights stand for them
        parts["model"].pop(name)
    encoder = config.model.kind == "encoder"
    parts["model"].pop("layout" if encoder else "kind")
    if config.model.kind == "endpoint":
        parts["model"] = {"layout": config.model.layout}
    if not uses_train:
        for name in ("limit.train", "selection"):  # demonstrations, too, come from what selection leaves
            parts["task"].pop(name)
    further = further_tasks(config)
    parts["eval"] = _eval_identity(config.eval, [*tasks, *(task for task, _ in further)])
    if further:
        parts["also"] = further_identity(further)
    if config.eval.submission:
        parts["submission"] = submission_fingerprint(tasks, config.task)
    if config.model.kind == "endpoint":  # it has one score
        parts["eval"].pop("likelihood", None)
    if encoder:  # it has no prompt, and only one score
        parts["method"].pop("loss_on", None)
        parts["eval"] = {k: v for k, v in parts["eval"].items() if k not in ("likelihood", "max_new_tokens")}
    elif trains:
        parts["lora"] = key_fields(config.lora) if config.lora.enabled else {"enabled": False}
    if config.task.rationale is not None:
        written = config.task.rationale in WRITTEN
        parts["rationale"] = writer_identity(config) if written else _file_identity(config.task.rationale)
    parts["method"] = {k: v for k, v in parts["method"].items() if not k.startswith("start.")}
    start = start_config(config)
    if start is not None:
        parts["start"] = run_key(start)
    if isinstance(method, RewardModelConfig):
        parts["pairs"] = [_file_identity(method.pairs), _file_identity(method.held_out_pairs)]
        parts["eval"] = {"bootstrap_samples": config.eval.bootstrap_samples}  # it answers nothing
        if from_file(method.pairs):
            parts["method"].pop("wrong_labels")
        else:
            parts["method"].pop("held_out")
    if isinstance(method, RewardedConfig):
        parts["reward"] = _reward_identity(config.reward)
        for name in needed_models(config.reward):
            if getattr(config.reward, name) is not None:
                parts["reward"][name] = run_key(reward_model_config(config, name))
    if isinstance(method, PPOConfig) and method.kl_controller == "fixed":
        for name in ("kl_target", "kl_horizon"):
            parts["method"].pop(name)
    return parts


def _weights_identity(model: ModelConfig) -> str:
    """What stands for a model's weights; behind a server, the name by which they are asked for, wherever it is."""
    if model.kind == "endpoint":
        return f"endpoint:{model.endpoint.model or model.name}"
    return fingerprint(model.path, model.revision)


def reward_model_config(config: Config, name: str) -> Config:
    """The run of the reward model that stands under `reward.<name>`: same task, adapter settings and seed.

    Its study is one of its own, for a model is shared by the studies that need it, and no row of their tables.
    """
    method: RewardModelConfig = getattr(config.reward, name)
    reading = config.eval if method.init == "sft" else EvalConfig()  # its SFT run is the policy's
    model, lora = config.reward.model or config.model, config.lora
    if lora.targets == config.model.lora_targets:  # the policy's own modules, which another base may not have
        lora = dataclasses.replace(lora, targets=model.lora_targets)
    return dataclasses.replace(
        config, method=method, model=model, lora=lora, reward=RewardConfig("none"), eval=reading, study=REWARD_MODELS,
    )  # fmt: skip


def _file_identity(value: str | None) -> str | None:
    """What stands for a file: its contents; for a word, the word itself."""
    if value is None or not Path(value).is_file():
        return value
    return f"sha256:{hashlib.sha256(Path(value).read_bytes()).hexdigest()}"


def start_config(config: Config) -> Config | None:
    """The SFT run that a run of `method.init=sft` starts from, a reward model's included; `None` for other runs."""
    start = getattr(config.method, "start", None)
    return None if start is None else dataclasses.replace(config, method=start)


def _task_identity(config: TaskConfig, tasks: Sequence[Task], mixes: bool) -> dict[str, Any]:
    """The task's settings. Those of a group count only for a group, and mixing only for training on answers to one."""
    parts = key_fields(config) | record_identity(config) | {"members": [task.name for task in tasks]}
    if len(tasks) == 1 or not mixes:
        parts.pop("mixing")
    if parts.get("mixing") != "temperature":
        parts.pop("mixing_temperature")
    return parts


def _eval_identity(config: EvalConfig, tasks: Sequence[Task]) -> dict[str, Any]:
    """The settings of the evaluation that have an effect; of a text its name and contents.

    Raises:
        ConfigError: the text isn't there.
    """
    parts = key_fields(config)
    if config.decoding == "greedy":
        parts.pop("temperature")
    if not any(task.lists_answers for task in tasks):
        parts.pop("likelihood")
    if not config.submission:  # a run without one keeps the key that it had before there were any
        parts.pop("submission")
    if config.perplexity is None:
        parts.pop("perplexity_window")
        parts.pop("perplexity_stride")
    else:
        parts["perplexity"] = text_identity(config.perplexity)
    return parts


def _reward_identity(config: RewardConfig) -> dict[str, Any]:
    """The reward's settings; of a user's own function the name and the contents of its file."""
    models = (
        "label_model.",
        "rationale_model.",
        "model.",
    )  # a model that is asked counts by its own run's key
    parts = {name: value for name, value in key_fields(config).items() if not name.startswith(models)}
    if ".py:" in config.name:
        path, _, function = config.name.rpartition(":")
        file = Path(path)
        contents = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
        parts["name"] = {"function": function, "contents": contents}
    return parts


def run_key(config: Config) -> str:
    """64 hexadecimal digits that stand for the run's identity."""
    text = json.dumps(identity(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


CHANGED = {  # parts of a run's identity that stand for contents, in words
    "data": "the data of task ",
    "weights": "the model's files",
    "adapter": "the adapter's files",
    "pairs": "the pairs",
    "reward.name.contents": "the reward function's file",
    "rationale": "the file of analyses",
    "submission": "the data to submit",
    "also": "the data of eval.also, or its settings",
    "start": "the SFT run that it starts from",
    "eval.perplexity": "the text of eval.perplexity",
}


def what_differs(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The parts of two identities that differ, in words; nothing if one isn't known.

    Args:
        theirs, ours: as JSON has them.
    """
    if not theirs or not ours:
        return ""
    found = []
    for key in _differing(theirs, ours):
        known = next((part for part in CHANGED if key == part or key.startswith(f"{part}.")), None)
        if known is None:
            found.append(key)
        elif known == "data":
            found.append(CHANGED[known] + key.removeprefix("data."))
        else:
            found.append(CHANGED[known])
    named = ", ".join(dict.fromkeys(found))
    return f" (what differs: {named})" if named else ""


def _differing(theirs: Any, ours: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys under which two trees differ."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for name in dict.fromkeys([*theirs, *ours]):
            key = f"{prefix}.{name}" if prefix and not name.startswith(f"{prefix}.") else name
            yield from _differing(theirs.get(name), ours.get(name), key)
    elif theirs != ours:
        yield prefix


def task_label(config: TaskConfig) -> str:
    """The task's name in folders, tables and MLflow; a part of a group is never called by the group's name."""
    return config.name if config.members is None else "+".join(config.members)


def subfolder(config: Config, key: str) -> str:
    """Where a run lies below its study."""
    return f"{task_label(config.task)}/{config.model.name}/{config.method.name}/{config.seed}-{key[:8]}"
