"""A reward model's training: TRL's RewardTrainer on pairs, with our two losses at the tokens they are about.

TRL's own loss is the one at the last token. Ours finds that token by the attention mask, and not by the padding token,
which for many tokenizers is the end of sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback
from trl import RewardConfig as TrlConfig
from trl import RewardTrainer

from nlu_ppo.config import RewardModelConfig
from nlu_ppo.errors import DataError
from nlu_ppo.methods import trl_bridge
from nlu_ppo.methods.optimization import steps_of
from nlu_ppo.methods.setting import Setting, finished
from nlu_ppo.preference.losses import divergence_loss, first_divergence, last_scores, last_token_loss
from nlu_ppo.preference.measure import pair_metrics
from nlu_ppo.preference.model import RewardModel
from nlu_ppo.preference.pairs import Pair
from nlu_ppo.prompting import Prompter

WATCHED = 256  # held-out pairs that are scored during training; all are at the end
NAMES = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "accuracy": "train/pair_accuracy",
    "margin": "train/reward_gap",
}


@dataclass(frozen=True)
class TokenPair:
    """A pair as tokens, prompt included."""

    pair: Pair
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True)
class Scored:
    """Rewards of pairs."""

    chosen: list[float]
    rejected: list[float]

    @property
    def metrics(self) -> dict[str, float]:
        return pair_metrics(self.chosen, self.rejected)


def tokenized(model: RewardModel, prompter: Prompter, pairs: Sequence[Pair]) -> list[TokenPair]:
    """Prompts and completions as tokens.

    Raises:
        DataError: a pair is longer than the model's context.
    """
    queries = [pair.query if pair.example is None else pair.example for pair in pairs]
    chosen, rejected = (
        model.read(prompter, queries, texts)
        for texts in ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
    )
    found = [TokenPair(*row) for row in zip(pairs, chosen, rejected, strict=True)]
    for number, row in enumerate(found):
        name, length = repr(row.pair.group[:60]), max(len(row.chosen), len(row.rejected))
        if length > model.context_length:
            raise DataError(
                f"pair {number} ({name}) has {length} tokens, more than the model's context of "
                f"{model.context_length}: shorten it, or take a model with a longer context"
            )
        if row.chosen == row.rejected:
            raise DataError(f"pair {number} ({name}) is the same twice in this model's tokens")
    return found


def fit(setting: Setting, pairs: Sequence[TokenPair], held_out: Sequence[TokenPair]) -> Setting:
    """Trains the reward model in place, from its last checkpoint if there is one.

    Args:
        setting: with a RewardModel in the policy's place.

    Raises:
        Interrupted: a signal has asked the run to end; a checkpoint is written.
        DiskError: there is no room for what training writes.
    """
    method, model = setting.config.method, setting.policy
    assert isinstance(method, RewardModelConfig)
    assert isinstance(model, RewardModel)
    steps = steps_of(method, len(pairs))
    trl_bridge.need_padding(model.tokenizer, "a reward model")
    rows = Dataset.from_dict(
        {"chosen_ids": [p.chosen for p in pairs], "rejected_ids": [p.rejected for p in pairs]}
    )

    def build(bridge: TrainerCallback) -> RewardTrainer:
        trainer = _Trainer(
            model=model.model,
            args=TrlConfig(
                **trl_bridge.arguments(setting, method, steps, method.batch_size),
                max_length=None,  # pairs fit the context
                disable_dropout=False,  # lora.dropout says how much there is
            ),
            train_dataset=rows,
            processing_class=model.tokenizer,
            optimizers=trl_bridge.optimizers(setting, method, steps),
            callbacks=[bridge],
        )
        trainer.reward_model, trainer.method = model, method
        return trainer

    trl_bridge.fit(setting, method, steps, build, NAMES, _HeldOut(setting, method, held_out))
    return finished(setting, steps * method.batch_size)


def score_pairs(model: RewardModel, pairs: Sequence[TokenPair], batch_size: int | None) -> Scored:
    rewards = model.rewards([row for pair in pairs for row in (pair.chosen, pair.rejected)], batch_size)
    return Scored(rewards[0::2], rewards[1::2])


def pair_loss(
    model: RewardModel, inputs: dict[str, Tensor], method: RewardModelConfig
) -> tuple[Tensor, Tensor]:
    """The loss of a batch, and rewards of chosen and rejected, (2, P).

    Args:
        inputs: `input_ids` and `attention_mask` as TRL's collator makes them: all chosen rows, then all rejected.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    if method.loss == "last_token":
        rewards = model.batch_rewards(ids, inputs["attention_mask"]).view(2, -1)
        return last_token_loss(rewards[0], rewards[1], method.temperature), rewards
    scores = model.token_scores(ids, inputs["attention_mask"])
    rewards = last_scores(scores, mask).view(2, -1)
    chosen_mask, rejected_mask = mask.chunk(2)
    first = first_divergence(*ids.masked_fill(~mask, -1).chunk(2), chosen_mask | rejected_mask)  # type: ignore[call-arg]
    chosen, rejected = scores.chunk(2)
    return divergence_loss(chosen, rejected, chosen_mask, rejected_mask, first, method.temperature), rewards


class _Trainer(RewardTrainer):
    """TRL's trainer with the loss of `method.loss`."""

    reward_model: RewardModel
    method: RewardModelConfig

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, rewards = pair_loss(self.reward_model, inputs, self.method)
        gap = (rewards[0] - rewards[1]).detach()
        self._metrics["train"]["accuracy"].append((gap > 0).float().mean().item())
        self._metrics["train"]["margin"].append(gap.mean().item())
        return (loss, {"rewards": rewards}) if return_outputs else loss


class _HeldOut:
    """Scores held-out pairs during training, for the record only: the last weights are kept."""

    def __init__(self, setting: Setting, method: RewardModelConfig, pairs: Sequence[TokenPair]) -> None:
        self._setting, self._method = setting, method
        self._pairs = pairs[:: -(-len(pairs) // WATCHED)]  # evenly, at most so many
        self.scored = -1

    def after(self, step: int, examples: int, last: bool = False) -> None:
        every = self._method.select_every
        if self.scored >= step or not (last or (every > 0 and step % every == 0)):
            return
        model = self._setting.policy
        assert isinstance(model, RewardModel)
        training = model.model.training
        model.model.eval()
        try:
            metrics = score_pairs(model, self._pairs, self._setting.config.eval.batch_size).metrics
        finally:
            model.model.train(training)
        self._setting.recorder.log(
            step, examples, {f"select/{name}": value for name, value in metrics.items()}
        )
        self.scored = step

    def restore_best(self) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, object]:
        return {"scored": self.scored, "weights": None, "recorded": self._setting.recorder.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scored = state["scored"]
        self._setting.recorder.load_state_dict(state["recorded"])
