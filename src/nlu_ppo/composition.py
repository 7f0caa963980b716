"""From Hydra's tree to checked dataclasses: what `train.py` does before anything else. No torch, no network."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from nlu_ppo.config import (
    METHOD_SCHEMAS,
    Config,
    EvalConfig,
    FewShotConfig,
    LoraConfig,
    ModelConfig,
    PPOConfig,
    RewardConfig,
    RewardedConfig,
    RewardModelConfig,
    SFTConfig,
    TaskConfig,
    TrackingConfig,
    TrainingConfig,
    ZeroShotConfig,
    check_ranges,
)
from nlu_ppo.credentials import check_tracking_uri
from nlu_ppo.endpoint import check_address
from nlu_ppo.errors import ConfigError
from nlu_ppo.record_checks import check_record

LONGEST_NAME = 100  # bytes of a name that folders have, so that none is too long for a disk
TINY = "tiny"  # name and path of the model that ships with the package


def register_schemas() -> None:
    """Makes the schemas known to Hydra; YAML choices inherit from them through their defaults list."""
    store = ConfigStore.instance()
    store.store(name="config_schema", node=Config)
    groups: dict[str, type] = {
        "task": TaskConfig, "model": ModelConfig, "reward": RewardConfig, "lora": LoraConfig,
        "eval": EvalConfig, "tracking": TrackingConfig, **METHOD_SCHEMAS,
    }  # fmt: skip
    for name, node in groups.items():
        store.store(group="schema", name=name, node=node)


def to_config(tree: DictConfig) -> Config:
    """The composed tree as checked dataclasses.

    Raises:
        ConfigError: a key is unknown or left out, a mandatory value is missing, or a value lies outside its
            range or choices.
    """
    names = [item.name for item in dataclasses.fields(Config)]
    left_out = [name for name in names if name not in list(tree)]
    if left_out:  # `~name` on the command line
        raise ConfigError(f"{', '.join(left_out)} can't be left out")
    unknown = [str(key) for key in tree if key not in names and key != "hydra"]  # `+name=...`
    if unknown:
        close = difflib.get_close_matches(unknown[0], [*names, "sweeps"], n=1)
        hint = f" Did you mean {'+' * (close[0] == 'sweeps')}{close[0]}=?" if close else ""
        raise ConfigError(f"unknown key {unknown[0]}.{hint} There is: {', '.join(names)}.")
    missing = sorted(_missing(tree, names))
    if missing:
        raise ConfigError(f"no value given for {', '.join(missing)}: say for instance {missing[0]}=...")
    # Group by group, because the tree also holds Hydra's own node, whose folders are made of ours.
    config = Config(**{name: _to_object(tree, name) for name in names})
    _settle_starts(config)
    check(config)
    return config


def _settle_starts(config: Config) -> None:
    """Forgets what was composed and is without effect; reward models start from where the policy starts."""
    if isinstance(config.method, (RewardedConfig, RewardModelConfig)) and config.method.init == "none":
        config.method.start = None
    for judge in (config.reward.label_model, config.reward.rationale_model):
        if judge is not None:
            judge.start = getattr(config.method, "start", None) if judge.init == "sft" else None


def _check_names(config: Config) -> None:
    """Names become folders, and titles in tables: they must not lead out of `outputs`, nor be too long for a disk."""
    names = {
        "study": config.study,
        "task.name": config.task.name,
        "model.name": config.model.name,
        "method.name": config.method.name,
        "lora.name": config.lora.name,
        **{f"task.members[{i}]": name for i, name in enumerate(config.task.members or ())},
    }
    model = config.model.name
    if config.model.kind == "endpoint" and "/" in model:
        raise ConfigError(
            f"model.name={model} is to name folders and rows: say model.name={model.rpartition('/')[2]} "
            f"model.endpoint.model={model}"
        )
    for key, name in names.items():
        check_folder_name(key, name)
    if config.method.name not in METHOD_SCHEMAS:
        raise ConfigError(f"method.name={config.method.name}: there is {', '.join(METHOD_SCHEMAS)}")


def check_folder_name(key: str, name: str) -> None:
    """Raises ConfigError for a name that would lead elsewhere, or that a disk or a terminal can't show."""
    legal = name.isprintable() and name == name.strip() and name and name[0] not in ".=+-@"
    if not legal or {"/", "\\"} & set(name) or len(name.encode()) > LONGEST_NAME:
        raise ConfigError(
            f"{key}={name[:80]!r} is to name a folder: neither / nor \\ nor control characters may stand in it, none "
            f"of . = + - @ or a blank in front, and {LONGEST_NAME} bytes are the most. Other places are said by "
            f"outputs=DIR or hydra.run.dir=DIR"
        )


def _missing(node: Any, names: Iterable[str], prefix: str = "") -> Iterator[str]:
    """Dotted keys that still are `???`. What is made of them by interpolation is not counted again."""
    for name in names:
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none():
            yield from _missing(child, [str(key) for key in child], f"{prefix}{name}.")
        elif child is not None and child._value() == "???":
            yield prefix + name


def _to_object(tree: DictConfig, name: str) -> Any:
    node = tree[name]
    return OmegaConf.to_object(node) if isinstance(node, DictConfig) else node


