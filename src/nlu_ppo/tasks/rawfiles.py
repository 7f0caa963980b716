"""The benchmarks' own files, row by row, in the hub's schema.

Files are read as bytes and cut at line feeds only: text mode would also end a line at a carriage return, and
`str.splitlines` at U+0085 and U+2028, which stand within sentences. Quotes are text: a TSV field that begins
with one need not end with one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nlu_ppo.errors import DataError, MissingSplitError
from nlu_ppo.tasks.record import RawSource, Row, RowError, Task

# Where a row stands, and the row, or why it can't be read. `None`: left out on purpose.
Located = tuple[str, Row | RowError | None]

_BOM = b"\xef\xbb\xbf"


def locate(task: Task, split: str, data_dir: str | Path) -> list[Path]:
    """The files that hold a split: the data first, then a list of ids where the split needs one.

    Raises:
        MissingSplitError: none of the places that the release keeps them in exists.
    """
    raw = _raw_source(task, split)
    root = Path(data_dir).expanduser()
    if raw.shared_file and split in ("train", "validation"):
        shared = [_existing(root, name) for name in raw.shared_file]
        if all(shared):
            return [path for path in shared if path]
    for name in raw.files[split]:
        path = _existing(root, name)
        if path:
            return [path]
    tried = ", ".join(str(root / name) for name in raw.files[split])
    also = ""
    if raw.shared_file and split in ("train", "validation"):
        also = " (or " + " together with ".join(str(root / name) for name in raw.shared_file) + ")"
    raise MissingSplitError(
        f"task {task.name}: no file for split {split!r}; tried {tried}{also}. task.data_dir should hold the "
        f"benchmark's own layout, with {raw.files[split][0]} in it; or use task.source=hub"
    )


def _raw_source(task: Task, split: str) -> RawSource:
    if task.raw is None:
        raise DataError(f"task {task.name} has no raw files: use task.source=generated")
    if split not in task.raw.files:
        raise DataError(
            f"task {task.name} has no split {split!r} among its raw files; it has {', '.join(task.raw.files)}"
        )
    return task.raw


def _existing(root: Path, name: str) -> Path | None:
    """`root/glue/SST-2/dev.tsv`, or `root/SST-2/dev.tsv` where `root` is the benchmark's own folder."""
    for path in (root / name, root / name.partition("/")[2]):
        if path.is_file():
            return path
    return None


def raw_rows(task: Task, split: str, data_dir: str | Path) -> Iterator[Located]:
    """Rows of a split, with where they stand (`file:line`).

    Raises:
        DataError: missing file, or a header without the columns that the task needs.
    """
    files = locate(task, split, data_dir)
    if files[0].suffix == ".jsonl":
        return _json_rows(task, split, files[0])
    if files[0].suffix == ".json":
        return _document_rows(_raw_source(task, split), files[0])
    return _tsv_rows(task, split, files)


