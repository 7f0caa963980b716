"""SFT of an encoder: transformers' Trainer on texts and labels, every weight trained."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from datasets import Dataset
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

from nlu_ppo.config import SFTConfig
from nlu_ppo.methods import curriculum, trl_bridge
from nlu_ppo.methods.optimization import steps_of
from nlu_ppo.methods.setting import Setting, TrainingStream, finished
from nlu_ppo.models.classifier import Classifier
from nlu_ppo.tasks.record import Kind

NAMES = {"loss": "train/loss", "grad_norm": "train/grad_norm", "learning_rate": "train/learning_rate"}


def fit(setting: Setting) -> Setting:
    """Trains the classifier in place, from its last checkpoint if there is one.

    The loss is the cross-entropy of the labels or, where answers are numbers, the squared error.

    Raises:
        Interrupted: a signal has asked the run to end; a checkpoint is written.
        DiskError: there is no room for what training writes.
    """
    method, classifier = setting.config.method, setting.policy
    assert isinstance(method, SFTConfig)
    assert isinstance(classifier, Classifier)
    stream = curriculum.training_stream(setting)
    steps = steps_of(method, len(stream))
    numbers = list(islice(stream, steps * method.batch_size))  # all that the run sees
    rows = Dataset.from_dict({"number": numbers}).with_transform(_Rows(stream, classifier))

    def build(bridge: TrainerCallback) -> Trainer:
        trainer = Trainer(
            model=classifier.model,
            args=TrainingArguments(
                **trl_bridge.arguments(setting, method, steps, method.batch_size),
                train_sampling_strategy="sequential",  # the stream has its own order
            ),
            data_collator=DataCollatorWithPadding(classifier.tokenizer),
            train_dataset=rows,
            processing_class=classifier.tokenizer,
            optimizers=trl_bridge.optimizers(setting, method, steps),
            callbacks=[bridge],
        )
        # The model takes what a summed loss would need and averages all the same: without this the trainer would add
        # up micro-batches' means.
        trainer.model_accepts_loss_kwargs = False
        return trainer

    trl_bridge.fit(setting, method, steps, build, NAMES)
    return finished(setting, steps * method.batch_size)


class _Rows:
    """Makes training rows of the numbers of examples."""

    def __init__(self, stream: TrainingStream, classifier: Classifier) -> None:
        self._stream, self._classifier = stream, classifier

    def __call__(self, batch: Mapping[str, list[int]]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {}
        for number in batch["number"]:
            example, task = self._stream.example(number), self._classifier.task
            row, _ = self._classifier.encode(task, example)
            assert example.label is not None
            label = float(example.label) if task.kind is Kind.REGRESS else int(example.label)  # type: ignore[arg-type]
            for name, value in {**row, "labels": label}.items():
                columns.setdefault(name, []).append(value)
        return columns

    def __getstate__(self) -> dict[str, object]:
        return {}  # `datasets` pickles a transform to tell results apart that it keeps, and it keeps none of ours
