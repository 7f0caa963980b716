"""The papers' numbers as data: one YAML file per table below `printed/`, with its source and its known faults.

A file says where a table is printed, what each of its columns is (the task, and the name that the number has in a
run's `metrics`), and each row's values. What a paper doesn't print, or what is not known here, is left out of the
file: it is never a number. Values are as printed, percent unless the column says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NoReturn

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nlu_ppo.errors import MALFORMED, ConfigError

FOLDER = Path(__file__).with_name("printed")
SPLITS = ("validation", "test")
UNITS = ("percent", "perplexity", "points")

_TEXTS = ("paper", "arxiv", "published", "table", "title")
_TABLE_KEYS = (*_TEXTS, "columns", "rows", "split", "model", "notes", "average_over", "differences")
_COLUMN_KEYS = ("task", "metric", "split", "unit")
_ROW_KEYS = ("row", "model", "method", "values", "average", "recomputed", "seconds_per_step")
_DIFFERENCE_KEYS = ("method", "minus", "value", "over")


@dataclass(frozen=True)
class PrintedCell:
    """One printed number.

    Attributes:
        task: the task that the model was trained on, or asked, by the name of our choice.
        model: our choice, or a model that only the paper has (`bert_large`, `gpt_4o`).
        method: our choice, or `fine_tuned`, `grpo`, ....
        metric: its name in the `metrics` of a run's `result.json` (which has fractions).
        value: as printed: percent, unless `unit` says otherwise.
        ci95: the printed 95% interval.
        split: `test` where only the benchmark's server has the labels, so that no run has this number;
            `validation`; or `None` where the paper doesn't say.
        row: label of a row that is no (model, method) of a single-task run of ours, as "ppo, multi-task".
    """

    task: str
    model: str
    method: str
    metric: str
    value: float
    ci95: tuple[float, float] | None = None
    split: str | None = None
    row: str | None = None
    unit: str = "percent"


@dataclass(frozen=True)
class PrintedRow:
    """One row of a table with its average.

    Attributes:
        average: as printed; `None` where there is none.
        recomputed: the mean of the row's own numbers by the table's rule, as we worked it out.
        cost: what the row says beside scores, by name (`seconds_per_step`).
    """

    row: str | None
    model: str
    method: str
    cells: tuple[PrintedCell, ...]
    average: float | None
    recomputed: float | None
    cost: Mapping[str, float]


@dataclass(frozen=True)
class PrintedDifference:
    """A printed difference of two averages that themselves aren't known."""

    method: str
    minus: str
    value: float
    over: str


@dataclass(frozen=True)
class Printed:
    """One table of a paper.

    Attributes:
        paper: "A" or "B", as the documentation calls them.
        notes: what one has to know to lay results beside these numbers; known faults among them.
        average_over: (task, metric) of the columns that a row's average is made of; columns of one group (of a
            task with two metrics) are averaged first.
    """

    name: str
    paper: str
    arxiv: str
    published: str
    table: str
    title: str
    notes: tuple[str, ...]
    rows: tuple[PrintedRow, ...]
    differences: tuple[PrintedDifference, ...]
    average_over: tuple[tuple[tuple[str, str], ...], ...] = ()

    @property
    def cells(self) -> tuple[PrintedCell, ...]:
        return tuple(cell for row in self.rows for cell in row.cells)

    @property
    def source(self) -> str:
        """For a caption: "paper A (arXiv 2410.11020; Findings of EMNLP 2025, pp. ...), table 9"."""
        where = f"table {self.table}" if self.table[:1].isdigit() else self.table
        return f"paper {self.paper} (arXiv {self.arxiv}; {self.published}), {where}"


def names(folder: Path = FOLDER) -> list[str]:
    """All tables there are."""
    return sorted(file.stem for file in folder.glob("*.yaml"))


