"""The files that the servers of GLUE and SuperGLUE take: their names, sizes, and how an answer stands in them.

Pure functions from answers to text. Which run writes which file is here too: one model answers a task's own
test split and the diagnostic sets that belong to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nlu_ppo.tasks.record import Example, Kind, Label, Task
from nlu_ppo.tasks.registry import get_task
from nlu_ppo.tasks.splits import commonest_label

# An official index (`Example.idx`) and a label of the task; and the same with the value that the file writes.
Answer = tuple[Any, Label]
Written = tuple[Any, str | int]

TSV_HEADER = "index\tprediction"
_PARTS = (
    "passage",
    "paragraph",
    "query",
    "question",
    "answer",
)  # of an index that has parts, outermost first


@dataclass(frozen=True)
class OfficialFile:
    """One file of a submission.

    Attributes:
        name: what the server calls it.
        task: the task whose model answers it.
        rows: answers that the server expects (MultiRC: proposed answers, not lines).
        value: from the task's label to what the file writes.
        lines: from the written answers, in the order of their index, to the file's lines.
        split: the test split that it answers.
        diagnostic: the diagnostic set that it answers, in place of the task's own split.
    """

    name: str
    task: str
    rows: int
    value: Callable[[Task, Label], str | int]
    lines: Callable[[Sequence[Written]], Iterable[str]]
    split: str = "test"
    diagnostic: str | None = None

    @property
    def examples_of(self) -> str:
        """The task whose record reads the examples."""
        return self.diagnostic or self.task


# -- values --------------------------------------------------------------------------------------------------


def _number(_: Task, label: Label) -> int:
    return int(label)  # type: ignore[arg-type]


def _name(task: Task, label: Label) -> str:
    return task.labels[int(label)]  # type: ignore[arg-type]


def _lower_name(task: Task, label: Label) -> str:
    return _name(task, label).lower()


def _similarity(task: Task, label: Label) -> str:
    # in this order, -0.0 becomes 0.0
    return f"{max(task.low, min(task.high, float(label))):.3f}"  # type: ignore[arg-type]


def _text(_: Task, label: Label) -> str:
    return label[0] if isinstance(label, tuple) else str(label)


# -- lines ---------------------------------------------------------------------------------------------------


def _tsv(answers: Sequence[Written]) -> Iterator[str]:
    yield TSV_HEADER
    for idx, value in answers:
        yield f"{idx}\t{value}"


def _jsonl(answers: Sequence[Written]) -> Iterator[str]:
    for idx, value in answers:
        yield json.dumps({"idx": idx, "label": value})


def _by_query(answers: Sequence[Written]) -> Iterator[str]:
    """ReCoRD: the passage's number isn't told."""
    return _jsonl([(idx["query"], value) for idx, value in answers])


def _by_paragraph(answers: Sequence[Written]) -> Iterator[str]:
    """MultiRC: a line is a paragraph, with its questions, with their answers."""
    paragraphs: dict[int, dict[int, list[dict[str, Any]]]] = {}
    for idx, value in answers:
        questions = paragraphs.setdefault(idx["paragraph"], {})
        questions.setdefault(idx["question"], []).append({"idx": idx["answer"], "label": value})
    for paragraph, questions in paragraphs.items():
        nested = [{"idx": question, "answers": found} for question, found in questions.items()]
        yield json.dumps({"idx": paragraph, "passage": {"questions": nested}})


# -- files ---------------------------------------------------------------------------------------------------

_GLUE = (
    OfficialFile("CoLA.tsv", "cola", 1063, _number, _tsv),
    OfficialFile("SST-2.tsv", "sst2", 1821, _number, _tsv),
    OfficialFile("MRPC.tsv", "mrpc", 1725, _number, _tsv),
    OfficialFile("STS-B.tsv", "stsb", 1379, _similarity, _tsv),
    OfficialFile("QQP.tsv", "qqp", 390965, _number, _tsv),
    OfficialFile("MNLI-m.tsv", "mnli", 9796, _name, _tsv),
    OfficialFile("MNLI-mm.tsv", "mnli", 9847, _name, _tsv, split="test_mismatched"),
    OfficialFile("QNLI.tsv", "qnli", 5463, _name, _tsv),
    OfficialFile("RTE.tsv", "rte", 3000, _name, _tsv),
    OfficialFile("WNLI.tsv", "wnli", 146, _number, _tsv),
    OfficialFile("AX.tsv", "mnli", 1104, _name, _tsv, diagnostic="ax"),
)
_SUPERGLUE = (
    OfficialFile("BoolQ.jsonl", "boolq", 3245, _lower_name, _jsonl),
    OfficialFile("CB.jsonl", "cb", 250, _name, _jsonl),
    OfficialFile("COPA.jsonl", "copa", 500, _number, _jsonl),
    OfficialFile("MultiRC.jsonl", "multirc", 9693, _number, _by_paragraph),
    OfficialFile("ReCoRD.jsonl", "record", 10000, _text, _by_query),
    OfficialFile("RTE.jsonl", "rte", 3000, _name, _jsonl),
    OfficialFile("WiC.jsonl", "wic", 1400, _lower_name, _jsonl),
    OfficialFile("WSC.jsonl", "wsc", 146, _name, _jsonl),  # unlike BoolQ and WiC: "True" and "False"
    OfficialFile("AX-b.jsonl", "rte", 1104, _name, _jsonl, diagnostic="axb"),
    OfficialFile("AX-g.jsonl", "rte", 356, _name, _jsonl, diagnostic="axg"),
)

BENCHMARK_FILES: dict[str, tuple[OfficialFile, ...]] = {"glue": _GLUE, "superglue": _SUPERGLUE}
OFFICIAL_FILES = (*_GLUE, *_SUPERGLUE)


def files_of(task: str) -> tuple[OfficialFile, ...]:
    """The files that a model of this task writes; RTE's stand in both benchmarks."""
    return tuple(file for file in OFFICIAL_FILES if file.task == task)


def render(file: OfficialFile, answers: Iterable[Answer]) -> str:
    """The file's text; rows in the order of their official index, whatever order they come in."""
    task = get_task(file.task)
    written = [(idx, file.value(task, label)) for idx, label in answers]
    written.sort(key=lambda row: _place(row[0]))
    return "".join(f"{line}\n" for line in file.lines(written))


def _place(idx: Any) -> tuple[int, ...]:
    return tuple(idx[part] for part in _PARTS if part in idx) if isinstance(idx, Mapping) else (idx,)


# -- answers that are none -----------------------------------------------------------------------------------


def fall_back(
    task: Task, examples: Sequence[Example], answers: Sequence[Label | None], train_labels: Sequence[Label]
) -> list[Label]:
    """The answers, with a legal one wherever there is none, because the servers take no empty row.

    A class: the commonest training label. A number: the middle of its range, 2.5 for STS-B. A choice: the
    example's first candidate.
    """
    if task.kind is Kind.CHOOSE:
        return [
            # official queries all have candidates; a row without any must still be answered
            next(iter(example.candidates), "") if answer is None else answer
            for example, answer in zip(examples, answers, strict=True)
        ]
    constant = (task.low + task.high) / 2 if task.kind is Kind.REGRESS else commonest_label(train_labels)
    return [constant if answer is None else answer for answer in answers]
