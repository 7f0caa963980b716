"""From evaluations to the numbers of `result.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from nlu_ppo.evaluation import Evaluation, evaluate, majority_score
from nlu_ppo.methods.setting import Part, Setting
from nlu_ppo.tasks.averages import GLUE_TASKS, bert_paper_average, glue_average
from nlu_ppo.tasks.record import Task

Z95 = 1.96


@dataclass(frozen=True)
class Outcome:
    """What was found on one split of one task. `majority`: percent, `None` where there is no such answer."""

    task: Task
    split: str
    evaluation: Evaluation
    majority: float | None


def evaluate_part(part: Part, setting: Setting) -> Iterator[Outcome]:
    """Evaluates a setting's policy on every split of one task."""
    config = setting.config
    named = len(setting.parts) > 1 or part is not setting.parts[0]
    for split, examples in part.data.evaluation.items():
        label = f"{part.task.name} {split}" if named else split
        found = evaluate(setting.policy, part.prompter, examples, config.eval, config.seed, progress=label)
        majority = majority_score(part.task, part.data.train_labels, examples)
        yield Outcome(part.task, split, found, majority)


def prediction_lines(outcomes: Sequence[Outcome], others: Sequence[Outcome]) -> Iterator[dict[str, Any]]:
    """The lines of predictions.jsonl. They name their task where there are several; `also` marks `others`."""
    several = len({outcome.task.name for outcome in outcomes}) > 1
    for outcome in outcomes:
        named = {"task": outcome.task.name} if several else {}
        yield from ({**named, **line} for line in outcome.evaluation.predictions)
    for outcome in others:
        yield from (
            {"task": outcome.task.name, "also": True, **line} for line in outcome.evaluation.predictions
        )


def summarize(outcomes: Sequence[Outcome], others: Sequence[Outcome] = ()) -> dict[str, Any]:
    """The headline and all metrics of a run.

    Of one task, its first split is the headline and further splits' metrics go by `<split>/<metric>`. Of
    several, metrics go by `<task>/<metric>`, and the headline is the mean over tasks (for the whole of GLUE
    or SuperGLUE that is the leaderboard's average: a task with two splits or two metrics counts once).

    Args:
        others: of the tasks in `eval.also`: their metrics go by `<task>/<metric>` and change nothing else.
    """
    tasks = {outcome.task.name: outcome.task for outcome in outcomes}
    summary = _one_task(outcomes) if len(tasks) == 1 else _several_tasks(outcomes, list(tasks))
    return {
        **summary,
        "metrics": summary["metrics"] | _metrics_beside(others),
        "unparsable": sum(o.evaluation.unparsable for o in _counted(outcomes)),
        "shortened": sum(o.evaluation.shortened for o in _counted(outcomes)),
        "n": sum(o.evaluation.n for o in _counted(outcomes)),
    }


def _counted(outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    """The outcomes that the headline is made of."""
    return outcomes if len({o.task.name for o in outcomes}) > 1 else outcomes[:1]


def _one_task(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    first = outcomes[0]
    metrics = dict(first.evaluation.metrics)
    for other in outcomes[1:]:
        metrics |= {f"{other.split}/{name}": value for name, value in other.evaluation.metrics.items()}
    return {
        "metrics": metrics,
        "score": first.evaluation.score,
        "ci95": list(first.evaluation.interval),
        "likelihood_score": first.evaluation.likelihood,
        "majority": first.majority,
    }


def _several_tasks(outcomes: Sequence[Outcome], tasks: Sequence[str]) -> dict[str, Any]:
    by_task = {name: [o for o in outcomes if o.task.name == name] for name in tasks}
    metrics: dict[str, float] = {}
    for name, found in by_task.items():
        for index, outcome in enumerate(found):
            prefix = name if index == 0 else f"{name}/{outcome.split}"
            metrics |= {f"{prefix}/{key}": value for key, value in outcome.evaluation.metrics.items()}
    score = _mean_over(by_task, lambda o: o.evaluation.score)
    assert score is not None
    margin = Z95 * _standard_error(by_task)
    return {
        "metrics": metrics | _averages(by_task),
        "score": score,
        "ci95": [score - margin, score + margin],
        "likelihood_score": _mean_over(by_task, lambda o: o.evaluation.likelihood),
        "majority": _mean_over(by_task, lambda o: o.majority),
    }


def _metrics_beside(others: Sequence[Outcome]) -> dict[str, float]:
    """Metrics, as fractions, with what a score needs beside it, which the headline has elsewhere."""
    metrics: dict[str, float] = {}
    seen: set[str] = set()
    for outcome in others:
        name, found = outcome.task.name, outcome.evaluation
        prefix = f"{name}/{outcome.split}" if name in seen else name
        seen.add(name)
        values = {
            **found.metrics,
            "ci95_low": found.interval[0] / 100,
            "ci95_high": found.interval[1] / 100,
            "n": found.n,
            "unparsable": found.unparsable,
            "shortened": found.shortened,
        }
        if outcome.majority is not None:
            values["majority"] = outcome.majority / 100
        metrics |= {f"{prefix}/{key}": value for key, value in values.items()}
    return metrics


def _averages(by_task: Mapping[str, Sequence[Outcome]]) -> dict[str, float]:
    """GLUE's two averages, as fractions, where all of its tasks are there."""
    if set(by_task) != set(GLUE_TASKS):
        return {}
    means: dict[str, Any] = {
        name: [o.evaluation.metrics["score"] for o in found]
        if len(found) > 1
        else found[0].evaluation.metrics
        for name, found in by_task.items()
    }
    return {"glue_average": glue_average(means), "bert_paper_average": bert_paper_average(means)}


def _mean_over(
    by_task: Mapping[str, Sequence[Outcome]], value: Callable[[Outcome], float | None]
) -> float | None:
    """Mean over tasks of the mean over their splits; `None` if any value is missing: no average without it."""
    values = [[value(outcome) for outcome in found] for found in by_task.values()]
    if any(v is None for row in values for v in row):
        return None
    return fmean(fmean(v for v in row if v is not None) for row in values)


def _standard_error(by_task: Mapping[str, Sequence[Outcome]]) -> float:
    """Of the mean over tasks, whose errors are independent: each from the width of its own interval."""
    variance = 0.0
    for found in by_task.values():
        for outcome in found:
            low, high = outcome.evaluation.interval
            variance += ((high - low) / (2 * Z95) / len(found)) ** 2
    return variance**0.5 / len(by_task)
