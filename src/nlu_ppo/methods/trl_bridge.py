"""What the methods behind a trainer of TRL or transformers share: its arguments, our record, resuming."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState

from nlu_ppo import ranks, stopping
from nlu_ppo.config import TrainingConfig
from nlu_ppo.errors import DiskError, ModelError, NotFiniteError, TrainingDivergedError
from nlu_ppo.inference.prefix import pad_id
from nlu_ppo.methods.optimization import build_optimizer, diverged, rate_factor
from nlu_ppo.methods.setting import Selector, Setting
from nlu_ppo.models.room import ADVICE, NoRoomError, first_line, is_out_of_memory
from nlu_ppo.models.sharding import frozen_names
from nlu_ppo.progress import bar
from nlu_ppo.storage import SEAL, newest_whole, seal, writing
from nlu_ppo.tracking.folder import RunFolder

log = logging.getLogger(__name__)

WORK = "training"  # what the rows of a forward pass are for
Optimizers = tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]


def arguments(setting: Setting, method: TrainingConfig, steps: int, rows: int) -> dict[str, Any]:
    """Training arguments of any trainer, for `rows` rows per optimizer step."""
    device, mine = setting.policy.device, rows // ranks.world()
    micro = _micro_batch(setting, method, mine)
    return {
        "output_dir": str(setting.recorder.folder.checkpoints),
        "max_steps": steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": mine // micro,
        "max_grad_norm": method.max_grad_norm or 0.0,
        "remove_unused_columns": False,  # the number: the columns that are used are made of it
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # or a loss that is NaN is logged as 0
        "save_strategy": "steps" if method.checkpoint_every else "no",
        "save_steps": method.checkpoint_every or 1,
        "save_total_limit": 2,
        "seed": setting.config.seed,
        "data_seed": setting.config.seed,
        "bf16": False,  # the weights' own type decides, as in decoding and in PPO
        "fp16": False,
        "gradient_checkpointing": False,  # ours, which leaves decoding its cache
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

    Where a forward pass doesn't fit into memory, training goes on from the last checkpoint, or starts again, with half
    the rows in it and twice the passes in a step.

    Args:
        build: is called anew for every attempt.
        names: the trainer's names of what it logs, and ours; `loss` must be among them.
        selector: what scores held-out data during training, if not the selection slice.

    Raises:
        Interrupted: a signal has asked the run to end; a checkpoint is written.
        DiskError: there is no room for what training writes.
        NoRoomError: not even one row of a forward pass fits into memory.
    """
    folder, room = setting.recorder.folder, setting.policy.room
    selector = selector or Selector(setting, method)
    if method.gradient_checkpointing:
        setting.policy.checkpoint_layers()
    if getattr(setting.policy, "shards", None) is not None:
        model = setting.policy.model
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen_names(model))
    resume = ranks.on_main(_newest, folder)
    folder.truncate_metrics(*(_step_of(resume), _read_selected(resume)["scored"]) if resume else (-1, -1))
    if resume is not None:
        room.found |= _read_selected(resume).get("room", {})
    with stopping.at_step_ends():
        if resume is None:
            selector.after(0, 0)
        else:
            log.info("going on from step %d", _step_of(resume))
        start = _Start(setting, selector)
        while not stopping.agree():
            trainer = build(_Bridge(setting, method, start, names))
            said = _attempt(trainer, resume, steps, method.batch_size, start)
            if said is None:
                break
            setting.recorder.repeated = max(setting.recorder.repeated, trainer.state.global_step)
            micro = trainer.args.per_device_train_batch_size
            del trainer  # with its optimizer
            room.halve(WORK, micro, said)
            start.put_back()
            resume = _newest(folder)
    stopping.leave_if_requested()
    setting.policy.model.eval()
    selector.restore_best()


class _Start:
    """What training starts from, for the case that it has to start again with smaller micro-batches."""

    def __init__(self, setting: Setting, selector: Selector) -> None:
        self.selector = selector
        self._policy, self._recorder = setting.policy, setting.recorder
        self._weights, self._selected = setting.policy.state_dict(), selector.state_dict()  # on the CPU
        self._again = False

    def put_back(self) -> None:
        self._again = True
        self._policy.model.zero_grad(set_to_none=True)
        self._policy.load_state_dict(self._weights)
        self.restore(self._selected)

    def restore(self, selected: Mapping[str, object]) -> None:
        """Puts the selection back to what it was at a checkpoint, or at the start."""
        seconds = self._recorder.fit_seconds_before
        self.selector.load_state_dict(dict(selected))
        if self._again:  # this process has counted the time itself
            self._recorder.fit_seconds_before = seconds


