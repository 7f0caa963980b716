"""Where the analyses come from that stand behind a judgement: a JSON file in paper B's format, or a toy's generator.

Those that a model writes (`nlu_ppo.rationales`) end up in such a file, too.

The format (arXiv 2405.19763, its released data): a JSON list of objects with `instruction`, `input`, `output` and
`history`; a query is the instruction, a line break and the input. Where two answers are ranked, `output` is the
list of the better and the worse one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nlu_ppo.errors import MALFORMED, ConfigError, DataError
from nlu_ppo.tasks.answers import parse_answer
from nlu_ppo.tasks.record import CLOSE, CLOSE_ANALYSIS, OPEN, OPEN_ANALYSIS, Example, Kind, Label, Task
from nlu_ppo.tasks.toy import TOY_TASKS, toy_rationale

GENERATED = "generated"
MODEL, ENDPOINT = "model", "endpoint"  # who writes what isn't there
WRITTEN = (MODEL, ENDPOINT)

Rationales = Callable[[Example, Label], str]  # the analysis that argues for a label, right or wrong
_ANALYSIS = re.compile(re.escape(OPEN_ANALYSIS) + "(.*?)" + re.escape(CLOSE_ANALYSIS), re.DOTALL)


def with_analysis(answer: str, analysis: str) -> str:
    """A whole completion: what stands behind the open tag of the judgement."""
    return f"{answer}{CLOSE}{OPEN_ANALYSIS}{analysis}{CLOSE_ANALYSIS}"


def check_rationales(task: Task, source: str) -> None:
    """Raises ConfigError where `task.rationale` has nothing for the task."""
    if source == GENERATED and task.name not in TOY_TASKS:
        raise ConfigError(
            f"task.rationale=generated is for the toy tasks, whose generator knows why a label holds; for "
            f"task={task.name} name a JSON file of answers with their analysis"
        )
    if source not in (GENERATED, *WRITTEN) and not Path(source).is_file():
        raise ConfigError(
            f"task.rationale={source}: there is no such file (or write generated, model or endpoint)"
        )
    if task.kind is not Kind.CLASSIFY:
        raise ConfigError(f"task.rationale needs a task with labels, and the answers of {task.name} are none")


def load_rationales(task: Task, source: str) -> Rationales:
    """The analyses of a task.

    Args:
        source: `generated`, or a file.

    Raises:
        DataError: the file is no list of records in paper B's format, or an answer lacks its analysis. What it returns
            raises it for an example and label that the file has nothing for.
    """
    if source == GENERATED:
        return lambda example, label: toy_rationale(example, int(label))  # type: ignore[arg-type]
    return _from_file(task, Path(source))


def _from_file(task: Task, path: Path) -> Rationales:
    known: dict[tuple[str, Label], str] = {}
    for index, record in enumerate(read_records(path)):
        answers = record["output"] if isinstance(record["output"], list) else [record["output"]]
        for answer in answers:
            completion = without_open_tag(answer)
            label, found = parse_answer(task, completion), _ANALYSIS.search(completion)
            if label is None or found is None:
                what = "no legal answer" if label is None else f"no {OPEN_ANALYSIS}...{CLOSE_ANALYSIS}"
                raise DataError(
                    f"{path}, record {index}: the output has {what}: {answer[:80]!r}; write it as "
                    f"{OPEN}answer{CLOSE}{OPEN_ANALYSIS}why{CLOSE_ANALYSIS}, with one of {', '.join(task.verbalizers)}"
                )
            known.setdefault((record["input"].strip(), label), found[1].strip())

    def analysis(example: Example, label: Label) -> str:
        query = task.template.format_map(example.fields).strip()
        if (query, label) not in known:
            raise DataError(
                f"{path}: no record has an analysis for example {example.id} of {task.name} with the answer "
                f"{task.verbalize(label)}; its `input` must be the example's text as the prompt has it: {query[:80]!r}"
            )
        return known[query, label]

    return analysis


# -- the format ----------------------------------------------------------------------------------------------


def without_open_tag(answer: str) -> str:
    """An answer as it follows the prompt, which ends in the open tag."""
    return answer.strip().removeprefix(OPEN)


def read_records(path: Path, pairs: bool = False) -> list[dict[str, Any]]:
    """The records of a JSON file in paper B's format.

    Args:
        pairs: each `output` must be the list of a better and a worse answer; otherwise one answer will do.

    Raises:
        DataError: the file isn't there or is no such list; the message names file, record and key.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    except MALFORMED as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    if not isinstance(records, list) or not records:
        raise DataError(f"{path}: a JSON list of records is wanted, and this is {_kind(records)}")
    for index, record in enumerate(records):
        _check_record(path, index, record, pairs)
    return records


def _check_record(path: Path, index: int, record: Any, pairs: bool) -> None:
    where = f"{path}, record {index}"
    if not isinstance(record, dict):
        raise DataError(f"{where}: an object is wanted, and this is {_kind(record)}")
    for key in ("instruction", "input"):
        if not isinstance(record.get(key), str):
            raise DataError(f"{where}, key {key}: a text is wanted, and this is {_kind(record.get(key))}")
    if record.get("history"):
        raise DataError(f"{where}, key history: earlier turns are not supported, and it isn't empty")
    output = record.get("output")
    if isinstance(output, str) and not pairs:
        if not output.strip():
            raise DataError(f"{where}, key output: it is empty")
        return
    if not isinstance(output, list) or len(output) != 2 or not all(isinstance(o, str) for o in output):
        wanted = "a list of the better and the worse answer" + ("" if pairs else ", or one answer as a text,")
        raise DataError(f"{where}, key output: {wanted} is wanted, and this is {_kind(output)}")
    if not all(o.strip() for o in output):
        raise DataError(f"{where}, key output: one of the two answers is empty")
    if without_open_tag(output[0]).strip() == without_open_tag(output[1]).strip():
        raise DataError(f"{where}, key output: the better and the worse answer are the same")


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return {str: "a text", dict: "an object", bool: "true or false"}.get(type(value), "a number")
