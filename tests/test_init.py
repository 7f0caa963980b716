"""`method.init=sft`: where such a run starts, what its reference is, and which SFT run it takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import config_of, run_of
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from nlu_ppo.config import LoraConfig, ModelConfig
from nlu_ppo.errors import ConfigError
from nlu_ppo.identity import run_key, start_config
from nlu_ppo.models.loading import load_policy
from nlu_ppo.run import execute

SMALL = ("task.limit.train=24", "task.limit.eval=6", "task.selection=0", "eval.bootstrap_samples=10",
         "eval.likelihood=false", "tracking=none", "model=local", "model.learning_rate.sft=1e-2")  # fmt: skip


def sft_folders(outputs: Path) -> list[Path]:
    return sorted(outputs.glob("*/toy_sentiment/*/sft/*"))


@pytest.mark.parametrize("lora", ["paper", "none"])
def test_a_run_that_learns_nothing_ends_as_its_sft_run(tmp_path: Path, model_dir: Path, lora: str) -> None:
    """One command trains both, and a second one takes the SFT run that is there."""
    chosen = (*SMALL, f"model.path={model_dir}", f"lora={lora}", "method.max_steps=2", "study=one")
    init = ("method.init=sft", "method.learning_rate=0")
    ppo = run_of(tmp_path / "ppo", "method=ppo", *chosen, *init)
    execute(ppo)
    (found,) = sft_folders(tmp_path)
    written = (found / "result.json").stat().st_mtime_ns
    assert json.loads((found / "result.json").read_text())["key"] == run_key(
        config_of("method=sft", *chosen, f"outputs={tmp_path}")
    )
    name = "adapter_model.safetensors" if lora == "paper" else "model.safetensors"
    before, after = (load_file(folder / "adapter" / name) for folder in (found, ppo.folder))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert (found / "predictions.jsonl").read_text() == (ppo.folder / "predictions.jsonl").read_text()
    steps = [json.loads(line) for line in (ppo.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(abs(line["ppo/kl"]) < 1e-5 for line in steps)
    if lora == "paper":
        assert any(t.abs().max() > 0 for n, t in before.items() if "lora_B" in n)

    other_study = [word.replace("study=one", "study=two") for word in chosen]
    rloo = run_of(tmp_path / "rloo", "method=rloo", *other_study, *init)
    execute(rloo)
    assert sft_folders(tmp_path) == [found]
    assert (found / "result.json").stat().st_mtime_ns == written
    after = load_file(rloo.folder / "adapter" / name)
    assert all(torch.equal(before[n], after[n]) for n in before)


def removed(weights: Path) -> None:
    shutil.rmtree(weights.parent)  # to save room


def flipped(weights: Path) -> None:
    raw = bytearray(weights.read_bytes())
    raw[-50] ^= 1  # safetensors would load it without a word
    weights.write_bytes(raw)


@pytest.mark.promise(
    "weights that a run starts from, damaged or removed",
    "they are not used: those of another study are taken, or the run that they came from is trained again",
)
@pytest.mark.parametrize("hurt", [removed, flipped])
def test_a_start_without_its_weights_is_trained_again(tmp_path: Path, model_dir: Path, hurt: Any) -> None:
    chosen = (*SMALL, f"model.path={model_dir}", "method.init=sft", "method.max_steps=1")
    execute(run_of(tmp_path / "ppo", "method=ppo", *chosen))
    (found,) = sft_folders(tmp_path)
    weights = found / "adapter" / "adapter_model.safetensors"
    before = weights.read_bytes()
    hurt(weights)
    execute(run_of(tmp_path / "rloo", "method=rloo", *chosen))
    assert sft_folders(tmp_path) == [found]
    assert weights.read_bytes() == before


def test_the_reference_stays_the_sft_policy(tmp_path: Path, model_dir: Path) -> None:
    model, lora = ModelConfig(name="m", path=str(model_dir)), LoraConfig(name="l", dropout=0.3)
    saved = load_policy(model, lora, seed=1)
    with torch.no_grad():
        for _, parameter in saved.trainable():
            parameter.normal_(0, 0.1)
    saved.model.save_pretrained(tmp_path)
    ids = torch.arange(5, 25).unsqueeze(0)
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(model_dir)
        bare = base(input_ids=ids).logits
        sft = PeftModel.from_pretrained(base, str(tmp_path)).eval()(input_ids=ids).logits
        assert (sft - bare).abs().max() > 1e-2

        policy = load_policy(model, lora, seed=2, start=tmp_path)
        policy.freeze_reference()
        for _, parameter in policy.trainable():
            parameter.add_(0.05)
        moved = policy.logits(policy.hidden(ids))
        with policy.reference() as reference:
            torch.testing.assert_close(reference.logits(reference.hidden(ids)), sft, rtol=1e-4, atol=1e-5)
        assert torch.equal(policy.logits(policy.hidden(ids)), moved)
        assert (moved - sft).abs().max() > 1e-2


def test_the_key_knows_the_sft_run() -> None:
    plain, init = config_of("method=ppo"), config_of("method=ppo", "method.init=sft")
    assert start_config(plain) is None
    assert run_key(start_config(init)) == run_key(config_of("method=sft"))  # type: ignore[arg-type]
    keys = {
        run_key(config)
        for config in (
            plain,
            init,
            config_of("method=ppo", "method.init=sft", "method.start.epochs=7"),
            config_of("method=ppo", "method.init=sft", "method@method.start=sft_code"),
        )
    }
    assert len(keys) == 4
    assert run_key(config_of("method=ppo", "method.start.epochs=7")) == run_key(plain)
    short = config_of("method=ppo", "method.init=sft", "method.max_steps=5")
    assert run_key(start_config(short)) == run_key(config_of("method=sft", "method.max_steps=5"))  # type: ignore[arg-type]


def test_an_sft_setting_out_of_range_is_named() -> None:
    with pytest.raises(ConfigError, match=r"method\.start\.epochs=-1"):
        config_of("method=ppo", "method.init=sft", "method.start.epochs=-1")


def test_stages_one_task_after_many(tmp_path: Path, model_dir: Path) -> None:
    """docs/concepts.md: SFT on all toy tasks, then PPO on one of them, whose reference is the first stage's policy."""
    chosen = (*SMALL, f"model.path={model_dir}", "method.max_steps=2")
    first = run_of(tmp_path / "all", "task=toys", "method=sft", *chosen)
    execute(first)
    onto = f"model.adapter={first.folder / 'adapter'}"
    second = run_of(tmp_path / "one", "task=toy_nli", "method=ppo", "method.learning_rate=0", *chosen, onto)
    execute(second)
    plain = run_of(tmp_path / "plain", "task=toy_nli", "method=zero_shot", *chosen, onto)
    execute(plain)
    answers = [(run.folder / "predictions.jsonl").read_text() for run in (second, plain)]
    assert answers[0] == answers[1]  # nothing learned: it answers as the first stage does
    steps = [json.loads(line) for line in (second.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(abs(line["ppo/kl"]) < 1e-5 for line in steps)
    assert run_key(second.config) != run_key(
        config_of("task=toy_nli", "method=ppo", "method.learning_rate=0", *chosen)
    )
