"""GRPO and RLOO: TRL's trainers on our prompts, rewards and decoder.

Both draw several completions of each prompt and need no value head: the baseline of a completion's reward is what
its siblings got. TRL computes advantages, loss and steps; what is sampled comes from the decoder that all methods
share, so that a completion ends with its closing tag.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig as TrlGRPOConfig
from trl import GRPOTrainer, RLOOTrainer
from trl import RLOOConfig as TrlRLOOConfig
from trl.trainer.utils import add_fused_lm_head

from nlu_ppo.config import GRPOConfig, RewardedConfig, RLOOConfig
from nlu_ppo.inference.decoder import generate
from nlu_ppo.methods import trl_bridge
from nlu_ppo.methods.curriculum import training_stream
from nlu_ppo.methods.judging import judge_by
from nlu_ppo.methods.optimization import steps_of
from nlu_ppo.methods.setting import Setting, TrainingStream, finished

REFERENCE = "ref"  # the adapter that TRL's trainers copy the policy's first weights to


def fit(setting: Setting) -> Setting:
    """Trains the policy in place, from its last checkpoint if there is one.

    Raises:
        Interrupted: a signal has asked the run to end; a checkpoint is written.
        DiskError: there is no room for what training writes.
    """
    method = setting.config.method
    assert isinstance(method, (GRPOConfig, RLOOConfig))
    stream = training_stream(setting)
    steps = steps_of(method, len(stream))
    numbers = list(itertools.islice(stream, steps * method.batch_size))
    stream.prepare(numbers)
    trl_bridge.need_padding(setting.policy.tokenizer, method.name)
    setting.policy.freeze_reference()

    def build(bridge: TrainerCallback) -> GRPOTrainer | RLOOTrainer:
        _drop_reference(setting)  # of an attempt that didn't fit into memory
        kind: Any = _GRPO if isinstance(method, GRPOConfig) else _RLOO
        trainer = kind(
            model=setting.policy.model,
            reward_funcs=_Rewards(setting, stream),
            args=_arguments(setting, method, steps),
            # one pass over all examples that the run sees, in the order in which PPO sees them
            train_dataset=Dataset.from_dict({"number": numbers}).with_transform(_Rows(stream)),
            processing_class=setting.policy.tokenizer,
            optimizers=trl_bridge.optimizers(setting, method, steps),
            callbacks=[bridge],
        )
        trainer.setting, trainer.method = setting, method
        _set_reference(trainer, setting, method.kl_coef)
        return trainer

    trl_bridge.fit(setting, method, steps, build, _names(method.name))
    _drop_reference(setting)
    return finished(setting, steps * method.batch_size)


def _arguments(
    setting: Setting, method: GRPOConfig | RLOOConfig, steps: int
) -> TrlGRPOConfig | TrlRLOOConfig:
    common = {
        **trl_bridge.arguments(setting, method, steps, method.batch_size * method.rollouts),
        "num_generations": method.rollouts,
        "max_completion_length": setting.completion_limit,
        "temperature": method.temperature,
        "epsilon": method.clip_range,
        "beta": method.kl_coef if setting.policy.has_adapter else 0.0,  # or TRL would load a second model
        "shuffle_dataset": False,  # the stream has its own order
        "disable_dropout": True,  # or old and new policy differ before the first step
    }
    if isinstance(method, GRPOConfig):
        return TrlGRPOConfig(**common, loss_type=method.loss_type, scale_rewards=method.scale_rewards)
    return TrlRLOOConfig(**common, normalize_advantages=method.normalize_advantages)


def _set_reference(trainer: GRPOTrainer | RLOOTrainer, setting: Setting, kl_coef: float) -> None:
    """The policy before training: the adapter that TRL has copied, no adapter, or a frozen copy of the model."""
    policy = setting.policy
    if not policy.has_adapter:
        if kl_coef:
            with policy.reference() as frozen:
                add_fused_lm_head(frozen.model, temperature=trainer.temperature)  # as TRL gives its own
                trainer.ref_model, trainer.beta = frozen.model, kl_coef
        return
    if kl_coef and policy.pretrained:
        for name, parameter in policy.model.named_parameters():
            if f".{REFERENCE}." in name:
                parameter.requires_grad_(False)
    else:  # nothing to compare with, or TRL switches the adapter off, which is the same
        _drop_reference(setting)


def _drop_reference(setting: Setting) -> None:
    policy = setting.policy
    if policy.has_adapter and REFERENCE in policy.model.peft_config:
        policy.model.delete_adapter(REFERENCE)


def _names(method: str) -> dict[str, str]:
    """TRL's names of what it logs, and ours."""
    return {
        "loss": "train/loss",
        "grad_norm": "train/grad_norm",
        "learning_rate": "train/learning_rate",
        "reward": "train/reward",
        "reward_std": "train/reward_std",
        "accuracy": "train/accuracy",
        "unparsable": "train/unparsable",
        "shortened": "train/shortened",
        "completions/mean_length": "train/completion_tokens",
        "kl": f"{method}/kl",
        "entropy": f"{method}/entropy",
        "clip_ratio/region_mean": f"{method}/clip_fraction",
        "frac_reward_zero_std": f"{method}/groups_alike",  # they teach nothing
    }


class _Rows:
    """Makes TRL's training rows of the numbers of examples."""

    def __init__(self, stream: TrainingStream) -> None:
        self._stream = stream

    def __call__(self, batch: Mapping[str, list[int]]) -> dict[str, list[Any]]:
        numbers = batch["number"]
        return {"prompt": [self._stream.prompt(n).text for n in numbers], "number": list(numbers)}

    def __getstate__(self) -> dict[str, object]:
        return {}  # `datasets` pickles a transform to tell results apart that it keeps, and it keeps none of ours


class _Rewards:
    """Our reward as TRL calls it."""

    __name__ = "reward"

    def __init__(self, setting: Setting, stream: TrainingStream) -> None:
        self._judge, self._stream = judge_by(setting), stream

    def __call__(
        self, completions: Sequence[str], number: Sequence[int], log_metric: Any, **_: Any
    ) -> list[float]:
        judged = self._judge.many(completions, list(map(self._stream.example, number)))
        log_metric("accuracy", fmean(right for _, _, right in judged))
        log_metric("unparsable", fmean(answer is None for _, answer, _ in judged))
        log_metric("shortened", fmean(self._stream.prompt(n).shortened for n in number))
        return [reward for reward, _, _ in judged]


class _Sampling:
    """What both trainers do in our way: prompts to tokens, and tokens to completions."""

    setting: Setting
    method: RewardedConfig
    state: Any

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        # the texts are those of prepared prompts, already cut to fit
        return self.setting.parts[0].prompter.tokenize(prompts), None, {}

    def _draw(self, prompts: list[list[int]]) -> list[list[int]]:
        policy, seed = self.setting.policy, self.setting.config.seed
        # by step, so that a resumed run draws what one never interrupted would have
        source = torch.Generator(policy.device).manual_seed((seed << 32) + self.state.global_step)
        training = policy.model.training
        policy.model.eval()
        try:
            return generate(
                policy,
                prompts,
                self.setting.completion_limit,
                temperature=self.method.temperature,
                generator=source,
                batch_size=len(prompts),
            )
        finally:
            policy.model.train(training)


class _GRPO(_Sampling, GRPOTrainer):
    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any) -> tuple[list[list[int]], None]:
        return self._draw(prompt_ids), None


class _RLOO(_Sampling, RLOOTrainer):
    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any) -> list[list[int]]:
        return self._draw(prompt_ids)
