"""`python -m benchmarks.algorithms`: SFT, PPO, GRPO and RLOO side by side, each in a process of its own.

Every method gets 16 rows per optimizer step, as paper A's table 3: of SFT 16 examples, of PPO 16 completions of 16
examples, of GRPO two groups of 8, of RLOO eight pairs. All see `--examples` training examples. Writes
docs/algorithms.md: the score, the seconds of a step (median over steps, without those that score the selection
slice), the seconds of the whole fit, and the process's peak memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import describe

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "algorithms.md"
ROWS = 16  # per optimizer step
EXAMPLES = {"sft": 16, "ppo": 16, "grpo": 2, "rloo": 8}  # of a step, whose rows they make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", default="toy_sentiment,toy_nli", help="tasks, separated by commas")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--examples", type=int, default=1600, help="training examples that each method sees")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=PAGE)
    parser.add_argument("more", nargs="*", help="further overrides of train.py")
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as outputs:
        for task in asked.tasks.split(","):
            for method in EXAMPLES:
                print(f"{task} {method}", flush=True)
                rows.append(run(task, method, asked, Path(outputs)))
    asked.out.write_text(page(rows, asked), encoding="utf-8")
    print(asked.out.read_text(encoding="utf-8"))


def run(task: str, method: str, asked: argparse.Namespace, outputs: Path) -> dict[str, Any]:
    """One training run in a process of its own, and what it came to."""
    folder = outputs / task / method
    settings = [
        f"task={task}", f"model={asked.model}", f"method={method}", f"seed={asked.seed}", "tracking=none",
        f"method.batch_size={EXAMPLES[method]}", f"method.max_steps={asked.examples // EXAMPLES[method]}",
        "method.epochs=1000", "method.checkpoint_every=0", f"outputs={outputs}", f"hydra.run.dir={folder}",
    ]  # fmt: skip
    log = outputs / f"{task}-{method}.log"
    with log.open("w") as stream:
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *settings, *asked.more],
            stdout=stream, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    if done.returncode:
        sys.exit(f"{task} {method} failed:\n{log.read_text()[-2000:]}")
    result = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {**result, "method": method, "task": task, "step": seconds_per_step(lines)}


def seconds_per_step(lines: list[dict[str, Any]]) -> float:
    """Median time between the logs of two steps, where no scoring of the selection slice lies between them."""
    found = []
    for before, after in itertools.pairwise(lines):
        both = "train/learning_rate" in before and "train/learning_rate" in after
        if both and after["step"] == before["step"] + 1:
            found.append(after["seconds"] - before["seconds"])
    return statistics.median(found)


def page(rows: list[dict[str, Any]], asked: argparse.Namespace) -> str:
    """The page in Markdown."""
    table = [
        "| task | method | score | 95% interval | unparsable | examples a step | seconds a step | against SFT | "
        "seconds of the fit | peak memory, MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    sft = {row["task"]: row["step"] for row in rows if row["method"] == "sft"}
    for row in rows:
        low, high = row["ci95"]
        table.append(
            f"| {row['task']} | {row['method']} | {row['score']:.1f} | {low:.1f} to {high:.1f} | {row['unparsable']} "
            f"| {EXAMPLES[row['method']]} | {row['step']:.3f} | {row['step'] / sft[row['task']]:.2f} "
            f"| {row['seconds']['fit']:.0f} | {row['peak_memory_bytes'] / 1e6:.0f} |"
        )
    versions, machine = rows[0]["versions"], describe(threads=int(os.environ.get("OMP_NUM_THREADS", "0")))
    hardware = f"{machine['processor']}, {machine['cores']} cores"
    return f"""# Algorithms side by side

<!-- Written by `python -m benchmarks.algorithms --examples {asked.examples}`. -->

SFT, PPO, GRPO and RLOO with `model={asked.model}`, {asked.examples} training examples each, {ROWS} rows per optimizer
step, seed {asked.seed}; one run each, one after the other, each in a process of its own. {hardware};
torch {versions.get("torch")}, transformers {versions.get("transformers")}, TRL {versions.get("trl")}.

{chr(10).join(table)}

- PPO is our own engine, with four passes over each batch. SFT, GRPO and RLOO are TRL's trainers; what GRPO and RLOO
  sample comes from the decoder that all methods share, and their loss is computed on padded rows, without shared
  prefixes.
- A step of GRPO has {EXAMPLES["grpo"]} examples in it and one of PPO {EXAMPLES["ppo"]}. So for the same examples GRPO
  takes {EXAMPLES["ppo"] // EXAMPLES["grpo"]} times as many steps.
- Seconds a step: the median over steps, without scoring of the selection slice, which the seconds of the fit hold.
  Peak memory is that of the process, with its libraries.
- Settings are those of `conf/method/`. Those of paper A's GRPO are not found. Its table 3 (7B, one A100) has 4.124
  seconds a step for SFT, 4.299 for PPO, 5.155 for GRPO.
- One seed says little of the order of methods: the interval is over examples only.
"""


if __name__ == "__main__":
    main()
