"""What a study's table is held to and laid beside: `sweeps/expected/<study>.yaml`.

The file is no part of a run's configuration. All of its keys may be left out:

    printed: [a_table_9]          # tables of `nlu_ppo.tables.printed` to lay beside ours
    model: llama2_7b_chat         # whose printed numbers, where the study's model is not the paper's
    tasks: {record: record_yesno} # printed tasks that the study runs under another name
    rows:                         # printed rows with a label of their own, and the runs that stand beside them
      "ppo, multi-task": {task: glue, method: ppo}
    seeds: 3                      # runs that each cell should have
    require:                      # cells that have to be there: every combination of the values
      - {task: [cola, rte], model: tiny, method: [zero_shot, sft, ppo]}
    reason: ...                   # where the tolerances below come from
    cells:                        # cells that have to be there, with the number and how far it may be off
      - {task: rte, model: tiny, method: ppo, value: 66.2, tolerance: 4}
      - {task: mrpc, model: tiny, method: sft, metric: f1, value: 81.2, tolerance: 3}

A cell may also name `reward`, `lora` and `settings` (`{method.clip_range: 0.1}`) where these tell cells apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nlu_ppo.choices import CONF
from nlu_ppo.errors import MALFORMED, ConfigError
from nlu_ppo.tables import printed
from nlu_ppo.tables.collect import Cell
from nlu_ppo.tables.printed import Printed
from nlu_ppo.tables.settings import as_word
from nlu_ppo.tables.summarize import MAJORITY, Row, fits

FOLDER = CONF.parent / "sweeps" / "expected"
SCORE = "score"

_TOP = ("printed", "model", "tasks", "rows", "seeds", "require", "reason", "cells")
_NAMES = ("task", "model", "method", "reward", "lora")
_CELL = (*_NAMES, "settings", "metric", "value", "tolerance")


@dataclass(frozen=True)
class Demand:
    """A cell that has to be there. `value`: what its metric should be, at most `tolerance` away from it."""

    cell: Cell
    metric: str = SCORE
    value: float | None = None
    tolerance: float | None = None

    def __str__(self) -> str:
        names = [name for name in self.cell[:5] if name]
        names += [f"{key}={value}" for key, value in self.cell.settings]
        return ", ".join(names) + (f", {self.metric}" if self.metric != SCORE else "")


@dataclass(frozen=True)
class Expected:
    """A study's file. `model`, `tasks` and `rows`: which printed numbers belong to which of our rows."""

    printed: tuple[Printed, ...] = ()
    model: str | None = None
    tasks: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    seeds: int | None = None
    reason: str = ""
    demands: tuple[Demand, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """How a demand was met.

    Attributes:
        state: "ok", "drifted" (further away than its tolerance) or "missing" (wholly, or some of its seeds).
        found: our number, where there is one.
        told: all of it in one line.
    """

    demand: Demand
    state: str
    found: float | None
    told: str


def load_expected(study: str, folder: Path = FOLDER) -> Expected | None:
    """The file of that study; `None` if it has none.

    Raises:
        ConfigError: the file is malformed: names the file and the key.
    """
    path = folder / f"{study}.yaml"
    if not path.is_file():
        return None
    try:
        raw = OmegaConf.to_container(OmegaConf.load(path))  # refuses keys that stand twice, as PyYAML doesn't
    except (YAMLError, OmegaConfBaseException, OSError, *MALFORMED) as error:
        raise ConfigError(f"{path}: {error}") from error
    return _Reader(path).whole(raw)


def judge(expected: Expected, rows: Sequence[Row]) -> list[Verdict]:
    """Every demand, and what became of it. Seeds without a demand are asked of every row that there is."""
    headlines = [row for row in rows if row.on is None and row.cell.method != MAJORITY]
    demands = expected.demands or (tuple(Demand(row.cell) for row in headlines) if expected.seeds else ())
    metrics = {row.place: dict(row.metrics) for row in rows}
    verdicts = []
    for demand in demands:
        fitting = [row for row in headlines if fits(demand.cell, row.cell)]
        finished = [row for row in fitting if row.seeds]
        if len(finished) > 1:
            told = f"{demand}: {len(finished)} rows of the table fit; name reward, lora or settings"
            verdicts.append(Verdict(demand, "missing", None, told))
        elif not finished:
            verdicts.append(Verdict(demand, "missing", None, f"{demand}: missing, no finished run"))
        else:
            beside = {
                name: m
                for row in rows
                if row.cell == finished[0].cell
                for name, m in metrics[row.place].items()
            }
            found = finished[0].score if demand.metric == SCORE else None
            if demand.metric in beside:
                found = beside[demand.metric].value
            verdicts.append(_verdict(demand, finished[0], found))
    return verdicts


def _verdict(demand: Demand, row: Row, found: float | None) -> Verdict:
    if found is None:
        return Verdict(demand, "missing", None, f"{demand}: missing, its runs don't have this metric")
    said = f"{demand}: {found:.1f}"
    if demand.value is not None and demand.tolerance is not None:
        off = found - demand.value
        said += f", expected {demand.value:.1f} within {demand.tolerance:.1f}"
        if abs(off) > demand.tolerance + 1e-9:
            return Verdict(demand, "drifted", found, f"{said}: {off:+.1f}, drifted")
    if row.seeds < row.expected:
        return Verdict(demand, "missing", found, f"{said}: n={row.seeds}/{row.expected}, seeds missing")
    return Verdict(demand, "ok", found, f"{said}: ok")


def _cell(names: Mapping[str, str], settings: tuple[tuple[str, str], ...] = ()) -> Cell:
    return Cell(
        names["task"], names["model"], names["method"], names.get("reward"), names.get("lora"), settings
    )


class _Reader:
    """Turns a file's contents into records; every complaint names the file and the key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def whole(self, raw: Any) -> Expected:
        top = self.mapping({} if raw is None else raw, "the file", _TOP)
        names = [self.text(name, "printed") for name in self.listed(top.get("printed", []), "printed")]
        try:
            tables = tuple(map(printed.load, names))
        except ConfigError as error:
            raise ConfigError(f"{self.path}: printed: {error}") from error
        rows = {
            self.label(label, tables): {
                key: self.text(value, f"rows.{label}.{key}")
                for key, value in self.mapping(named, f"rows.{label}", _NAMES).items()
            }
            for label, named in self.mapping(top.get("rows", {}), "rows").items()
        }
        tasks = {
            self.known_task(name, tables): self.text(ours, f"tasks.{name}")
            for name, ours in self.mapping(top.get("tasks", {}), "tasks").items()
        }
        seeds = top.get("seeds")
        if seeds is not None and (isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1):
            self.refuse("seeds", f"{seeds!r} is no number from 1 up")
        demands = [
            *(d for i, item in enumerate(self.listed(top.get("require", []), "require"))
              for d in self.product(item, f"require[{i}]")),
            *(self.cell(item, f"cells[{i}]") for i, item in enumerate(self.listed(top.get("cells", []), "cells"))),
        ]  # fmt: skip
        if top.get("cells") and not top.get("reason"):
            self.refuse("reason", "say where the tolerances of the cells come from")
        reason = self.text(top["reason"], "reason") if "reason" in top else ""
        model = self.text(top["model"], "model") if top.get("model") is not None else None
        known = {row.model for table in tables for row in table.rows}
        if model is not None and model not in known:
            self.refuse(
                "model", f"{model!r} is in none of the printed tables; there is {', '.join(sorted(known))}"
            )
        return Expected(tables, model, tasks, rows, seeds, reason, self.distinct(demands))

    def label(self, label: Any, tables: Iterable[Printed]) -> str:
        known = [row.row for table in tables for row in table.rows if row.row]
        if label not in known:
            self.refuse(
                "rows", f"no printed row is labelled {label!r}; there is {', '.join(known) or 'none'}"
            )
        return str(label)

    def known_task(self, name: Any, tables: Iterable[Printed]) -> str:
        known = {cell.task for table in tables for cell in table.cells}
        if name not in known:
            self.refuse(
                "tasks", f"{name!r} is in none of the printed tables; there is {', '.join(sorted(known))}"
            )
        return str(name)

    def product(self, raw: Any, where: str) -> Iterator[Demand]:
        found = self.mapping(raw, where, _NAMES, ("task", "model", "method"))
        values = [value if isinstance(value, list) else [value] for value in found.values()]
        for names in itertools.product(*values):
            cell = {key: self.text(name, f"{where}.{key}") for key, name in zip(found, names, strict=True)}
            yield Demand(_cell(cell))

    def cell(self, raw: Any, where: str) -> Demand:
        found = self.mapping(raw, where, _CELL, ("task", "model", "method"))
        names = {key: self.text(found[key], f"{where}.{key}") for key in _NAMES if found.get(key) is not None}
        settings = self.mapping(found.get("settings", {}), f"{where}.settings")
        cell = _cell(names, tuple(sorted((str(k), as_word(v)) for k, v in settings.items())))
        metric = self.text(found.get("metric", SCORE), f"{where}.metric")
        if ("value" in found) != ("tolerance" in found):
            self.refuse(where, "value and tolerance go together")
        if "value" not in found:
            return Demand(cell, metric)
        value, tolerance = (self.number(found[key], f"{where}.{key}") for key in ("value", "tolerance"))
        if tolerance < 0:
            self.refuse(f"{where}.tolerance", f"{tolerance} is below 0")
        return Demand(cell, metric, value, tolerance)

    def distinct(self, demands: Sequence[Demand]) -> tuple[Demand, ...]:
        """A cell may be both required and given a number; no number is given twice."""
        numbers = [(d.cell, d.metric) for d in demands if d.value is not None]
        for place in numbers:
            if numbers.count(place) > 1:
                self.refuse("cells", f"two values for {Demand(*place)}")
        with_number = {d.cell for d in demands if d.value is not None}
        return tuple(dict.fromkeys(d for d in demands if d.value is not None or d.cell not in with_number))

    def mapping(
        self, raw: Any, where: str, legal: Iterable[str] | None = None, needed: Iterable[str] = ()
    ) -> dict[Any, Any]:
        if not isinstance(raw, dict):
            self.refuse(where, f"{raw!r} is no mapping")
        strangers = [key for key in raw if legal is not None and key not in legal]
        if strangers:
            self.refuse(where, f"unknown key {strangers[0]}; there is {', '.join(legal or ())}")
        absent = [key for key in needed if raw.get(key) is None]
        if absent:
            self.refuse(where, f"no {absent[0]}")
        return raw

    def listed(self, raw: Any, where: str) -> list[Any]:
        return raw if isinstance(raw, list) else self.refuse(where, f"{raw!r} is no list")

    def text(self, raw: Any, where: str) -> str:
        return raw if isinstance(raw, str) and raw else self.refuse(where, f"{raw!r} is no text")

    def number(self, raw: Any, where: str) -> float:
        if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not math.isfinite(raw):
            self.refuse(where, f"{raw!r} is no number")
        return float(raw)

    def refuse(self, where: str, why: str) -> NoReturn:
        raise ConfigError(f"{self.path}: {where}: {why}")
