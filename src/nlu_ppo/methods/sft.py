"""SFT: TRL's SFTTrainer on prompts and gold completions, tokenised as decoding will see them."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from nlu_ppo import stopping
from nlu_ppo.config import SFTConfig
from nlu_ppo.errors import DiskError, ModelError
from nlu_ppo.inference.prefix import pad_id
from nlu_ppo.methods.optimization import build_optimizer, rate_factor, steps_of
from nlu_ppo.methods.setting import Selector, Setting, TrainingStream, finished
from nlu_ppo.progress import bar
from nlu_ppo.storage import SEAL, newest_whole, seal, writing

log = logging.getLogger(__name__)

IGNORED = -100  # label of a token that the loss leaves out: PyTorch's convention


def fit(setting: Setting) -> Setting:
    """Trains the policy in place, from its last checkpoint if there is one.

    Raises:
        Interrupted: a signal has asked the run to end; a checkpoint is written.
        DiskError: there is no room for what training writes.
    """
    method = setting.config.method
    assert isinstance(method, SFTConfig)
    stream = TrainingStream(setting)
    steps = steps_of(method, len(stream))
    selector = Selector(setting, method)
    checkpoints = setting.recorder.folder.checkpoints
    resume = newest_whole(sorted(checkpoints.glob("checkpoint-*"), key=_step_of))
    setting.recorder.folder.truncate_metrics(_step_of(resume) if resume else -1)
    rows = tokenized(setting, stream, method.loss_on)
    trainer = _trainer(setting, method, rows, steps, selector)
    with stopping.at_step_ends():
        if resume is None:
            selector.after(0, 0)
        else:
            log.info("going on from step %d", _step_of(resume))
        if not stopping.requested():
            _train(trainer, resume, steps, method.batch_size, selector)
    stopping.leave_if_requested()
    setting.policy.model.eval()
    selector.restore_best()
    return finished(setting, steps * method.batch_size)


def _train(
    trainer: SFTTrainer, resume: Path | None, steps: int, examples_a_step: int, selector: Selector
) -> None:
    if resume is not None and _step_of(resume) >= steps:
        trainer._load_from_checkpoint(str(resume))  # `train` would add a step where an epoch has steps left
        _load_selected(resume, selector)
        selector.after(steps, steps * examples_a_step, last=True)
        return
    checkpoints = Path(str(trainer.args.output_dir))
    try:
        with writing(checkpoints):
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except DiskError:
        for folder in checkpoints.glob("checkpoint-*"):
            if not (folder / SEAL).exists():  # half a checkpoint, on a full disk
                shutil.rmtree(folder, ignore_errors=True)
        raise


def tokenized(setting: Setting, stream: TrainingStream, loss_on: str) -> Dataset:
    """Rows of `input_ids` and `labels`: prompt, completion, end of sequence; made when they are asked for.

    The loss counts the completion and the end of sequence, or (`all`) the prompt as well.
    """
    numbers = stream.first_epoch()
    stream.prepare(numbers)
    stream.learn_answers()
    if stream.shortened:
        log.warning("%d training prompts lost the end of their longest text to fit", stream.shortened)
    end = [e] if (e := setting.policy.tokenizer.eos_token_id) is not None else []
    return Dataset.from_dict({"number": numbers}).with_transform(_Rows(stream, end, loss_on))


class _Rows:
    """Makes training rows of the numbers of examples."""

    def __init__(self, stream: TrainingStream, end: Sequence[int], loss_on: str) -> None:
        self._stream, self._end, self._loss_on = stream, end, loss_on

    def __call__(self, batch: Mapping[str, list[int]]) -> dict[str, list[list[int]]]:
        columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
        for number in batch["number"]:
            ids, label = self._stream.prompt(number).ids, self._stream.example(number).label
            assert label is not None
            prompter = self._stream.part(number).prompter
            target = [*prompter.completion_ids(prompter.completion(label)), *self._end]
            hidden = list(ids) if self._loss_on == "all" else [IGNORED] * len(ids)
            columns["input_ids"].append([*ids, *target])
            columns["labels"].append([*hidden, *target])
        return columns

    def __getstate__(self) -> dict[str, object]:
        # `datasets` pickles a transform to tell results apart that it keeps. It keeps none of ours, and
        # pickling all prompts would take a gigabyte.
        return {}


def _trainer(
    setting: Setting, method: SFTConfig, rows: Dataset, steps: int, selector: Selector
) -> SFTTrainer:
    policy = setting.policy
    optimizer = build_optimizer([p for _, p in policy.trainable()], method)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(method, step, steps))
    micro = max(d for d in range(1, method.micro_batch_size + 1) if method.batch_size % d == 0)
    tokenizer = policy.tokenizer
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                "the tokenizer has neither a padding nor an end-of-sequence token, and SFT needs one"
            )
        tokenizer.pad_token_id = pad_id(tokenizer)
    arguments = TrlConfig(
        output_dir=str(setting.recorder.folder.checkpoints),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=method.batch_size // micro,
        max_grad_norm=method.max_grad_norm or 0.0,
        max_length=None,  # prompts already fit the context
        dataset_kwargs={"skip_prepare_dataset": True},  # rows are what the collator takes
        remove_unused_columns=False,  # the number: the columns that are used are made of it
        logging_steps=1,
        save_strategy="steps" if method.checkpoint_every else "no",
        save_steps=method.checkpoint_every or 1,
        save_total_limit=2,
        seed=setting.config.seed,
        data_seed=setting.config.seed,
        bf16=False,  # the weights' own type decides, as in decoding and in PPO
        fp16=False,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
        use_cpu=policy.device.type == "cpu",
        dataloader_pin_memory=policy.device.type != "cpu",
    )
    trainer = SFTTrainer(
        model=policy.model,
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        optimizers=(optimizer, schedule),
        callbacks=[_Bridge(setting, method, selector)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class _Bridge(TrainerCallback):
    """Between TRL's trainer and our run: metrics under our names, selection, its state in checkpoints."""

    def __init__(self, setting: Setting, method: SFTConfig, selector: Selector) -> None:
        self._setting, self._method, self._selector = setting, method, selector
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._bar = bar(total=state.max_steps, initial=state.global_step, desc="sft", unit="step")
        if state.global_step:
            _load_selected(Path(args.output_dir) / f"checkpoint-{state.global_step}", self._selector)
            self._select(state)  # if the run was interrupted before it came to that

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        names = {"loss": "train/loss", "grad_norm": "train/grad_norm", "learning_rate": "train/learning_rate",
                 "mean_token_accuracy": "train/token_accuracy", "entropy": "train/entropy"}  # fmt: skip
        values = {names[k]: float(v) for k, v in (logs or {}).items() if k in names}
        if "train/loss" in values:
            self._setting.recorder.log(state.global_step, state.global_step * self._method.batch_size, values)
            self._bar.set_postfix(loss=f"{values['train/loss']:.3f}", refresh=False)
            self._bar.update()
            self._select(state)
            if stopping.requested():
                control.should_save = control.should_training_stop = True

    def _select(self, state: TrainerState) -> None:
        step = state.global_step
        self._selector.after(step, step * self._method.batch_size, last=step == state.max_steps)

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        selected = self._selector.state_dict()
        save_file(selected.pop("weights") or {}, folder / "selected.safetensors")  # type: ignore[arg-type]
        (folder / "selected.json").write_text(json.dumps(selected), encoding="utf-8")
        seal(folder)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._bar.close()


def _step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _load_selected(checkpoint: Path, selector: Selector) -> None:
    weights = load_file(checkpoint / "selected.safetensors")
    selected = json.loads((checkpoint / "selected.json").read_text(encoding="utf-8"))
    selector.load_state_dict({**selected, "weights": weights or None})
