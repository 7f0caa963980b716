"""The benchmarks' own files, and a user's own, row by row, in the hub's schema.

TSV and JSON files are read as bytes and cut at line feeds only: text mode would also end a line at a carriage
return, and `str.splitlines` at U+0085 and U+2028, which stand within sentences. Quotes in a TSV are text: a
field that begins with one need not end with one. CSV is the format with quoting (RFC 4180).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nlu_ppo.errors import DataError, MissingSplitError
from nlu_ppo.tasks.parquet import parquet_rows
from nlu_ppo.tasks.record import RawSource, Row, RowError, Source, Task

# Where a row stands, and the row, or why it can't be read. `None`: left out on purpose.
Located = tuple[str, Row | RowError | None]

# Line number and the fields on it, or why they can't be read.
Record = tuple[int, Sequence[str] | RowError]

_BOM = b"\xef\xbb\xbf"
_LONGEST_FIELD = 1 << 27  # of a CSV, in characters; the csv module's own limit cuts off long documents


def locate(task: Task, split: str, data_dir: str | Path | None) -> list[Path]:
    """The files that hold a split: the data first, then a list of ids where the split needs one.

    Raises:
        MissingSplitError: none of the places that the release keeps them in exists.
    """
    raw = _raw_source(task, split)
    if raw.shared_file and split in ("train", "validation"):
        shared = [_existing(raw, data_dir, name) for name in raw.shared_file]
        if all(shared):
            return [path for path in shared if path]
    for name in raw.files[split]:
        path = _existing(raw, data_dir, name)
        if path:
            return [path]
    tried = ", ".join(str(_places(raw, data_dir, name)[0]) for name in raw.files[split])
    if raw.root is not None:
        raise MissingSplitError(
            f"task {task.name}: no file for split {split!r}; tried {tried}. Mend task.record.files.{split}: a "
            f"path is taken below task.data_dir if that is given, else below the project's folder"
        )
    also = ""
    if raw.shared_file and split in ("train", "validation"):
        both = " together with ".join(str(_places(raw, data_dir, name)[0]) for name in raw.shared_file)
        also = f" (or {both})"
    raise MissingSplitError(
        f"task {task.name}: no file for split {split!r}; tried {tried}{also}. task.data_dir should hold the "
        f"benchmark's own layout, with {raw.files[split][0]} in it"
        + ("; or use task.source=hub" if task.hub else "")
    )


def _raw_source(task: Task, split: str) -> RawSource:
    if task.raw is None:
        raise DataError(f"task {task.name} has no raw files: use task.source=generated")
    if split not in task.raw.files:
        raise DataError(
            f"task {task.name} has no split {split!r} among its raw files; it has {', '.join(task.raw.files)}"
        )
    return task.raw


def _places(raw: RawSource, data_dir: str | Path | None, name: str) -> list[Path]:
    """Where a file may be, the likeliest place first."""
    if raw.root is not None:
        return [(Path(data_dir).expanduser() if data_dir else raw.root) / Path(name).expanduser()]
    root = Path(data_dir or ".").expanduser()
    # `root/glue/SST-2/dev.tsv`, or `root/SST-2/dev.tsv` where `root` is the benchmark's own folder
    return [root / name, root / name.partition("/")[2]]


def _existing(raw: RawSource, data_dir: str | Path | None, name: str) -> Path | None:
    return next((path for path in _places(raw, data_dir, name) if path.is_file()), None)


def raw_rows(task: Task, split: str, data_dir: str | Path | None) -> Iterator[Located]:
    """Rows of a split, with where they stand (`file:line`).

    Raises:
        DataError: missing file, or a header without the columns that the task needs.
    """
    files = locate(task, split, data_dir)
    raw, suffix = _raw_source(task, split), files[0].suffix
    if suffix == ".jsonl":
        return _json_rows(task, raw, files[0])
    if suffix == ".json":
        return _document_rows(raw, files[0])
    if suffix == ".parquet":
        return (
            (where, as_hub_row(task, raw, item, number))
            for number, (where, item) in enumerate(parquet_rows(files[0], raw.label_columns))
        )
    return _table_rows(task, split, files)


def as_hub_row(task: Task, source: Source, item: Row, number: int) -> Row:
    """An item under the names that the record has for its columns."""
    row = dict(item)
    for column, names in [
        *((c, source.columns.get(c, (c,))) for c in task.columns),
        ("label", source.label_columns),
    ]:
        value = _first(item, names)
        if value is not None:
            row[column] = value
        else:
            row.pop(column, None)  # another column of that name must not stand in for the right one
    if source.numbered:
        row["idx"] = number
    return row


def _first(item: Row, names: Sequence[str]) -> Any:
    return next((item[name] for name in names if item.get(name) is not None), None)


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


# -- tables -------------------------------------------------------------------------------------------------


def _tsv_records(path: Path) -> Iterator[Record]:
    for number, line in _lines(path):
        yield number, line if isinstance(line, RowError) else line.split("\t")


def _csv_records(path: Path) -> Iterator[Record]:
    """Records with the line that each begins on: a quoted field may hold line breaks."""
    csv.field_size_limit(_LONGEST_FIELD)
    try:
        # Undecodable bytes are carried along, so that they spoil one row and not the reading of all others.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, strict=True)
            while True:
                begin = reader.line_num + 1
                try:
                    cells = next(reader, None)
                except csv.Error as error:
                    yield begin, RowError(f"not valid CSV ({error})")
                    continue
                if cells is None:
                    return
                if cells:  # an empty line has none
                    yield begin, cells if _is_text(cells) else RowError("not UTF-8")
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error


def _is_text(cells: Sequence[str]) -> bool:
    try:
        "".join(cells).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _table_rows(task: Task, split: str, files: list[Path]) -> Iterator[Located]:
    path = files[0]
    raw = _raw_source(task, split)
    records = _csv_records(path) if path.suffix == ".csv" else _tsv_records(path)
    if raw.header and not split.startswith("test"):
        header: tuple[str, ...] = raw.header
    else:
        header = _header(path, records)
    wanted = {c: _column(raw, path, header, raw.columns.get(c, (c,))) for c in task.columns}
    label_column = _label_column(raw, split, path, header)
    in_validation = _id_pairs(files[1]) if len(files) > 1 else None
    short = 0

    for index, (number, cells) in enumerate(records):
        where = f"{path}:{number}"
        if isinstance(cells, RowError):
            yield where, cells
            continue
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
        if split.startswith("test") and not raw.numbered and item.get("index", "").isdecimal():
            row["idx"] = int(item["index"])
        if label_column:
            row["label"] = item[label_column]
        yield where, row


def _header(path: Path, records: Iterator[Record]) -> tuple[str, ...]:
    number, cells = next(records, (1, None))
    if cells is None:
        raise DataError(f"{path} is empty: a header line and rows are due")
    if isinstance(cells, RowError):
        raise DataError(f"{path}:{number}: {cells}")
    return tuple(cells)


def _column(raw: RawSource, path: Path, header: tuple[str, ...], names: tuple[str, ...]) -> str:
    for name in names:
        if header.count(name) > 1:
            raise DataError(f"{path}:1: the header has the column {name!r} {header.count(name)} times")
        if name in header:
            return name
    advice = (
        "say in task.record.columns (or label_column) what it is called"
        if raw.root is not None
        else "is this the benchmark's own file?"
    )
    raise DataError(
        f"{path}:1: the header has no column {' or '.join(map(repr, names))} (it has: {' '.join(header)}): "
        f"{advice}"
    )


def _label_column(raw: RawSource, split: str, path: Path, header: tuple[str, ...]) -> str | None:
    if split.startswith("test") and not any(name in header for name in raw.label_columns):
        return None
    return _column(raw, path, header, raw.label_columns)


def _id_pairs(path: Path) -> set[tuple[str, ...]]:
    pairs = set()
    for number, line in _lines(path):
        cells = () if isinstance(line, RowError) else tuple(line.split("\t"))
        if len(cells) < 2:
            raise DataError(f"{path}:{number}: two ids are due, separated by a tab")
        pairs.add(cells[:2])
    return pairs


# -- JSON lines ---------------------------------------------------------------------------------------------


def _json_rows(task: Task, raw: RawSource, path: Path) -> Iterator[Located]:
    for place, (number, line) in enumerate(_lines(path)):
        where = f"{path}:{number}"
        if isinstance(line, RowError):
            yield where, line
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield where, RowError(f"invalid JSON ({error})")
            continue
        if not isinstance(item, Mapping):
            yield where, RowError("a JSON object is due on every line")
            continue
        try:
            rows = list(raw.rows(item)) if raw.rows else [item]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            yield where, RowError(f"not the release's shape: {_missing(error)}")
            continue
        for row in rows:
            yield where, as_hub_row(task, raw, row, place)


def _document_rows(raw: RawSource, path: Path) -> Iterator[Located]:
    """Rows of a file that is one JSON document: it is read whole, since its end may be what is broken."""
    assert raw.document is not None, f"no rule for the rows of {path.name}"
    try:
        document = json.loads(path.read_bytes().removeprefix(_BOM))
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        raise DataError(f"{path}: invalid JSON ({error}): is the file whole?") from error
    return ((f"{path}: {place}", row) for place, row in raw.document(document))


def _missing(error: Exception) -> str:
    return f"no key {error.args[0]!r}" if isinstance(error, KeyError) else str(error)
