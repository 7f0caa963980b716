"""The table of the demo, from nothing: what `make reproduce-table TABLE=demo` gives is what is committed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from composing import ROOT

from nlu_ppo.tables import build_table, collect, load_expected

LEAVE_OUT = "NLU_PPO_NO_REPRODUCE"
GAIN = 20.0  # points over zero-shot that training brings, on either task


@pytest.mark.slow
@pytest.mark.skipif(
    bool(os.environ.get(LEAVE_OUT)) and not os.environ.get("CI"),
    reason=f"{LEAVE_OUT} is set: trains for about four minutes",
)
def test_the_demo(tmp_path):
    done = subprocess.run(
        [
            *("make", "reproduce-table", "TABLE=demo", f"OUTPUTS={tmp_path}", "ARGS=tracking=none"),
            # with this interpreter, whatever environment it is of
            *(f"BIN={Path(sys.executable).parent}", "STAMP="),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    expected = load_expected("demo")
    table = build_table(collect(tmp_path, "demo"), expected=expected)
    assert [verdict.state for verdict in table.verdicts] == ["ok"] * 8
    scores = {verdict.demand.cell[:3]: verdict.found for verdict in table.verdicts}
    for task in ("toy_sentiment", "toy_nli"):
        for method in ("sft", "ppo"):
            assert scores[task, "tiny", method] >= scores[task, "tiny", "zero_shot"] + GAIN
    for name in ("table.html", "table.md", "table.tex", "table.csv", "metrics.csv", "scores.png"):
        assert (tmp_path / "demo" / "tables" / name).stat().st_size > 0
    # What the tolerances are there for: a method that learns nothing is out of them.
    by_cell = {demand.cell[:3]: demand for demand in expected.demands}
    for (task, model, method), demand in by_cell.items():
        if method in ("sft", "ppo"):
            assert demand.value - demand.tolerance > by_cell[task, model, "few_shot"].value
