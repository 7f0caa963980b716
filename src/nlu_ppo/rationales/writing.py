"""Has the analyses written that runs learn from, keeps them below outputs/, and hands them out.

`outputs/rationales/<writer>-<key>/replies.jsonl` has every reply; nothing that is in it is asked for again.
`<task>.json` beside it has the analyses in paper B's format, which `task.rationale=FILE` takes, too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from nlu_ppo.config import Config
from nlu_ppo.endpoint import check_address
from nlu_ppo.errors import ConfigError, DataError, EndpointError
from nlu_ppo.rationales.asking import read_analysis
from nlu_ppo.rationales.needs import Need, needs
from nlu_ppo.rationales.writers import WHERE, Writer, attempts, get_writer, writer_identity
from nlu_ppo.replies import alone
from nlu_ppo.storage import write_atomic
from nlu_ppo.tasks.rationales import (
    ENDPOINT,
    WRITTEN,
    Rationales,
    load_rationales,
    read_records,
    with_analysis,
)
from nlu_ppo.tasks.record import OPEN, OPEN_ANALYSIS, Example, Label, Task
from nlu_ppo.tasks.splits import TaskData
from nlu_ppo.tasks.spool import select

FOLDER = "rationales"


def check_writer(config: Config) -> None:
    """Raises ConfigError where `task.writer` can't be asked."""
    if config.task.rationale != ENDPOINT:
        return
    settings = config.task.writer
    if settings.model is None:
        raise ConfigError(
            f"task.rationale=endpoint needs {WHERE}.model, the model's name as the server knows it"
        )
    check_address(settings.base_url, f"{WHERE}.base_url")


def folder_of(config: Config) -> Path:
    """Where a writer's work lies; how often it may try makes no other writer of it."""
    identity = {k: v for k, v in writer_identity(config).items() if k != "attempts"}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    name = config.task.writer.model if config.task.rationale == ENDPOINT else config.model.name
    return Path(config.outputs) / FOLDER / f"{re.sub('[^A-Za-z0-9.]+', '-', str(name))}-{digest[:8]}"


