"""What the methods behind a trainer of TRL or transformers share: its arguments, our record, resuming."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState

from nlu_ppo import ranks, stopping
from nlu_ppo.config import TrainingConfig
from nlu_ppo.errors import DiskError, ModelError
from nlu_ppo.inference.prefix import pad_id
from nlu_ppo.methods.optimization import build_optimizer, rate_factor
from nlu_ppo.methods.setting import Selector, Setting
from nlu_ppo.models.sharding import frozen_names
from nlu_ppo.progress import bar
from nlu_ppo.storage import SEAL, newest_whole, seal, writing

log = logging.getLogger(__name__)

Optimizers = tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]


def arguments(setting: Setting, method: TrainingConfig, steps: int, rows: int) -> dict[str, Any]:
    """Training arguments of any trainer, for `rows` rows per optimizer step."""
    device, mine = setting.policy.device, rows // ranks.world()
    micro = max(d for d in range(1, method.micro_batch_size + 1) if mine % d == 0)
    return {
        "output_dir": str(setting.recorder.folder.checkpoints),
        "max_steps": steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": mine // micro,
        "max_grad_norm": method.max_grad_norm or 0.0,
        "remove_unused_columns": False,  # the number: the columns that are used are made of it
        "logging_steps": 1,
        "save_strategy": "steps" if method.checkpoint_every else "no",
        "save_steps": method.checkpoint_every or 1,
        "save_total_limit": 2,
        "seed": setting.config.seed,
        "data_seed": setting.config.seed,
        "bf16": False,  # the weights' own type decides, as in decoding and in PPO
        "fp16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": device.type == "cpu",
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": device.type != "cpu",
    }


def optimizers(setting: Setting, method: TrainingConfig, steps: int) -> Optimizers:
    """The method's own optimizer and schedule, in place of the trainer's."""
    optimizer = build_optimizer([p for _, p in setting.policy.trainable()], method)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_factor(method, step, steps)
    )


def need_padding(tokenizer: Any, method: str) -> None:
    """Gives the tokenizer a padding token if it has none.

    Raises:
        ModelError: it has no end-of-sequence token either.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                f"the tokenizer has neither a padding nor an end-of-sequence token, and {method} needs one"
            )
        tokenizer.pad_token_id = pad_id(tokenizer)


def fit(
    setting: Setting,
    method: TrainingConfig,
    steps: int,
    build: Callable[[TrainerCallback], Trainer],
    names: Mapping[str, str],
    selector: Any = None,
) -> None:
    """Trains with the trainer that `build` makes around our callback, from the last checkpoint if there is one.

    Args:
        names: the trainer's names of what it logs, and ours; `loss` must be among them.
        selector: what scores held-out data during training, if not the selection slice.

    Raises:
        Interrupted: a signal has asked the run to end; a checkpoint is written.
        DiskError: there is no room for what training writes.
    """
    folder = setting.recorder.folder
    selector = selector or Selector(setting, method)
    resume = ranks.on_main(
        lambda: newest_whole(sorted(folder.checkpoints.glob("checkpoint-*"), key=_step_of))
    )
    folder.truncate_metrics(_step_of(resume) if resume else -1)
    if getattr(setting.policy, "shards", None) is not None:
        model = setting.policy.model
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen_names(model))
    trainer = build(_Bridge(setting, method, selector, names))
    trainer.remove_callback(PrinterCallback)
    with stopping.at_step_ends():
        if resume is None:
            selector.after(0, 0)
        else:
            log.info("going on from step %d", _step_of(resume))
        if not stopping.agree():
            _train(trainer, resume, steps, method.batch_size, selector)
    stopping.leave_if_requested()
    setting.policy.model.eval()
    selector.restore_best()


def _train(
    trainer: Trainer, resume: Path | None, steps: int, examples_a_step: int, selector: Selector
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


class _Bridge(TrainerCallback):
    """Between a trainer and our run: metrics under our names, selection, its state in checkpoints."""

    def __init__(
        self, setting: Setting, method: TrainingConfig, selector: Selector, names: Mapping[str, str]
    ) -> None:
        self._setting, self._method, self._selector, self._names = setting, method, selector, names
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._bar = bar(total=state.max_steps, initial=state.global_step, desc=self._method.name, unit="step")
        if state.global_step:
            _load_selected(Path(args.output_dir) / f"checkpoint-{state.global_step}", self._selector)
            self._select(state)  # if the run was interrupted before it came to that

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        found = {k: v for k, v in (logs or {}).items() if k in self._names and v is not None}
        values = {self._names[k]: float(v) for k, v in found.items()}
        if "loss" in found:  # the trainer's last word, on the whole training, has none
            self._setting.recorder.log(state.global_step, state.global_step * self._method.batch_size, values)
            shown = {n: f"{values[f'train/{n}']:.3f}" for n in ("loss", "reward") if f"train/{n}" in values}
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update()
            self._select(state)
            if stopping.agree():
                control.should_save = control.should_training_stop = True

    def _select(self, state: TrainerState) -> None:
        step = state.global_step
        self._selector.after(step, step * self._method.batch_size, last=step == state.max_steps)

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"

        def complete() -> None:
            selected = self._selector.state_dict()
            save_file(selected.pop("weights") or {}, folder / "selected.safetensors")  # type: ignore[arg-type]
            (folder / "selected.json").write_text(json.dumps(selected), encoding="utf-8")
            seal(folder)

        ranks.barrier()  # the others have written their random states
        ranks.on_main(complete)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._bar.close()


def _step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _load_selected(checkpoint: Path, selector: Selector) -> None:
    weights = load_file(checkpoint / "selected.safetensors")
    selected = json.loads((checkpoint / "selected.json").read_text(encoding="utf-8"))
    selector.load_state_dict({**selected, "weights": weights or None})
