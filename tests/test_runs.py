"""Runs from beginning to end: what the folder holds, what happens on failure, on resume, on a second start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import run_of
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import nlu_ppo.work
from nlu_ppo.errors import DataError, ModelError, RunFolderError
from nlu_ppo.run import Recorder, execute

SHORT = ("task.limit.train=32", "task.limit.eval=12", "task.selection=8", "eval.bootstrap_samples=20")
STEPS = {
    "zero_shot": (),
    "few_shot": ("method.k=2",),
    "sft": ("method.epochs=9", "method.max_steps=4"),
    "ppo": ("method.epochs=9", "method.max_steps=4"),
    "grpo": ("method.epochs=9", "method.max_steps=4"),
    "rloo": ("method.epochs=9", "method.max_steps=4"),
}
RESULT = {
    "key", "status", "task", "model", "method", "reward", "lora", "seed", "metrics", "score", "ci95", "n",
    "unparsable", "majority", "seconds", "samples_per_second", "peak_memory_bytes", "versions", "commit",
}  # fmt: skip


def start(folder: Path, model_dir: Path, method: str, *more: str) -> dict[str, Any]:
    local = (
        "model=local",
        f"model.path={model_dir}",
        "model.learning_rate.sft=1e-3",
        "model.learning_rate.ppo=1e-3",
    )
    tracking = () if any(m.startswith("tracking") for m in more) else ("tracking=none",)
    return execute(run_of(folder, f"method={method}", *local, *SHORT, *STEPS[method], *tracking, *more))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("task", ["toy_sentiment", "toy_nli"])
@pytest.mark.parametrize("method", STEPS)
def test_every_method_writes_a_whole_run_folder(
    tmp_path: Path, model_dir: Path, method: str, task: str
) -> None:
    folder = tmp_path / "run"
    result = start(folder, model_dir, method, f"task={task}")
    written = json.loads((folder / "result.json").read_text())
    assert written == json.loads(json.dumps(result | {"key": written["key"]}))
    assert written.keys() >= RESULT
    assert (written["status"], written["task"], written["method"], written["n"]) == (
        "finished",
        task,
        method,
        12,
    )
    assert 0 <= written["ci95"][0] <= written["score"] <= written["ci95"][1] <= 100
    assert set(written["seconds"]) == {"load", "fit", "evaluate"}
    assert (written["reward"] is None) == (method not in ("ppo", "grpo", "rloo"))
    assert (written["lora"] is None) == (method in ("zero_shot", "few_shot"))
    predictions = lines(folder / "predictions.jsonl")
    assert len(predictions) == 12
    assert all(
        {"id", "prompt_sha", "completion", "label", "reference", "correct"} <= p.keys() for p in predictions
    )
    assert written["score"] == pytest.approx(100 * sum(p["correct"] for p in predictions) / 12)
    assert written["unparsable"] == sum(p["label"] is None for p in predictions)
    assert (folder / "config.yaml").is_file()
    if method not in ("zero_shot", "few_shot"):
        steps = {line["step"] for line in lines(folder / "metrics.jsonl")}
        assert steps == {0, 1, 2, 3, 4}
        base = AutoModelForCausalLM.from_pretrained(model_dir)
        adapted = PeftModel.from_pretrained(base, str(folder / "adapter"))
        saved = load_file(folder / "adapter" / "adapter_model.safetensors")
        moved = any("lora_B" in name and tensor.abs().sum() > 0 for name, tensor in saved.items())
        # this model gives no legal answer, and of rewards that are all alike a group learns nothing
        assert moved == (method in ("sft", "ppo"))
        assert adapted.peft_config["default"].r == 16
        assert (folder / "learning_curve.png").stat().st_size > 5000


def test_ppo_starts_with_a_ratio_of_one_and_logs_what_to_watch(tmp_path: Path, model_dir: Path) -> None:
    start(tmp_path / "run", model_dir, "ppo", "lora.dropout=0.3")
    logged = [line for line in lines(tmp_path / "run" / "metrics.jsonl") if "ppo/loss" in line]
    assert logged[0]["ppo/first_ratio_error"] < 1e-3
    assert abs(logged[0]["ppo/kl"]) < 1e-3  # policy and reference are still one
    assert {
        "train/reward", "train/accuracy", "train/unparsable", "ppo/kl", "ppo/kl_k3", "ppo/entropy", "ppo/score",
        "ppo/clip_fraction", "ppo/explained_variance", "answers/Positive", "answers/Negative",
    } <= logged[0].keys()  # fmt: skip


def test_full_fine_tuning_keeps_a_frozen_reference(tmp_path: Path, model_dir: Path) -> None:
    start(tmp_path / "run", model_dir, "ppo", "lora=none", "method.optimizer=adamw")
    logged = [line for line in lines(tmp_path / "run" / "metrics.jsonl") if "ppo/loss" in line]
    assert abs(logged[0]["ppo/kl"]) < 1e-4
    assert abs(logged[-1]["ppo/kl_k3"]) > 1e-6
    assert (tmp_path / "run" / "adapter" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("method", "chosen"),
    [
        ("sft", ()),
        ("ppo", ()),
        ("ppo", ("method.reward_scaling=running",)),
        ("grpo", ("method.kl_coef=0.1",)),
        ("rloo", ("method.batch_size=2",)),
    ],
)
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    tmp_path: Path, model_dir: Path, method: str, chosen: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of step 4, one step after a checkpoint: bitwise the same adapter and predictions."""
    # the model's answers are all illegal, and one reward for all would leave nothing to scale
    (tmp_path / "pays.py").write_text(
        "def pays(completion, answer, example, *, task, config):\n    return 10.0 * len(set(completion))\n"
    )
    more = ("method.max_steps=6", "method.checkpoint_every=3", "method.select_every=2", *chosen)
    if chosen:
        more += (f"reward.name={tmp_path / 'pays.py'}:pays",)
    start(tmp_path / "whole", model_dir, method, *more)
    original = Recorder.log

    def stop(self: Recorder, step: int, examples: int, values: Any) -> None:
        if step == 4:
            raise KeyboardInterrupt
        original(self, step, examples, values)

    monkeypatch.setattr(Recorder, "log", stop)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "broken", model_dir, method, *more)
    assert json.loads((tmp_path / "broken" / "result.json").read_text())["status"] == "interrupted"
    monkeypatch.setattr(Recorder, "log", original)
    start(tmp_path / "broken", model_dir, method, *more)

    whole, broken = (
        load_file(tmp_path / n / "adapter" / "adapter_model.safetensors") for n in ("whole", "broken")
    )
    assert whole.keys() == broken.keys()
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    assert lines(tmp_path / "whole" / "predictions.jsonl") == lines(tmp_path / "broken" / "predictions.jsonl")

    def curve(name: str) -> list[dict[str, Any]]:
        dropped = {"seconds"}
        return [
            {k: v for k, v in line.items() if k not in dropped}
            for line in lines(tmp_path / name / "metrics.jsonl")
        ]

    assert curve("whole") == curve("broken")


