"""`fuzz_with_atheris.py`, bounded, where atheris is installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from submissions import write_benchmarks

SCRIPT = Path(__file__).with_name("fuzz_with_atheris.py")
FAULT = "Inputs that coverage-guided fuzzing finds"
FILES = {"sst2": "glue/SST-2/dev.tsv", "multirc": "superglue/MultiRC/val.jsonl", "record": "superglue/ReCoRD/val.jsonl",
         "wsc": "superglue/WSC/val.jsonl"}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.promise(FAULT, "The answer parser and the readers of raw files give a value or an error of ours")
@pytest.mark.parametrize("target", ["answers", "squad", "financial_phrasebank", *FILES])
def test_nothing_crashes(target: str, tmp_path: Path, full: bool, figures: dict[str, Any]) -> None:
    pytest.importorskip("atheris", reason="atheris isn't installed: pip install -e '.[fuzz]'")
    runs = (200_000 if target == "answers" else 20_000) if full else 2000
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    if target in FILES:
        valid = write_benchmarks(tmp_path / "valid", train=2, test=2) / FILES[target]
        (corpus / "valid").write_bytes(valid.read_bytes())
    done = subprocess.run(
        [sys.executable, str(SCRIPT), target, str(runs), str(corpus)], cwd=tmp_path, capture_output=True, text=True,
        check=False, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    executed = int(re.findall(r"Done (\d+) runs", done.stderr)[-1])
    assert executed >= runs * 0.9
    figures[f"executions of {target}"] = executed
    figures[f"crashes of {target}"] = len(list(tmp_path.glob("crash-*")))
