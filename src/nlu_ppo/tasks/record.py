"""What a task is: one immutable record per task, and one per example. Everything else reads these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

# int: a class id in the hub's order; float: a similarity; str: an answer in words; tuple of str: all gold ones.
Label = int | float | str | tuple[str, ...]

# One item as the hub serves it (its column names), whatever source it came from.
Row = Mapping[str, Any]

# The slot of an answer: prompts end in the open tag, completions in the closing one.
OPEN, CLOSE = "<Judgement>", "</Judgement>"
# The slot of an analysis behind it, where a run asks for one.
OPEN_ANALYSIS, CLOSE_ANALYSIS = "<Analysis>", "</Analysis>"

OWN = "own"  # `Task.benchmark` of a task that a user described in YAML


class RowError(ValueError):
    """A row that can't become an example; the reader adds file and line."""


class Kind(Enum):
    """What an answer is."""

    CLASSIFY = "classify"  # one of a fixed set of verbalizers; labels are int ids
    REGRESS = "regress"  # a number in [low, high]; labels are floats
    CHOOSE = "choose"  # one of the example's own candidates; labels are strings
    EXTRACT = "extract"  # a few words out of the example's text; labels are strings, without a list of them

    @property
    def in_words(self) -> bool:
        """Whether answers are compared word by word, with any of several gold ones, and partly right counts."""
        return self in (Kind.CHOOSE, Kind.EXTRACT)


@dataclass(frozen=True)
class Example:
    """One item of a split.

    Attributes:
        id: unique within the task, `"<split>-<idx>"`; stable over sources and limits.
        fields: the texts that the task's template names.
        label: gold label (`None` on unlabelled test rows); for CHOOSE and EXTRACT a tuple of all accepted
            answers.
        group: items that are scored together share it (MultiRC's question, AX-g's pair), or that depend on
            each other (SQuAD's questions about one passage).
        candidates: for CHOOSE, the answers to choose from, in a fixed order; where items of a group are put
            together to one answer (`Task.judged_as`), the one candidate that this item asks about.
        idx: the official index, as submission files want it.
        task: name of the task that it belongs to; a run may have several.
        accepted: where items of a group are put together, all accepted answers of the group.
    """

    id: str
    fields: Mapping[str, str]
    label: Label | None
    group: Any = None
    candidates: tuple[str, ...] = ()
    idx: Any = None
    task: str = ""
    accepted: tuple[str, ...] = ()


def accepted_answers(label: Label | None) -> tuple[str, ...]:
    """All gold answers of an example that is answered in words."""
    if label is None:
        return ()
    return label if isinstance(label, tuple) else (str(label),)


@dataclass(frozen=True)
class HubSource:
    """Where `datasets` finds the task, and how its rows are written.

    Attributes:
        config: the repository's configuration; empty where it has but one.
        revision: the commit that the task is pinned to; `None` takes the newest, which may change.
        splits: ours ("train", "validation", "test") -> the hub's, several of which may be joined by "+".
        labels: label as written (a class name, or a value as text) -> id; empty where the hub's class names
            are the task's own.
        columns: our column -> names that it has on the hub, where these differ.
        label_columns: names of the label's column.
        left_out: labels whose rows the task leaves out.
        numbered: rows have no `idx`; their place in the split stands for it.
    """

    path: str
    config: str
    revision: str | None
    splits: Mapping[str, str]
    labels: Mapping[str, int] = field(default_factory=dict)
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label_columns: tuple[str, ...] = ("label",)
    left_out: tuple[str, ...] = ()
    numbered: bool = False


@dataclass(frozen=True)
class RawSource:
    """Files of the benchmark's own release, and how a row of theirs becomes a row of the hub's schema.

    Attributes:
        files: by split, the paths below `task.data_dir` to try, in order. `.jsonl` files hold one JSON object
            per line, `.json` files one JSON document, `.csv` files follow RFC 4180, `.parquet` files say
            themselves what they hold; all others are tab-separated, without quoting.
        labels: what the files write for each label -> id (empty for tasks without classes).
        columns: hub column -> names it has in the files, where these differ.
        label_columns: names of the label's column; files of labelled splits must have one of them.
        header: the columns of files that have no header line (not used for test files, which have one).
        rows: turns one JSON object into hub rows, where they aren't one to one.
        document: takes a JSON document apart into hub rows, or what is wrong with them, each with its path.
        shared_file: a file that holds train and validation together, and the list of id pairs that belong
            to validation; preferred to `files` where both are there, because the hub is made from them.
        short_rows: so many rows of a file with too few columns are known to be in the release. The hub
            leaves them out, and so do we.
        left_out: labels whose rows the task leaves out: those without an agreed label, as everybody does,
            or a class that the task doesn't ask for.
        numbered: rows of any format have no `idx`; their place in the file stands for it, as in TSV files.
        root: of a user's own files, the folder that they lie in where there is no `task.data_dir`.
    """

    files: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, int] = field(default_factory=dict)
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label_columns: tuple[str, ...] = ("label",)
    header: tuple[str, ...] = ()
    rows: Callable[[Row], Iterable[Row]] | None = None
    document: Callable[[Any], Iterable[tuple[str, Row | RowError]]] | None = None
    shared_file: tuple[str, str] | None = None
    short_rows: int = 0
    left_out: tuple[str, ...] = ()
    numbered: bool = False
    root: Path | None = None


