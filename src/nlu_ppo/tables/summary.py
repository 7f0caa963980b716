"""What a single run prints at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nlu_ppo.tables.collect import read_jsonl
from nlu_ppo.tables.readings import finite


def before_and_after(folder: Path, result: Mapping[str, Any]) -> str:
    """A few lines: score with interval, what training changed on the held-out slice, where everything is."""
    low, high = result["ci95"]
    lines = [
        f"{result['task']} · {result['model']} · {result['method']} · seed {result['seed']}",
        f"  score          {result['score']:6.1f}   95% interval {low:.1f} to {high:.1f}, n={result['n']}",
    ]
    first = _first_selection(folder)
    if first is not None and "select_score" in result.get("best", {}):
        best = result["best"]
        lines += [
            f"  before         {first:6.1f}   untrained, on the slice held out of train",
            f"  after          {best['select_score']:6.1f}   at step {best['step']:.0f}, on the same slice",
        ]
    if result["likelihood_score"] is not None:
        lines.append(f"  by likelihood  {result['likelihood_score']:6.1f}   most likely legal answer")
    if result["majority"] is not None:
        lines.append(f"  majority       {result['majority']:6.1f}   always the commonest training label")
    unparsable = 100 * result["unparsable"] / result["n"]
    lines.append(f"  unparsable     {unparsable:6.1f}   percent of the answers")
    if found := result.get("perplexity"):
        read = f"per token of {found['text']}, windows of {found['window']}, stride {found['stride']}"
        lines.append(f"  perplexity     {found['value']:6.1f}   {read}")
    if result.get("shortened"):
        lines.append(f"  shortened      {result['shortened']:6d}   prompts lost the end of a text to fit")
    lines += _further(result["metrics"])
    lines += _submission(result)
    lines.append(f"  run folder     {folder}")
    return "\n".join(lines)


def _further(metrics: Mapping[str, float]) -> list[str]:
    """A line for every split of the tasks in `eval.also`."""
    names = [key.removesuffix("/ci95_low") for key in metrics if key.endswith("/ci95_low")]
    width = max([13, *map(len, names)])
    return [
        f"  {name:<{width}}  {100 * metrics[f'{name}/score']:6.1f}   "
        f"95% interval {100 * metrics[f'{name}/ci95_low']:.1f} to {100 * metrics[f'{name}/ci95_high']:.1f}, "
        f"n={metrics[f'{name}/n']:.0f}"
        for name in names
    ]


def _submission(result: Mapping[str, Any]) -> Iterator[str]:
    """A line for each file of a submission, also for those that the run could not write."""
    metrics = result.get("metrics", {})
    for name in metrics:
        if name.startswith("submission/") and name.endswith("/rows"):
            file = name.split("/")[1]
            unparsable = metrics[f"submission/{file}/unparsable"]
            yield f"  submission     {file}: {metrics[name]} rows, {unparsable} of them unparsable"
    for file in result.get("submission_missing", {}):
        yield f"  submission     {file}: missing, as its examples are"


def _first_selection(folder: Path) -> float | None:
    """The selection score before the first step."""
    first = (line for line in read_jsonl(folder / "metrics.jsonl") if line.get("step") == 0)
    return next((score for line in first if (score := finite(line.get("select/score"))) is not None), None)