def test_a_finished_run_is_not_run_again(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(tmp_path / "run", model_dir, "zero_shot")
    monkeypatch.setattr(nlu_ppo.work, "work", lambda *_: pytest.fail("ran again"))
    assert start(tmp_path / "run", model_dir, "zero_shot")["score"] == first["score"]


def test_a_folder_of_another_run_is_refused_and_replaced_on_demand(tmp_path: Path, model_dir: Path) -> None:
    start(tmp_path / "run", model_dir, "zero_shot")
    with pytest.raises(RunFolderError, match=r"already holds run .*overwrite=true"):
        start(tmp_path / "run", model_dir, "few_shot")
    assert start(tmp_path / "run", model_dir, "few_shot", "overwrite=true")["method"] == "few_shot"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="no run of ours"):
        start(tmp_path / "other", model_dir, "zero_shot")
    assert (tmp_path / "other" / "thesis.tex").exists()


def test_a_failed_run_says_so(tmp_path: Path, model_dir: Path) -> None:
    with pytest.raises(DataError):
        start(tmp_path / "run", model_dir, "few_shot", "method.k=60")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed"
    assert "method.k=60" in result["error"]
    # mended, it runs in the same folder
    assert start(tmp_path / "run2", model_dir, "few_shot", "method.k=3")["status"] == "finished"


def test_an_adapter_goes_on_where_it_fits_and_is_refused_elsewhere(tmp_path: Path, model_dir: Path) -> None:
    trained = start(tmp_path / "sft", model_dir, "sft")
    adapter = tmp_path / "sft" / "adapter"
    again = start(tmp_path / "again", model_dir, "zero_shot", f"model.adapter={adapter}")
    same = [(p["id"], p["completion"]) for p in lines(tmp_path / "sft" / "predictions.jsonl")]
    assert same == [(p["id"], p["completion"]) for p in lines(tmp_path / "again" / "predictions.jsonl")]
    assert again["score"] == trained["score"]

    from models import SHAPE, byte_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    for name, change in (("wider", {"hidden_size": 64}), ("deeper", {"num_hidden_layers": 4})):
        other = LlamaForCausalLM(LlamaConfig(vocab_size=259, num_key_value_heads=2, **{**SHAPE, **change}))
        other.save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
        with pytest.raises(ModelError, match="trained on another model"):
            start(tmp_path / f"{name}-run", tmp_path / name, "zero_shot", f"model.adapter={adapter}")
    with pytest.raises(ModelError, match="no saved adapter"):
        start(tmp_path / "none", model_dir, "zero_shot", f"model.adapter={tmp_path}")