Source = HubSource | RawSource


@dataclass(frozen=True)
class Task:
    """A language-understanding task framed as short text generation.

    The same record gives prompt, gold answer, metric and reward, so that none of them can disagree.

    Attributes:
        instruction: the first line(s) of every prompt, common to all examples of the task.
        template: the query, with `{field}` slots filled from `Example.fields`.
        labels: label names in the order of the hub's ids; empty unless CLASSIFY.
        verbalizers: the answer word of each label id.
        metrics: official metrics in the leaderboard's order; the task score is their mean,
        score_metric: or this one of them.
        columns: the hub's columns that the template needs; they become `Example.fields` as they are.
        fields_of: makes the fields from a hub row instead, where a text must be marked or cleaned.
        items_of: makes several rows of one hub row, where a row is asked about item by item.
        candidates_of: the answers that a row offers; for an item (`items_of`), the one that it asks about.
        label_of: hub row -> label, where no label column holds it as it is.
        index_column: the hub's column that names a row.
        group_of: hub `idx` -> group of items that are scored together.
        group_field: or the field whose text the items of one group share.
        judged_as: the task whose answers and metrics count, where each group of items is put together to one
            answer before it is scored (`nlu_ppo.tasks.reduction`).
        train_rows: which of the training examples are trained on, if not all; what is held out for model
            selection stays whole, since it is scored as evaluation scores.
        eval_splits: what a run is evaluated on; each split is scored apart.
        trainable: False for diagnostic and transfer sets, which have no train split.
        train_on: where there is none, the task to train on instead.
        sizes: rows of each split as released, as far as the hub serves them.
        note: what one has to know to read the task's numbers.
    """

    name: str
    benchmark: str
    kind: Kind
    instruction: str
    template: str
    metrics: tuple[str, ...]
    score_metric: str | None = None
    labels: tuple[str, ...] = ()
    verbalizers: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    hub: HubSource | None = None
    raw: RawSource | None = None
    columns: tuple[str, ...] = ()
    fields_of: Callable[[Row], dict[str, str]] | None = None
    items_of: Callable[[Row], Iterable[Row]] | None = None
    candidates_of: Callable[[Row], tuple[str, ...]] | None = None
    label_of: Callable[[Row], Label | None] | None = None
    index_column: str = "idx"
    group_of: Callable[[Any], Any] | None = None
    group_field: str | None = None
    judged_as: Task | None = None
    train_rows: Callable[[Sequence[Example]], list[int]] | None = None
    eval_splits: tuple[str, ...] = ("validation",)
    trainable: bool = True
    train_on: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    note: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind is Kind.CLASSIFY and (
            len(self.labels) != len(self.verbalizers) or len(set(self.verbalizers)) != len(self.verbalizers)
        ):
            raise ValueError(f"task {self.name}: every label needs a verbalizer of its own")
        if self.score_metric is not None and self.score_metric not in self.metrics:
            raise ValueError(f"task {self.name}: {self.score_metric!r} is none of its metrics")

    @property
    def lists_answers(self) -> bool:
        """Whether an example's legal answers can be listed, so that their likelihoods can be compared."""
        return self.kind is not Kind.EXTRACT

    @property
    def answer_format(self) -> str:
        """The sentence that names the legal answers, the same for every example of the task."""
        if self.kind is Kind.CLASSIFY:
            return "Answer with one of these: " + ", ".join(self.verbalizers) + "."
        if self.kind is Kind.REGRESS:
            return f"Answer with a number from {self.low:.1f} to {self.high:.1f}."
        if self.kind is Kind.CHOOSE:
            return "Answer with one of the listed candidates, copied exactly."
        return "Answer with the few words that say it, copied exactly from the text."

    def verbalize(self, label: Label) -> str:
        """The answer text of a gold label (regression: rounded to the nearest 0.2, as T5 does)."""
        if self.kind is Kind.CLASSIFY:
            return self.verbalizers[int(label)]  # type: ignore[arg-type]
        if self.kind is Kind.REGRESS:
            return f"{round(float(label) * 5) / 5:.1f}"  # type: ignore[arg-type]
        return label[0] if isinstance(label, tuple) else str(label)

    def answers(self, example: Example) -> tuple[str, ...]:
        """All answers that label likelihood compares for `example`, in a fixed order; none for EXTRACT."""
        if self.kind is Kind.CLASSIFY:
            return self.verbalizers
        if self.kind is Kind.REGRESS:
            steps = round((self.high - self.low) * 5)
            return tuple(f"{self.low + i / 5:.1f}" for i in range(steps + 1))
        return example.candidates
