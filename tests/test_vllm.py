"""`model.decoder=vllm`: what is handed to it and taken from it, and a clear word where it isn't there.

vLLM itself needs a CUDA GPU. Its place is taken by vllm_stand_in/, which decodes with transformers from the same files.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from composing import config_of, run_of

from nlu_ppo.config import LoraConfig
from nlu_ppo.errors import ConfigError
from nlu_ppo.inference.decoder import generate
from nlu_ppo.inference.vllm_decoder import VllmDecoder
from nlu_ppo.models.loading import load_policy
from nlu_ppo.run import build_run, execute

SMALL = (
    "task=toy_sentiment", "model=tiny", "tracking=none", "task.limit.train=32", "task.limit.eval=12",
    "task.selection=4", "eval.bootstrap_samples=20",
)  # fmt: skip


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "vllm_stand_in"))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        del sys.modules[name]


def answers(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_its_absence_gets_a_clear_word(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.decoder=vllm needs the package vllm and a CUDA GPU"):
        execute(run_of(tmp_path / "run", *SMALL, "method=zero_shot", "model.decoder=vllm"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("method=sft", "lora=none"), "lora=none"),
        (("method=zero_shot", "model.shard=true"), r"model\.shard=true"),
        (("method=sft", "model=bert_base"), r"model\.kind=encoder"),
    ],
)
def test_what_it_could_not_decode_is_refused(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=f"model.decoder=vllm doesn't go with {said}"):
        build_run(config_of("task=toy_sentiment", *arguments, "model.decoder=vllm"), Path("nowhere"))


@pytest.mark.usefixtures("stand_in")
def test_greedy_answers_are_those_of_our_own_decoder(tmp_path: Path) -> None:
    found = {}
    for decoder in ("own", "vllm"):
        run = run_of(tmp_path / decoder, *SMALL, "method=few_shot", "method.k=2", f"model.decoder={decoder}")
        execute(run)
        found[decoder] = answers(run.folder)
    assert found["own"] == found["vllm"]
    assert len(found["own"]) == 12


@pytest.mark.usefixtures("stand_in")
def test_ppo_draws_with_it_from_the_adapter_as_it_is_by_then(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", *SMALL, "method=ppo", "method.max_steps=2", "model.decoder=vllm")
    result = execute(run)
    assert result["status"] == "finished"
    steps = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    ratios = [line["ppo/first_ratio_error"] for line in steps if "ppo/kl" in line]
    assert len(ratios) == 2
    assert max(ratios) < 1e-3  # old log-probabilities come from the training path


@pytest.mark.usefixtures("stand_in")
def test_an_adapter_that_changes_is_handed_over_again() -> None:
    config, lora = config_of("model=tiny").model, LoraConfig("paper")
    policy = load_policy(config, lora, 0)
    policy.model.eval()  # a new adapter's dropout is on
    policy.decoder = VllmDecoder(policy, config, lora, 0)
    ids = policy.tokenizer("a fine film")["input_ids"]
    completions = []
    for spread in (0.0, 0.3, 0.3):
        with torch.no_grad():
            for name, parameter in policy.trainable():
                if "lora_B" in name:
                    parameter.normal_(0.0, spread)
        found = generate(policy, [ids], 12)
        assert found == generate(policy, [ids], 12)
        completions += found
        decoder, policy.decoder = policy.decoder, None
        assert found == generate(policy, [ids], 12)
        policy.decoder = decoder
    assert len(set(map(tuple, completions))) > 1
    assert policy.decoder._sendings == 3
