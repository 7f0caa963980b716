"""SFT: TRL's SFTTrainer on prompts and gold completions, tokenised as decoding will see them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import islice

from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from nlu_ppo.config import SFTConfig
from nlu_ppo.methods import classify, curriculum, trl_bridge
from nlu_ppo.methods.optimization import steps_of
from nlu_ppo.methods.setting import Setting, TrainingStream, finished
from nlu_ppo.models.classifier import Classifier
from nlu_ppo.tasks.rationales import with_analysis
from nlu_ppo.tasks.record import Label

log = logging.getLogger(__name__)

IGNORED = -100  # label of a token that the loss leaves out: PyTorch's convention
NAMES = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "mean_token_accuracy": "train/token_accuracy",
    "entropy": "train/entropy",
}


def fit(setting: Setting) -> Setting:
    """Trains the policy in place, from its last checkpoint if there is one.

    Raises:
        Interrupted: a signal has asked the run to end; a checkpoint is written.
        DiskError: there is no room for what training writes.
    """
    if isinstance(setting.policy, Classifier):
        return classify.fit(setting)
    method = setting.config.method
    assert isinstance(method, SFTConfig)
    stream = curriculum.training_stream(setting)
    steps = steps_of(method, len(stream))
    trl_bridge.need_padding(setting.policy.tokenizer, "SFT")
    numbers = list(islice(stream, steps * method.batch_size))  # all that the run sees
    rows = tokenized(setting, stream, method.loss_on, method.answer_words, numbers)

    def build(bridge: TrainerCallback) -> SFTTrainer:
        return SFTTrainer(
            model=setting.policy.model,
            args=TrlConfig(
                **trl_bridge.arguments(setting, method, steps, method.batch_size),
                train_sampling_strategy="sequential",  # the stream has its own order
                max_length=None,  # prompts already fit the context
                dataset_kwargs={"skip_prepare_dataset": True},  # rows are what the collator takes
            ),
            train_dataset=rows,
            processing_class=setting.policy.tokenizer,
            optimizers=trl_bridge.optimizers(setting, method, steps),
            callbacks=[bridge],
        )

    trl_bridge.fit(setting, method, steps, build, NAMES)
    return finished(setting, steps * method.batch_size)


def tokenized(
    setting: Setting,
    stream: TrainingStream,
    loss_on: str,
    words: Mapping[str, str] | None = None,
    numbers: Sequence[int] | None = None,
) -> Dataset:
    """Rows of `input_ids` and `labels`: prompt, completion, end of sequence; made when they are asked for.

    The loss counts the completion and the end of sequence, or (`all`) the prompt as well.

    Args:
        words: label -> what is to be answered in place of the task's own word (`method.answer_words`).
        numbers: of the examples; `None` takes the first epoch.
    """
    numbers = stream.first_epoch() if numbers is None else numbers
    stream.prepare(numbers)
    stream.learn_answers()
    if stream.shortened:
        log.warning("%d training prompts lost the end of their longest text to fit", stream.shortened)
    end = [e] if (e := setting.policy.tokenizer.eos_token_id) is not None else []
    return Dataset.from_dict({"number": numbers}).with_transform(_Rows(stream, end, loss_on, words or {}))


class _Rows:
    """Makes training rows of the numbers of examples."""

    def __init__(
        self, stream: TrainingStream, end: Sequence[int], loss_on: str, words: Mapping[str, str]
    ) -> None:
        self._stream, self._end, self._loss_on, self._words = stream, end, loss_on, words

    def __call__(self, batch: Mapping[str, list[int]]) -> dict[str, list[list[int]]]:
        columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
        for number in batch["number"]:
            ids, label = self._stream.prompt(number).ids, self._stream.example(number).label
            assert label is not None
            prompter = self._stream.part(number).prompter
            target = [*prompter.completion_ids(self._answer(number, label)), *self._end]
            hidden = list(ids) if self._loss_on == "all" else [IGNORED] * len(ids)
            columns["input_ids"].append([*ids, *target])
            columns["labels"].append([*hidden, *target])
        return columns

    def _answer(self, number: int, label: Label) -> str:
        """The completion to learn: with the task's own word, unless `method.answer_words` has another."""
        part = self._stream.part(number)
        if part.rationales is not None:
            return with_analysis(
                part.task.verbalize(label), part.rationales(self._stream.example(number), label)
            )
        if self._words and part.task.labels and (word := self._words.get(part.task.labels[int(label)])):  # type: ignore[arg-type]
            return part.prompter.close(word)
        return part.prompter.completion(label)

    def __getstate__(self) -> dict[str, object]:
        # `datasets` pickles a transform to tell results apart that it keeps. It keeps none of ours, and
        # pickling all prompts would take a gigabyte.
        return {}
