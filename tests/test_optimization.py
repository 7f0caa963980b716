"""Learning rates of a run, against numbers worked out by hand, and as a run takes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from composing import config_of, run_of
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nlu_ppo.config import TrainingConfig
from nlu_ppo.methods.optimization import build_optimizer, rate_factor
from nlu_ppo.run import execute

# Share of the peak at steps 0, 1, 2, 11, 19 of 20. Text: two steps of warmup, then 0.1 + 0.45 (1 + cos(pi d)) with
# d = (step - 2) / 18, that is 0, 1/2 and 17/18; cos(pi 17/18) = -cos(10 degrees) = -0.984808.
STEPS = (0, 1, 2, 11, 19)
TEXT = (0.5, 1.0, 1.0, 0.55, 0.106837)
CODE = (1.0, 1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("choice", "expected"), [("ppo", CODE), ("ppo_text", TEXT), ("sft", TEXT), ("sft_code", CODE)]
)
def test_learning_rates_of_paper_a(choice: str, expected: tuple[float, ...]) -> None:
    method = config_of(f"method={choice}").method
    assert isinstance(method, TrainingConfig)
    found = [rate_factor(method, step, 20) for step in STEPS]
    assert found == pytest.approx(expected, abs=1e-6)
    assert method.learning_rate == config_of(f"method={choice.split('_')[0]}").method.learning_rate


def test_text_and_code_differ_in_the_schedule_only() -> None:
    spelled_out = config_of("method=ppo", "method.warmup=0.1", "method.schedule=cosine")
    assert config_of("method=ppo_text").method == spelled_out.method


def test_linear_by_hand() -> None:
    method = config_of("method=ppo", "method.warmup=0.2", "method.schedule=linear").method
    # of 10 steps two warm up, then from 1 down by 1/8 a step
    assert [rate_factor(method, step, 10) for step in (0, 1, 2, 6, 9)] == [0.5, 1.0, 1.0, 0.5, 0.125]


def test_adamw_is_fused_on_cuda_only() -> None:
    method = config_of("method=ppo", "method.optimizer=adamw").method
    assert isinstance(method, TrainingConfig)
    here = nn.Parameter(torch.zeros(2))
    with FakeTensorMode():  # CUDA without a GPU: tensors without data
        there = nn.Parameter(torch.empty(2, device="cuda"))
        assert build_optimizer([there, there], method).defaults["fused"] is True
        assert build_optimizer([here, there], method).defaults["fused"] is None
    assert build_optimizer([here], method).defaults["fused"] is None


def test_a_run_takes_these_rates(tmp_path: Path, model_dir: Path) -> None:
    execute(
        run_of(
            tmp_path / "run", "method=ppo_text", "method.max_steps=10", "method.learning_rate=2e-4", "model=local",
            f"model.path={model_dir}", "tracking=none", "task.selection=0", "task.limit.eval=4",
            "method.epochs=9", "task.limit.train=32", "eval.likelihood=false", "eval.bootstrap_samples=10",
            "method.batch_size=4", "method.minibatch_size=4", "method.ppo_epochs=1",
        )
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    # one step of warmup, then d = (step - 1) / 9
    expected = [2e-4, 2e-4, 2e-4 * (0.1 + 0.45 * (1 + 0.939693)), 2e-4 * (0.1 + 0.45 * (1 + 0.766044))]
    assert [line["train/learning_rate"] for line in lines][:4] == pytest.approx(expected, rel=1e-5)