# -- what is there -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What there is for a need.

    Attributes:
        analysis: the first that was fit for use.
        reasons: why earlier ones were not.
        next_attempt: the first that was never made; `None` if there is no more.
    """

    analysis: str | None
    reasons: tuple[str, ...]
    next_attempt: int | None


def look_up(writer: Writer, need: Need, tries: int) -> Found:
    """What `writer` has replied so far."""
    reasons: list[str] = []
    unmade: int | None = None
    for attempt in range(tries):
        reply = writer.kept((need, attempt))
        if reply is None:
            unmade = attempt if unmade is None else unmade
            continue
        analysis, reason = read_analysis(need.task, need.label, reply.text, reply.ended)
        if analysis is not None:
            return Found(analysis, tuple(reasons), None)
        reasons.append(reason)
    return Found(None, tuple(reasons), unmade)


def rationales_of(config: Config, task: Task) -> Rationales | None:
    """The analyses of a run's task, wherever they come from; `None` for a run without.

    Raises:
        DataError: a file of analyses is malformed. What it returns raises it where there is no analysis.
    """
    source = config.task.rationale
    if source is None:
        return None
    if source not in WRITTEN:
        return load_rationales(task, source)

    @cache  # most methods never ask
    def writer() -> Writer:
        return get_writer(config, folder_of(config))

    def analysis(example: Example, label: Label) -> str:
        found = look_up(writer(), Need(task, "", example, int(label)), attempts(config.task.writer))  # type: ignore[arg-type]
        if found.analysis is None:
            raise DataError(
                f"{folder_of(config)} has no analysis for example {example.id} of {task.name} with the answer "
                f"{task.verbalize(label)}"
            )
        return found.analysis

    return analysis


def with_analyses(config: Config, tasks: Sequence[TaskData]) -> list[TaskData]:
    """The examples of a run, without those that lack a written analysis; these count as bad rows."""
    if config.task.rationale not in WRITTEN:
        return list(tasks)
    return [_with_analyses(config, data) for data in tasks]


def _with_analyses(config: Config, data: TaskData) -> TaskData:
    wanted = list(needs(config, data))
    if not wanted:
        return data
    writer, tries = get_writer(config, folder_of(config)), attempts(config.task.writer)
    lacking: dict[str, dict[str, str]] = {}
    for need in wanted:
        found = look_up(writer, need, tries)
        if found.analysis is None:
            word, why = (
                data.task.verbalize(need.label),
                found.reasons[-1] if found.reasons else "never written",
            )
            lacking.setdefault(need.split, {})[need.example.id] = (
                f"example {need.example.id}: no analysis for the answer {word} ({why})"
            )
    bad = {**data.bad_rows}
    for split, rows in lacking.items():
        bad[split] = [*bad.get(split, []), *rows.values()]
    evaluation = {split: _without(rows, lacking.get(split, {})) for split, rows in data.evaluation.items()}
    train = _without(data.train, lacking.get("train", {}))
    return replace(data, train=train, evaluation=evaluation, bad_rows=bad)


def _without(examples: Sequence[Example], names: Iterable[str]) -> Sequence[Example]:
    left_out = set(names)
    return (
        select(examples, [i for i, e in enumerate(examples) if e.id not in left_out])
        if left_out
        else examples
    )


# -- writing -------------------------------------------------------------------------------------------------


def provide(configs: Sequence[Config], tasks: Sequence[TaskData], dry_run: bool = False) -> Path | None:
    """Has all written that runs need and isn't there yet; says first what it costs.

    Args:
        configs: of runs that differ in method and reward only.
        tasks: their examples.
        dry_run: ends behind what it costs.

    Returns:
        the folder of what is written; `None` if nothing is needed.

    Raises:
        ConfigError: it would cost too much, or nobody can be asked.
        EndpointError: the server refuses, is gone, or left requests unanswered; what came back is kept.
        DataError: after all attempts there are examples without an analysis, and `task.on_bad_row=error`.
    """
    config = configs[0]
    found = [need for c in configs for data in tasks for need in needs(c, data)]
    wanted = list({(need.task.name, need.text, need.label): need for need in found}.values())
    if not wanted:
        return None
    folder = folder_of(config)
    with alone(folder / ".lock", f"waiting for another process, which is having analyses written: {folder}"):
        writer, tries = get_writer(config, folder), attempts(config.task.writer)
        if asked := _to_ask(writer, wanted, tries):
            print(f"analyses to be written by {writer.announce(asked)}", flush=True)
        if dry_run:
            return folder
        failures = _write(writer, wanted, tries)
        lacking = _export(writer, wanted, tries, folder)
    print(_report(config, wanted, lacking, bool(asked)), end="", flush=True)
    if failures:
        told = "; ".join(f"{count} times {reason}" for reason, count in failures.items())
        raise EndpointError(f"requests without a reply: {told}. The same command asks for these again")
    if lacking and config.task.on_bad_row == "error":
        raise DataError(_advice(folder, wanted, lacking))
    return folder


def _to_ask(writer: Writer, wanted: Sequence[Need], tries: int) -> list[tuple[Need, int]]:
    found = [(need, look_up(writer, need, tries)) for need in wanted]
    return [(need, f.next_attempt) for need, f in found if f.analysis is None and f.next_attempt is not None]


def _write(writer: Writer, wanted: Sequence[Need], tries: int) -> dict[str, int]:
    """Asks until all is there or all attempts are made; returns what was left without a reply at the end."""
    failures: dict[str, int] = {}
    for round_ in range(tries):
        asked = _to_ask(writer, wanted, tries)
        if not asked:
            return {}
        failures = writer.write(asked, "analyses" if round_ == 0 else f"analyses, again ({round_})")
    return failures


def _export(writer: Writer, wanted: Sequence[Need], tries: int, folder: Path) -> dict[int, str]:
    """Adds the analyses to the file of their task, in paper B's format; returns what is lacking, by its number."""
    lacking: dict[int, str] = {}
    files: dict[Path, dict[tuple[str, str], dict[str, Any]]] = {}
    for number, need in enumerate(wanted):
        found = look_up(writer, need, tries)
        if found.analysis is None:
            lacking[number] = found.reasons[-1] if found.reasons else "no reply"
            continue
        path = folder / f"{need.task.name}.json"
        if path not in files:
            files[path] = {_judged(row): row for row in (read_records(path) if path.is_file() else [])}
        output = OPEN + with_analysis(need.task.verbalize(need.label), found.analysis)
        row = {"instruction": need.task.instruction, "input": need.text, "output": output, "history": []}
        files[path][_judged(row)] = row
    for path, rows in files.items():
        write_atomic(path, json.dumps(list(rows.values()), indent=1, ensure_ascii=False) + "\n")
    return lacking


def _judged(row: dict[str, Any]) -> tuple[str, str]:
    """What tells the records of a file apart: the text, and the answer that is argued for."""
    return row["input"], row["output"].partition(OPEN_ANALYSIS)[0]


def _report(config: Config, wanted: Sequence[Need], lacking: dict[int, str], wrote: bool) -> str:
    if not wrote and not lacking:
        return ""
    there = f"analyses: {len(wanted) - len(lacking):,} of {len(wanted):,} are there, in {folder_of(config)}\n"
    if not lacking:
        return there
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in Counter(lacking.values()).most_common())
    return f"{there}without one after {attempts(config.task.writer)} attempts: {len(lacking):,} ({reasons})\n"


def _advice(folder: Path, wanted: Sequence[Need], lacking: dict[int, str]) -> str:
    number, reason = next(iter(lacking.items()))
    need = wanted[number]
    return (
        f"{len(lacking):,} of {len(wanted):,} analyses are lacking, first that of example {need.example.id} of "
        f"{need.task.name} for the answer {need.task.verbalize(need.label)} ({reason}); what was replied is in "
        f"{folder / 'replies.jsonl'}. Take another writer, more {WHERE}.attempts or {WHERE}.max_tokens, or leave such "
        f"examples out with task.on_bad_row=skip"
    )
