"""docs/tasks.md from the records. `python -m nlu_ppo.reference` writes it."""

from __future__ import annotations

from collections.abc import Iterator

from nlu_ppo.markdown import prose, table
from nlu_ppo.prompting import Prompter
from nlu_ppo.tasks.record import OPEN, Kind, Task
from nlu_ppo.tasks.registry import TASK_GROUPS, TASKS

BENCHMARKS = {
    "glue": "GLUE",
    "super_glue": "SuperGLUE",
    "squad": "SQuAD",
    "transfer": "Transfer set",
    "toy": "generated",
}
METRICS = {
    "accuracy": "accuracy",
    "em": "exact match",
    "f1": "F1",
    "f1_macro": "macro-F1 over the fixed classes",
    "f1a": "F1 over all answers of the split",
    "gender_parity": "gender parity",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}
SPLITS = ("train", "validation", "test")

INTRODUCTION = f"""\
# Tasks

<!-- Written by `make docs` from the records in src/nlu_ppo/tasks/: edit those, not this page. -->

`task=NAME` chooses one; one of your own is [a YAML file](own_data.md). All are put as short texts that the
model continues; a record says how, and prompt, gold answer, reward and metric all come from it.
`python -m nlu_ppo.tasks show NAME` prints a whole prompt, with `--data-dir` or `--hub` one of a real example,
and with `--model` its tokens.

The score of a task is the mean of its metrics, unless it says otherwise. Sizes are those of the release, as the
hub serves it; a run takes fewer with `task.limit.train` and `task.limit.eval`. Examples come from the hub, or
with `task.source=raw task.data_dir=DIR` from the benchmark's own files below `DIR`. Test splits without labels
are not scored but handed in ([how](concepts.md#submission)).

Every prompt begins with the instruction and the line on the answer's form, and ends in `{OPEN}`.
"""


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION, _overview(), *_groups()]
    for task in TASKS.values():
        parts += _section(task)
    return "\n".join(parts).rstrip() + "\n"


def _overview() -> str:
    rows = [
        (
            f"[`{task.name}`](#{task.name})",
            BENCHMARKS.get(task.benchmark, task.benchmark),
            ", ".join(METRICS.get(name, name) for name in task.metrics),
            _answers(task),
            *(_size(task, split) for split in SPLITS),
        )
        for task in TASKS.values()
    ]
    return table(("Task", "Benchmark", "Metrics", "Answers", "Train", "Validation", "Test"), rows)


def _answers(task: Task) -> str:
    if task.kind is Kind.CLASSIFY:
        return " / ".join(task.verbalizers)
    if task.kind is Kind.REGRESS:
        return f"a number from {task.low:.1f} to {task.high:.1f}"
    return "one of the listed names" if task.kind is Kind.CHOOSE else "words of the text"


def _size(task: Task, split: str) -> str:
    """Rows of a split, and of MNLI's mismatched one."""
    found = [size for name, size in task.sizes.items() if name.startswith(split)]
    return " + ".join(f"{size:,}" for size in found) or "-"


def _groups() -> Iterator[str]:
    yield "Choices that stand for several tasks, learnt by one model:\n"
    yield table(
        ("Choice", "Tasks"),
        [(f"`{name}`", ", ".join(f"`{task}`" for task in tasks)) for name, tasks in TASK_GROUPS.items()],
    )


def _section(task: Task) -> Iterator[str]:
    yield f"## {task.name}\n"
    if task.note:
        yield prose(task.note) + "\n"
    prompter = Prompter(task, None)
    yield f"```\n{prompter.instruction}\n\n{task.template}\n{OPEN}\n```\n"
    yield table(("", ""), list(_facts(task)))


def _facts(task: Task) -> Iterator[tuple[str, str]]:
    if task.kind is Kind.CLASSIFY:
        pairs = enumerate(zip(task.labels, task.verbalizers, strict=True))
        yield "Labels", ", ".join(f"{number} {name}: `{word}`" for number, (name, word) in pairs)
    metrics = ", ".join(f"`{name}`" for name in task.metrics)
    yield "Metrics", metrics + (f"; the score is `{task.score_metric}`" if task.score_metric else "")
    yield "Evaluated on", ", ".join(task.eval_splits)
    if not task.trainable:
        yield "Trained on", f"nothing; evaluate a model trained with `task={task.train_on}`"
    if task.hub:
        config = f", `{task.hub.config}`" if task.hub.config else ""
        name = task.hub.revision and task.hub.revision[: 12 if len(task.hub.revision) == 40 else None]
        revision = f", revision `{name}`" if name else ", newest revision"
        yield "Hub", f"`{task.hub.path}`{config}{revision}"
    if task.raw:
        files = dict.fromkeys(path for paths in task.raw.files.values() for path in paths)
        yield "Files", ", ".join(f"`{path}`" for path in [*files, *(task.raw.shared_file or ())])
