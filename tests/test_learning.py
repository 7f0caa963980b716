"""Training teaches the tiny model a toy task: measured, not assumed. The README has three seeds of both tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
from composing import run_of

from nlu_ppo.run import execute

# Points over zero-shot. The goal is 20 for both; PPO reaches 18 (README), so these bars are below the goal.
GAIN = {"sft": 15.0, "ppo": 10.0}


def score(folder: Path, method: str, *more: str) -> float:
    overrides = ("tracking=none", "eval.likelihood=false", "eval.bootstrap_samples=20")
    return execute(run_of(folder, "task=toy_sentiment", f"method={method}", *overrides, *more))["score"]


@pytest.mark.slow
def test_sft_and_ppo_beat_zero_shot(tmp_path: Path) -> None:
    zero_shot = score(tmp_path / "zero_shot", "zero_shot")
    for method, gain in GAIN.items():
        assert score(tmp_path / method, method) >= zero_shot + gain
