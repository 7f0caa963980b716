"""Training teaches the tiny model a toy task: measured, not assumed. The README has three seeds of both tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
from composing import run_of

from nlu_ppo.run import execute

GAIN = 20.0  # points over zero-shot, on either task


def score(folder: Path, task: str, method: str) -> float:
    overrides = ("tracking=none", "eval.likelihood=false", "eval.bootstrap_samples=20")
    return execute(run_of(folder, f"task={task}", f"method={method}", *overrides))["score"]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["toy_sentiment", "toy_nli"])
def test_sft_and_ppo_beat_zero_shot(tmp_path: Path, task: str) -> None:
    zero_shot = score(tmp_path / "zero_shot", task, "zero_shot")
    for method in ("sft", "ppo"):
        assert score(tmp_path / method, task, method) >= zero_shot + GAIN