def check(config: Config) -> None:
    """Checks every value against the range and the choices of its field, and what spans several fields."""
    check_ranges(config)
    _check_names(config)
    check_tracking_uri(config.tracking.uri)
    method = config.method
    if isinstance(method, PPOConfig) and method.batch_size * method.rollouts % method.minibatch_size:
        times = f" times method.rollouts={method.rollouts}" if method.rollouts > 1 else ""
        raise ConfigError(
            f"method.batch_size={method.batch_size}{times} is no multiple of "
            f"method.minibatch_size={method.minibatch_size}"
        )
    if isinstance(method, RewardedConfig):
        _check_judges(config, method)
    if (
        isinstance(method, (RewardedConfig, RewardModelConfig))
        and method.init == "sft"
        and method.start is None
    ):
        raise ConfigError(
            f"method.init=sft needs the settings of the SFT run, and method={method.name} composes none: put "
            f"`/method@start: sft` into its defaults list"
        )
    if config.model.name == TINY != config.model.path:
        raise ConfigError(
            f"model.path={config.model.path}: with model=tiny it would be trained with the rates of a toy, and called "
            f"tiny: say model=local model.path={config.model.path}, or take the choice that the folder is a copy of"
        )
    if config.model.kind == "encoder":
        _check_encoder(config)
    if config.model.quantization is not None:
        _check_quantization(config)
    if config.model.kind == "endpoint":
        _check_remote(config)
    check_task(config.task)
    reading = config.eval
    if reading.perplexity is not None and reading.perplexity_stride > reading.perplexity_window:
        raise ConfigError(
            f"eval.perplexity_stride={reading.perplexity_stride} is more than "
            f"eval.perplexity_window={reading.perplexity_window}, so that tokens between two windows would be "
            f"left out"
        )


def _check_quantization(config: Config) -> None:
    """Quantized weights don't move: what would train or merge them makes no sense."""
    said = f"model.quantization={config.model.quantization}"
    if config.model.kind == "encoder":
        raise ConfigError(
            f"{said} needs an adapter to train, and model={config.model.name} is an encoder without"
        )
    if isinstance(config.method, RewardModelConfig):
        raise ConfigError(
            f"{said} is for policies: reward models are trained on weights as they are; set it to null"
        )
    if isinstance(config.method, TrainingConfig) and not config.lora.enabled:
        raise ConfigError(
            f"{said} freezes all weights, and lora={config.lora.name} trains them: take lora=paper, or set it to null"
        )
    if (
        isinstance(config.method, RewardedConfig)
        and config.reward.model is None
        and (config.reward.label_model or config.reward.rationale_model)
    ):
        raise ConfigError(
            f"{said}: reward={config.reward.name} trains reward models on the same base, which must not be quantized: "
            f"give them one of their own (+model@reward.model=...)"
        )


def _check_encoder(config: Config) -> None:
    """An encoder writes no text: what needs a text makes no sense with one."""
    model, asked = config.model.name, config.eval
    if isinstance(config.method, RewardModelConfig):
        check_encoder_loss(config.method, model, "method")
    elif not isinstance(config.method, SFTConfig):
        raise ConfigError(
            f"method={config.method.name} needs a model that writes answers, and model={model} is an encoder, whose "
            f"new head has to be trained on labels: use method=sft"
        )
    for key, given in (
        ("model.adapter", config.model.adapter is not None),
        ("method.init=sft", getattr(config.method, "init", "none") == "sft"),
        ("eval.decoding=sample", asked.decoding == "sample"),
        ("eval.max_new_tokens", asked.max_new_tokens is not None),
        ("eval.perplexity", asked.perplexity is not None),
        ("method.order=confidence", config.method.order == "confidence"),
    ):
        if given:
            raise ConfigError(f"{key} needs a language model, and model={model} is an encoder")


def _check_remote(config: Config) -> None:
    """A model behind a server answers, and nothing else: its weights and its likelihoods are out of reach."""
    model = config.model
    check_address(model.endpoint.base_url, "model.endpoint.base_url")
    if not isinstance(config.method, (ZeroShotConfig, FewShotConfig)):
        raise ConfigError(
            f"method={config.method.name} needs a model's weights, and model={model.name} is behind a server: use "
            f"method=zero_shot or method=few_shot"
        )
    for key, given in (
        ("model.adapter", model.adapter is not None),
        ("eval.perplexity", config.eval.perplexity is not None),
    ):
        if given:
            raise ConfigError(f"{key} needs a model's weights, and model={model.name} is behind a server")


def _check_judges(config: Config, method: RewardedConfig) -> None:
    """Whether the settings of the reward models fit their base and the policy."""
    base = config.reward.model
    for name in ("label_model", "rationale_model"):
        settings: RewardModelConfig | None = getattr(config.reward, name)
        if settings is None:
            continue
        if base is not None and base.kind == "endpoint":
            raise ConfigError(
                f"reward.model={base.name} is behind a server, and a reward model is trained: take another base"
            )
        if base is not None and base.kind == "encoder":
            check_encoder_loss(settings, base.name, f"reward.{name}")
        if settings.init == "sft" and (method.init != "sft" or base is not None):
            raise ConfigError(
                f"reward.{name}.init=sft starts from the policy's own SFT run: it needs method.init=sft, and no "
                f"reward.model"
            )


def check_encoder_loss(method: RewardModelConfig, model: str, key: str) -> None:
    """Raises ConfigError where an encoder, which scores a text as a whole, would have to score its tokens.

    Args:
        key: under which the settings stand.
    """
    if method.loss == "divergence":
        raise ConfigError(
            f"{key}.loss=divergence compares the scores of tokens, and model={model} is an encoder that scores a text "
            f"as a whole: use {key}.loss=last_token"
        )


def check_task(task: TaskConfig) -> None:
    """Checks what spans several keys of a task."""
    if task.record is not None:
        check_record(task.name, task.record, task.source)
    elif task.source == "raw" and task.data_dir is None:
        raise ConfigError(
            "task.source=raw needs task.data_dir=DIR, the folder that holds glue/, superglue/ or squad/"
        )