def _attempt(
    trainer: Trainer, resume: Path | None, steps: int, examples_a_step: int, start: _Start
) -> str | None:
    """Trains to the end, or gives the words of an error that says that memory is short."""
    trainer.remove_callback(PrinterCallback)
    try:
        _train(trainer, resume, steps, examples_a_step, start)
    except NoRoomError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if ranks.world() > 1:  # the others wait in the middle of a step
            raise NoRoomError(
                f"out of memory in training ({first_line(error)}): with several processes a smaller "
                f"method.micro_batch_size has to be asked for; or {ADVICE}"
            ) from error
        return first_line(error)
    return None


def _micro_batch(setting: Setting, method: TrainingConfig, rows: int) -> int:
    """Rows of a forward pass: they divide `rows`, and are not more than wanted, or than are known to fit."""
    size = setting.policy.room.size(WORK, method.micro_batch_size, rows)
    return max(d for d in range(1, size + 1) if rows % d == 0)


def _newest(folder: RunFolder) -> Path | None:
    return newest_whole(sorted(folder.checkpoints.glob("checkpoint-*"), key=_step_of))


def _train(trainer: Trainer, resume: Path | None, steps: int, examples_a_step: int, start: _Start) -> None:
    if resume is not None and _step_of(resume) >= steps:
        trainer._load_from_checkpoint(str(resume))  # `train` would add a step where an epoch has steps left
        _load_selected(resume, start)
        start.selector.after(steps, steps * examples_a_step, last=True)
        return
    checkpoints = Path(str(trainer.args.output_dir))
    try:
        with writing(checkpoints):
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except (NotFiniteError, TrainingDivergedError) as error:
        raise diverged(trainer.state.global_step + 1, error) from error
    except DiskError:
        for folder in checkpoints.glob("checkpoint-*"):
            if not (folder / SEAL).exists():  # half a checkpoint, on a full disk
                shutil.rmtree(folder, ignore_errors=True)
        raise


class _Bridge(TrainerCallback):
    """Between a trainer and our run: metrics under our names, selection, its state in checkpoints."""

    def __init__(
        self, setting: Setting, method: TrainingConfig, start: _Start, names: Mapping[str, str]
    ) -> None:
        self._setting, self._method, self._names = setting, method, names
        self._start, self._selector = start, start.selector
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._bar = bar(total=state.max_steps, initial=state.global_step, desc=self._method.name, unit="step")
        if state.global_step:
            _load_selected(Path(args.output_dir) / f"checkpoint-{state.global_step}", self._start)
            self._select(state)  # if the run was interrupted before it came to that

    def on_pre_optimizer_step(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """What is NaN or infinite never moves the weights."""
        gradients = [p.grad for _, p in self._setting.policy.trainable() if p.grad is not None]
        if not _finite(gradients):
            raise TrainingDivergedError(
                "the loss or its gradient is no longer finite: lower method.learning_rate, or set method.max_grad_norm"
            )

    def on_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not _finite([p for _, p in self._setting.policy.trainable()]):
            raise TrainingDivergedError("it moved weights beyond what is finite: lower method.learning_rate")

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        found = {k: v for k, v in (logs or {}).items() if k in self._names and v is not None}
        values = {self._names[k]: float(v) for k, v in found.items()}
        if "loss" in found:  # the trainer's last word, on the whole training, has none
            room, rows = self._setting.policy.room, args.per_device_train_batch_size
            room.tell(WORK, self._method.micro_batch_size, rows)
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
            selected = {**self._selector.state_dict(), "room": self._setting.policy.room.found}
            save_file(selected.pop("weights") or {}, folder / "selected.safetensors")  # type: ignore[arg-type]
            (folder / "selected.json").write_text(json.dumps(selected), encoding="utf-8")
            self._setting.recorder.folder.keep_metrics()
            seal(folder)

        ranks.barrier()  # the others have written their random states
        ranks.on_main(complete)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._bar.close()


def _finite(tensors: Sequence[torch.Tensor]) -> bool:
    return not tensors or bool(torch.stack([torch.isfinite(t).all() for t in tensors]).all())


def _step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _read_selected(checkpoint: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((checkpoint / "selected.json").read_text(encoding="utf-8"))
    return found


def _load_selected(checkpoint: Path, start: _Start) -> None:
    weights = load_file(checkpoint / "selected.safetensors")
    start.restore({**_read_selected(checkpoint), "weights": weights or None})