def load(name: str, folder: Path = FOLDER) -> Printed:
    """The printed table of that name, as `a_table_9`.

    Raises:
        ConfigError: there is no such table, or its file is malformed: names the file and the key.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"there is no printed table {name!r}; there are: {', '.join(names(folder))}")
    try:
        raw = OmegaConf.to_container(OmegaConf.load(path))  # refuses keys that stand twice, as PyYAML doesn't
    except (YAMLError, OmegaConfBaseException, OSError, *MALFORMED) as error:
        raise ConfigError(f"{path}: {error}") from error
    return _Reader(path).table(name, raw)


class _Reader:
    """Turns a file's contents into records; every complaint names the file and the key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def table(self, name: str, raw: Any) -> Printed:
        top = self.mapping(raw, "the file", _TABLE_KEYS, (*_TEXTS, "columns", "rows"))
        texts = {key: self.text(top[key], key) for key in _TEXTS}
        columns = {
            key: self.column(value, f"columns.{key}", top.get("split"))
            for key, value in self.mapping(top["columns"], "columns").items()
        }
        over = [
            self.listed(group, "average_over") if isinstance(group, list) else [group]
            for group in self.listed(top.get("average_over", []), "average_over")
        ]
        for key in (key for group in over for key in group):
            self.known(key, columns, "average_over")
        rows = tuple(
            self.row(value, f"rows[{index}]", columns, over, top.get("model"))
            for index, value in enumerate(self.listed(top["rows"], "rows"))
        )
        seen = set[tuple[Any, ...]]()
        for cell in (cell for row in rows for cell in row.cells):
            place = (cell.task, cell.model, cell.method, cell.metric, cell.row)
            if place in seen:
                self.refuse("rows", f"two values for {place}")
            seen.add(place)
        notes = [self.text(note, "notes") for note in self.listed(top.get("notes", []), "notes")]
        differences = tuple(
            self.difference(value, f"differences[{index}]")
            for index, value in enumerate(self.listed(top.get("differences", []), "differences"))
        )
        means = tuple(
            tuple((str(columns[k]["task"]), str(columns[k]["metric"])) for k in group) for group in over
        )
        return Printed(
            name, **texts, notes=tuple(notes), rows=rows, differences=differences, average_over=means
        )

    def column(self, raw: Any, where: str, split: Any) -> dict[str, str | None]:
        found = self.mapping(raw, where, _COLUMN_KEYS, ("task", "metric"))
        column = {"split": split, "unit": "percent", **found}
        if column["split"] is not None and column["split"] not in SPLITS:
            self.refuse(f"{where}.split", f"{column['split']!r} is neither of {', '.join(SPLITS)}")
        if column["unit"] not in UNITS:
            self.refuse(f"{where}.unit", f"{column['unit']!r} is none of {', '.join(UNITS)}")
        for key in ("task", "metric"):
            self.text(column[key], f"{where}.{key}")
        return column

    def row(
        self,
        raw: Any,
        where: str,
        columns: Mapping[str, dict[str, Any]],
        over: Sequence[Sequence[str]],
        model: Any,
    ) -> PrintedRow:
        found = {"model": model, "row": None, **self.mapping(raw, where, _ROW_KEYS, ("method", "values"))}
        model, method = (self.text(found[key], f"{where}.{key}") for key in ("model", "method"))
        label = None if found["row"] is None else self.text(found["row"], f"{where}.row")
        values = self.mapping(found["values"], f"{where}.values")
        cells = {}
        for key, value in values.items():
            self.known(key, columns, f"{where}.values")
            number, interval = self.value(value, f"{where}.values.{key}", columns[key]["unit"])
            cells[key] = PrintedCell(
                model=model, method=method, row=label, value=number, ci95=interval, **columns[key]
            )
        average, recomputed, cost = (
            None if found.get(key) is None else self.number(found[key], f"{where}.{key}")
            for key in ("average", "recomputed", "seconds_per_step")
        )
        if recomputed is not None:
            self.check_mean(recomputed, f"{where}.recomputed", cells, over)
        costs = {} if cost is None else {"seconds_per_step": cost}
        return PrintedRow(label, model, method, tuple(cells.values()), average, recomputed, costs)

    def check_mean(
        self,
        stated: float,
        where: str,
        cells: Mapping[str, PrintedCell],
        over: Sequence[Sequence[str]],
    ) -> None:
        missing = [key for group in over for key in group if key not in cells]
        if missing or not over:
            self.refuse(where, f"no mean without {', '.join(missing) or 'average_over'}")
        mean = fmean(fmean(cells[key].value for key in group) for group in over)
        if abs(mean - stated) > 0.0051:
            self.refuse(where, f"{stated} is stated, and the row's own numbers give {mean:.3f}")

    def difference(self, raw: Any, where: str) -> PrintedDifference:
        found = self.mapping(raw, where, _DIFFERENCE_KEYS, _DIFFERENCE_KEYS)
        texts = {key: self.text(found[key], f"{where}.{key}") for key in ("method", "minus", "over")}
        return PrintedDifference(value=self.number(found["value"], f"{where}.value"), **texts)

    def value(self, raw: Any, where: str, unit: str) -> tuple[float, tuple[float, float] | None]:
        """A number, or a number with the ends of its interval."""
        if not isinstance(raw, list):
            number, interval = self.number(raw, where), None
        elif len(raw) == 3:
            number, low, high = (self.number(part, where) for part in raw)
            interval = (low, high)
            if not low <= number <= high:
                self.refuse(where, f"{number} lies outside its interval")
        else:
            self.refuse(where, f"{raw} is neither a number nor [value, low, high]")
        if unit == "percent" and not -100 <= number <= 100:
            self.refuse(where, f"{number} is no percentage")
        return number, interval

    def mapping(
        self, raw: Any, where: str, legal: Iterable[str] | None = None, needed: Iterable[str] = ()
    ) -> dict[str, Any]:
        if not isinstance(raw, dict):
            self.refuse(where, f"{raw!r} is no mapping")
        strangers = [str(key) for key in raw if legal is not None and key not in legal]
        if strangers:
            self.refuse(where, f"unknown key {strangers[0]}; there is {', '.join(legal or ())}")
        absent = [key for key in needed if key not in raw]
        if absent:
            self.refuse(where, f"no {absent[0]}")
        return raw

    def listed(self, raw: Any, where: str) -> list[Any]:
        return raw if isinstance(raw, list) else self.refuse(where, f"{raw!r} is no list")

    def text(self, raw: Any, where: str) -> str:
        return raw if isinstance(raw, str) and raw else self.refuse(where, f"{raw!r} is no text")

    def number(self, raw: Any, where: str) -> float:
        if isinstance(raw, bool) or not isinstance(raw, (int, float)):
            self.refuse(where, f"{raw!r} is no number (what isn't known is left out)")
        return float(raw)

    def known(self, key: Any, columns: Mapping[str, Any], where: str) -> None:
        if key not in columns:
            self.refuse(where, f"{key!r} is no column; there is {', '.join(columns)}")

    def refuse(self, where: str, why: str) -> NoReturn:
        raise ConfigError(f"{self.path}: {where}: {why}")
