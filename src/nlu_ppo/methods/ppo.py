"""PPO: rollouts, reward by agreement with the gold label, clipped updates. The engine is nlu_ppo.ppo."""

from __future__ import annotations

import itertools
import logging
from collections import Counter, defaultdict
from dataclasses import asdict
from typing import Any

import torch

from nlu_ppo import ranks, stopping
from nlu_ppo.config import PPOConfig
from nlu_ppo.errors import NotFiniteError, TrainingDivergedError
from nlu_ppo.methods.curriculum import training_stream
from nlu_ppo.methods.judging import judge_by
from nlu_ppo.methods.optimization import build_optimizer, diverged, rate_factor, steps_of
from nlu_ppo.methods.setting import Selector, Setting, finished
from nlu_ppo.ppo import checkpoint
from nlu_ppo.ppo.maths import KLController, RewardScaler, RunningMoments
from nlu_ppo.ppo.rollout import Rollouts, collect, statistics
from nlu_ppo.ppo.update import ForwardMismatchError, update
from nlu_ppo.ppo.watch import Watch
from nlu_ppo.progress import bar
from nlu_ppo.tasks.record import Example

log = logging.getLogger(__name__)

RATIO_TOLERANCE = 1e-3  # before the first step, old and new policy are one; in bf16 two batch shapes differ


def fit(setting: Setting) -> Setting:
    """Trains the policy in place, from its last checkpoint if there is one.

    Raises:
        Interrupted: a signal has asked the run to end; a checkpoint is written.
        DiskError: there is no room for what training writes.
    """
    trainer = PPOTrainer(setting)
    trainer.train()
    return finished(setting, trainer.examples_seen)