def _lines(path: Path) -> Iterator[tuple[int, str | RowError]]:
    """Line numbers from 1 and lines without their ends; empty lines are passed over."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(_BOM)
                line = line.rstrip(b"\r\n")
                if line:
                    try:
                        yield number, line.decode("utf-8")
                    except UnicodeDecodeError as error:
                        yield (
                            number,
                            RowError(f"not UTF-8 ({error.reason} at byte {error.start})"),
                        )
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error


# -- TSV ----------------------------------------------------------------------------------------------------


def _tsv_rows(task: Task, split: str, files: list[Path]) -> Iterator[Located]:
    path = files[0]
    raw = _raw_source(task, split)
    lines = _lines(path)
    if raw.header and not split.startswith("test"):
        header: tuple[str, ...] = raw.header
    else:
        header = _header(path, lines)
    wanted = {c: _column(path, header, raw.columns.get(c, (c,))) for c in task.columns}
    label_column = _label_column(task, split, path, header)
    in_validation = _id_pairs(files[1]) if len(files) > 1 else None
    short = 0

    for index, (number, line) in enumerate(lines):
        where = f"{path}:{number}"
        if isinstance(line, RowError):
            yield where, line
            continue
        cells = line.split("\t")
        if len(cells) != len(header):
            if len(cells) < len(header) and short < raw.short_rows:
                short += 1
                yield where, None
            else:
                yield (
                    where,
                    RowError(f"{len(cells)} columns instead of {len(header)} ({' '.join(header)})"),
                )
            continue
        item = dict(zip(header, cells, strict=True))
        if in_validation is not None:
            pair = (item["#1 ID"], item["#2 ID"])
            if (pair in in_validation) != (split == "validation"):
                continue
        row: dict[str, Any] = {column: item[name] for column, name in wanted.items()}
        # The hub numbers the rows of the file. Test files carry the server's own index, the same if complete.
        row["idx"] = index
        if split.startswith("test") and item.get("index", "").isdecimal():
            row["idx"] = int(item["index"])
        if label_column:
            row["label"] = item[label_column]
        yield where, row


def _header(path: Path, lines: Iterator[tuple[int, str | RowError]]) -> tuple[str, ...]:
    number, line = next(lines, (1, None))
    if line is None:
        raise DataError(f"{path} is empty: a header line and rows are due")
    if isinstance(line, RowError):
        raise DataError(f"{path}:{number}: {line}")
    return tuple(line.split("\t"))


def _column(path: Path, header: tuple[str, ...], names: tuple[str, ...]) -> str:
    for name in names:
        if name in header:
            return name
    raise DataError(
        f"{path}:1: the header has no column {' or '.join(map(repr, names))} (it has: {' '.join(header)}): "
        f"is this the benchmark's own file?"
    )


def _label_column(task: Task, split: str, path: Path, header: tuple[str, ...]) -> str | None:
    names = task.raw.label_columns if task.raw else ()
    found = [name for name in names if name in header]
    if found or split.startswith("test"):
        return found[0] if found else None
    return _column(path, header, names)


def _id_pairs(path: Path) -> set[tuple[str, ...]]:
    pairs = set()
    for number, line in _lines(path):
        cells = () if isinstance(line, RowError) else tuple(line.split("\t"))
        if len(cells) < 2:
            raise DataError(f"{path}:{number}: two ids are due, separated by a tab")
        pairs.add(cells[:2])
    return pairs


# -- JSON lines ---------------------------------------------------------------------------------------------


def _json_rows(task: Task, split: str, path: Path) -> Iterator[Located]:
    raw = _raw_source(task, split)
    for number, line in _lines(path):
        where = f"{path}:{number}"
        if isinstance(line, RowError):
            yield where, line
            continue
        try:
            item = json.loads(line)
        except ValueError as error:
            yield where, RowError(f"invalid JSON ({error})")
            continue
        if not isinstance(item, Mapping):
            yield where, RowError("a JSON object is due on every line")
            continue
        try:
            rows = list(raw.rows(item)) if raw.rows else [item]
        except (KeyError, TypeError, AttributeError) as error:
            yield where, RowError(f"not the release's shape: {_missing(error)}")
            continue
        for row in rows:
            names = {column: raw.columns.get(column, (column,)) for column in task.columns}
            renamed = {c: next((row[n] for n in ns if n in row), None) for c, ns in names.items()}
            yield where, {**row, **{c: v for c, v in renamed.items() if v is not None}}


def _document_rows(raw: RawSource, path: Path) -> Iterator[Located]:
    """Rows of a file that is one JSON document: it is read whole, since its end may be what is broken."""
    assert raw.document is not None, f"no rule for the rows of {path.name}"
    try:
        document = json.loads(path.read_bytes().removeprefix(_BOM))
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise DataError(f"{path}: invalid JSON ({error}): is the file whole?") from error
    return ((f"{path}: {place}", row) for place, row in raw.document(document))


def _missing(error: Exception) -> str:
    return f"no key {error.args[0]!r}" if isinstance(error, KeyError) else str(error)
