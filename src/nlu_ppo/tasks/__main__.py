"""`python -m nlu_ppo.tasks`: `list` and `show TASK` say what there is and what a prompt looks like;
`submission STUDY` makes the zip that a benchmark's server takes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from string import Formatter
from typing import Any

from nlu_ppo.errors import DataError, UserError
from nlu_ppo.prompting import Prompter, common_prefix_length
from nlu_ppo.tasks import TASKS, Example, Kind, Task, get_task, read_split, submission_zip
from nlu_ppo.tasks.own import own_task_files
from nlu_ppo.tasks.readers import sources
from nlu_ppo.tasks.record import CLOSE, OWN
from nlu_ppo.tasks.registry import task_config
from nlu_ppo.tasks.text_table import aligned

_SAMPLE = 32  # examples from which the shared part of the prompts is measured


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a mistake that the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m nlu_ppo.tasks", description="Show the tasks, or hand in answers to them."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="a table of all tasks")
    show = commands.add_parser("show", help="a task's prompt, and how a tokenizer cuts it")
    show.add_argument("task", help="a name, or the path of a YAML file that describes a task")
    show.add_argument("--data-dir", help="take the example from the task's files in this folder")
    show.add_argument("--hub", action="store_true", help="take the example from the hub")
    show.add_argument("--split", help="split of the example (default: the first one evaluated on)")
    show.add_argument("--row", type=int, default=0, help="number of the example, from 0")
    show.add_argument("--model", help="a model folder or hub id, for its tokenizer")
    show.add_argument("--layout", choices=("plain", "chat"), default="plain")
    submission = commands.add_parser("submission", help="the zip that the server of GLUE or SuperGLUE takes")
    submission_zip.add_arguments(submission)
    options = parser.parse_args(arguments)
    work = {"list": _table, "show": _show, "submission": submission_zip.command}[options.command]
    try:
        print(work(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _table(_: Any) -> str:
    rows = [("task", "benchmark", "answers", "metrics", "evaluated on", "trainable", "from")]
    for task in [*TASKS.values(), *(get_task(name) for name in own_task_files())]:
        rows.append(
            (
                task.name,
                task.benchmark,
                _answers(task),
                ", ".join(task.metrics),
                ", ".join(task.eval_splits),
                "yes" if task.trainable else "no",
                f"{task.hub.path} {task.hub.config}" if task.hub else _files(task),
            )
        )
    return aligned(rows)


def _files(task: Task) -> str:
    return ", ".join(files[0] for files in task.raw.files.values()) if task.raw else "generated"


def _answers(task: Task) -> str:
    if task.kind is Kind.CLASSIFY:
        return " / ".join(task.verbalizers)
    if task.kind is Kind.REGRESS:
        return f"{task.low:g} to {task.high:g}"
    return "one of the candidates" if task.kind is Kind.CHOOSE else "words of the text"


def _show(options: Any) -> str:
    task = get_task(options.task)
    examples = _load(task, options)
    if not 0 <= options.row < len(examples):
        raise DataError(f"task {task.name}: there is no row {options.row} among the {len(examples)} loaded")
    example = examples[options.row]
    tokenizer = _tokenizer(options.model) if options.model else None
    if tokenizer is None and options.layout == "chat":
        raise DataError("--layout chat needs --model: the chat template is the tokenizer's")
    prompter = Prompter(task, tokenizer, options.layout)
    gold = "(none)" if example.label is None else prompter.completion(example.label)
    lines = [prompter.render(example), "", f"gold completion: {gold}", f"example: {example.id}"]
    if tokenizer is not None:
        lines += _tokens(prompter, example, examples)
    return "\n".join(lines)


def _load(task: Task, options: Any) -> list[Example]:
    split = options.split or task.eval_splits[0]
    count = max(_SAMPLE, options.row + 1)
    if options.data_dir:
        return list(islice(read_split(task, split, "raw", options.data_dir), count))
    if options.hub:
        return list(islice(read_split(task, split, "hub"), count))
    if task.benchmark == OWN or sources(task) == ["generated"]:
        own = task_config(options.task)
        return list(islice(read_split(task, split, own.source, own.data_dir, hub_path=own.hub_path), count))
    names = [name for _, name, _, _ in Formatter().parse(task.template) if name]
    return [Example("(placeholder; see --data-dir and --hub)", {name: f"<{name}>" for name in names}, None)]


def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer  # takes seconds; only this option needs it

    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise DataError(f"--model {model}: can't load its tokenizer: {error}") from error


def _tokens(prompter: Prompter, example: Example, examples: Sequence[Example]) -> list[str]:
    tokenizer, task = prompter.tokenizer, prompter.task
    prompts = prompter.encode(examples)
    shown = prompter.encode([example])[0]
    shared = common_prefix_length([prompt.ids for prompt in prompts])
    mean = sum(len(prompt.ids) for prompt in prompts) / len(prompts)
    lines = [
        f"prompt tokens: {len(shown.ids)} (mean of {len(prompts)} examples: {mean:.1f})",
        f"shared prefix: {shared} tokens, {100 * shared / mean:.0f} % of the mean prompt",
        f"prompt ends in: {[tokenizer.decode([i]) for i in shown.ids[-4:]]}",
    ]
    gold = () if example.label is None else (task.verbalize(example.label),)
    for answer in task.answers(example)[:5] or gold:
        ids = prompter.completion_ids(answer + CLOSE)
        lines.append(f"completion: {[tokenizer.decode([i]) for i in ids]}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