class PPOTrainer:
    """The state of a PPO run, and the loop over its steps."""

    def __init__(self, setting: Setting) -> None:
        method = setting.config.method
        assert isinstance(method, PPOConfig)
        self.setting, self.config, self.policy = setting, method, setting.policy
        self.stream = training_stream(setting)
        self.steps = steps_of(method, len(self.stream))
        # only what the run comes to see
        self.stream.prepare(itertools.islice(self.stream, self.steps * method.batch_size))
        self.step, self.first_step = 0, 0  # of this process, which may resume a run
        self.judge = judge_by(setting)
        self.policy.freeze_reference()
        self.policy.add_value_head()
        if method.gradient_checkpointing:
            self.policy.checkpoint_layers()
        self.policy.model.eval()  # dropout would make the first ratio differ from 1
        self.optimizer = build_optimizer([p for _, p in self.policy.trainable()], method)
        self.kl = KLController(
            method.kl_coef, method.kl_controller == "adaptive", method.kl_target, method.kl_horizon
        )
        self.scaler = RewardScaler(method.reward_scaling)
        seed = setting.config.seed
        self.sampling = torch.Generator(self.policy.device).manual_seed(seed)
        self.shuffling = torch.Generator().manual_seed(seed)
        self.selector = Selector(setting, method)
        self.watch = Watch(setting.parts[0].task.verbalizers if len(setting.parts) == 1 else ())
        self.max_new_tokens = setting.completion_limit

    @property
    def examples_seen(self) -> int:
        return self.step * self.config.batch_size

    def train(self) -> None:
        self._resume()
        with stopping.at_step_ends():
            try:
                self._loop()
            except (NotFiniteError, TrainingDivergedError) as error:
                raise diverged(self.step + 1, error) from error
        stopping.leave_if_requested()
        self.selector.restore_best()

    def _loop(self) -> None:
        self._select()
        stream = itertools.islice(self.stream, self.examples_seen, None)
        leaving = stopping.agree()
        with bar(total=self.steps, initial=self.step, desc="ppo", unit="step") as shown:
            while self.step < self.steps and not leaving:
                batch = list(itertools.islice(stream, self.config.batch_size))
                values = self._step(batch)
                self.step += 1
                self.setting.recorder.log(self.step, self.examples_seen, values)
                shown.set_postfix(
                    reward=f"{values['train/reward']:.2f}",
                    accuracy=f"{values['train/accuracy']:.2f}",
                    kl=f"{values['ppo/kl']:.2f}",
                    refresh=False,  # `update` shows them, and in a log file not ten times a second
                )
                shown.update()
                self._select()
                leaving = stopping.agree()
                self._checkpoint(leaving)

    def _select(self) -> None:
        self.selector.after(self.step, self.examples_seen, last=self.step == self.steps)

    def _step(self, numbers: list[int]) -> dict[str, float]:
        """One batch of training examples: rollout, update, KL weight.

        Raises:
            TrainingDivergedError: loss, gradient or weights are no longer finite. No checkpoint holds them.
            ForwardMismatchError: the very first ratios are not 1.
        """
        rate = self.config.learning_rate * rate_factor(self.config, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # rollouts of one example side by side: they share its whole prompt
        numbers = [number for number in numbers for _ in range(self.config.rollouts)]
        batch = list(map(self.stream.example, numbers))
        prompts = list(map(self.stream.prompt, numbers))
        rollouts = collect(
            self.policy,
            prompts,
            batch,
            self.judge,
            self.config,
            self.max_new_tokens,
            self.kl.coef,
            self.sampling,
            self.scaler,
        )
        values = statistics(rollouts, self.kl.coef) | self._answers(batch, rollouts)
        values["train/shortened"] = sum(p.shortened for p in prompts) / len(prompts)
        values |= update(self.policy, self.optimizer, rollouts, self.config, self.shuffling)
        if not torch.stack([torch.isfinite(p).all() for _, p in self.policy.trainable()]).all():
            raise TrainingDivergedError("it moved weights beyond what is finite: lower method.learning_rate")
        self.kl.update(values["ppo/kl"], len(batch))
        values["train/learning_rate"] = rate
        self._warn(values, batch, rollouts)
        return values

    def _answers(self, batch: list[Example], rollouts: Rollouts) -> dict[str, float]:
        """How often each label was answered; of several tasks, how often each was right."""
        parts = self.setting.parts
        if len(parts) == 1:
            words, answered = parts[0].task.verbalizers, Counter(rollouts.answers)
            return {f"answers/{word}": answered[i] / len(batch) for i, word in enumerate(words)}
        right = defaultdict(list)
        for example, correct in zip(batch, rollouts.correct, strict=True):
            right[self.setting.part_of(example).task.name].append(correct)
        return {f"train/{name}/accuracy": sum(found) / len(found) for name, found in right.items()}

    def _warn(self, values: dict[str, float], batch: list[Example], rollouts: Rollouts) -> None:
        """Says what a person would want to know at once."""
        for said in self.watch.update(values, rollouts.answers, [example.label for example in batch]):
            log.warning("step %d: %s", self.step + 1, said)
        if values["ppo/first_ratio_error"] > RATIO_TOLERANCE and self.policy.base.dtype == torch.float32:
            said = (
                f"step {self.step + 1}: the first ratio differs from 1 by {values['ppo/first_ratio_error']:.2g}; "
                f"old and new log-probabilities should be one before the first step"
            )
            if self.step == self.first_step:  # later on it may be the rounding of a policy gone astray
                raise ForwardMismatchError(
                    f"{said}: the model doesn't give the same twice (dropout that stays on, or noise in its layers)"
                )
            log.warning(said)
        if self.step == 0 and values["train/unparsable"] > 0.9:
            log.warning(
                "%.0f%% of the first completions are no legal answer: PPO has little to learn from; start "
                "from a model that can follow the format",
                100 * values["train/unparsable"],
            )

    # -- checkpoints --------------------------------------------------------------------------------------

    def _checkpoint(self, leaving: bool) -> None:
        """Writes one every so often, at the end (the evaluation may be interrupted, too), and before leaving."""
        every = self.config.checkpoint_every
        due = every > 0 and (self.step % every == 0 or self.step == self.steps)
        if due or leaving:
            folder = self.setting.recorder.folder
            ranks.on_main(folder.keep_metrics)
            ranks.on_main(lambda: checkpoint.save(folder.checkpoints, self.step, self.state()))

    def state(self) -> checkpoint.State:
        """Everything that the next steps depend on."""
        optimizer, selected = checkpoint.pack_optimizer(self.optimizer), self.selector.state_dict()
        tensors: dict[str, Any] = {
            **checkpoint.prefixed("policy", self.policy.state_dict()),
            **checkpoint.prefixed("optimizer", optimizer.tensors),
            **checkpoint.prefixed("best", selected.pop("weights") or {}),  # type: ignore[arg-type]
            "random/sampling": self.sampling.get_state(),
            "random/shuffling": self.shuffling.get_state(),
        }
        values = {
            "kl_coef": self.kl.coef,
            "rewards": asdict(self.scaler.moments),
            "optimizer": optimizer.values,
            "selected": selected,
            "room": self.policy.room.found,
        }
        return checkpoint.State(tensors, values)

    def load_state(self, state: checkpoint.State) -> None:
        tensors = state.tensors
        self.step = int(state.values["step"])
        self.policy.load_state_dict(checkpoint.without_prefix("policy", tensors))
        packed = checkpoint.State(checkpoint.without_prefix("optimizer", tensors), state.values["optimizer"])
        checkpoint.unpack_optimizer(self.optimizer, packed)
        best = checkpoint.without_prefix("best", tensors)
        self.selector.load_state_dict({**state.values["selected"], "weights": best or None})
        self.sampling.set_state(tensors["random/sampling"])
        self.shuffling.set_state(tensors["random/shuffling"])
        self.policy.room.found |= state.values.get("room", {})
        self.kl.coef = state.values["kl_coef"]
        self.scaler.moments = RunningMoments(**state.values["rewards"])

    def _resume(self) -> None:
        folder = self.setting.recorder.folder
        newest = ranks.on_main(checkpoint.newest, folder.checkpoints)
        state = checkpoint.read(newest) if newest is not None else None
        if state is not None:
            self.load_state(state)
            self.first_step = self.step
            log.info("going on from step %d", self.step)
        folder.truncate_metrics(self.step if state is not None else -1, self.selector.scored)
