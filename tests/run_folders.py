"""Run folders as runs leave them, written by tests of tables."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np


def write_run(
    outputs: Path,
    method: str = "sft",
    seed: int = 0,
    *,
    task: str = "rte",
    model: str = "tiny",
    key: str | None = None,
    correct: list[int | float | None] | None = None,
    groups: list | None = None,
    curve: list[tuple[int, float]] = (),
    study: str = "demo",
    identity: dict | None = None,
    **changes,
) -> Path:
    """A finished run; `changes` replace keys of `result.json`, `None` included. `identity` is that of `run.json`."""
    key = key or f"{zlib.crc32(repr((method, seed, task, model, changes, identity)).encode()):08x}"
    folder = outputs / study / task / model / method / f"{seed}-{key}"
    folder.mkdir(parents=True)
    correct = [1, 0, 1, 1] if correct is None else correct
    score = 100 * float(np.mean([c or 0 for c in correct]))
    result = {
        "key": key * 4,
        "status": "finished",
        "task": task,
        "model": model,
        "method": method,
        "reward": "label" if method == "ppo" else None,
        "lora": "paper" if method in ("sft", "ppo") else None,
        "seed": seed,
        "metrics": {"accuracy": score / 100},
        "score": score,
        "ci95": [max(0.0, score - 10), min(100.0, score + 10)],
        "n": len(correct),
        "unparsable": 1,
        "majority": 55.0,
        "likelihood_score": score + 2,
        "seconds": {"load": 100.0, "fit": 20.0, "evaluate": 4.0},
        "samples_per_second": 12.5,
        "peak_memory_bytes": 10**9,
        "versions": {},
        "commit": "0" * 40,
    } | changes
    (folder / "result.json").write_text(json.dumps(result))
    if identity is not None:
        tags = {name: result[name] for name in ("task", "model", "method", "reward", "lora") if result[name]}
        record = {"key": result["key"], "tags": tags | {"seed": str(seed)}, "identity": identity}
        (folder / "run.json").write_text(json.dumps(record))
    predictions = [
        {"id": f"validation-{i}", "completion": "x", "label": 1, "reference": 1, "correct": c}
        | ({} if groups is None else {"group": groups[i]})
        for i, c in enumerate(correct)
    ]
    write_lines(folder / "predictions.jsonl", predictions)
    lines = [{"step": i, "examples": x, "seconds": 1.0, "select/score": y} for i, (x, y) in enumerate(curve)]
    write_lines(folder / "metrics.jsonl", lines)
    return folder


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
