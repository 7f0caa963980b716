"""Parquet files: where a local copy of a hub repository keeps them, and their rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nlu_ppo.errors import MALFORMED, DataError

# What reading a damaged file ends in beside Arrow's own errors: texts may not be UTF-8, sizes not fit.
DAMAGED = (*MALFORMED, OSError, RuntimeError, MemoryError)


def parquet_files(folder: Path, config: str, split: str = "*") -> list[Path]:
    """The files of a split in a folder laid out as the hub's repositories are; of all splits by default.

    Where there is one configuration only, the files lie in `data/` or in the folder itself.
    """
    for place in [folder / config] if config else [folder / "data", folder]:
        files = {*place.glob(f"{split}-*.parquet"), *place.glob(f"{split}.parquet")}
        if files:
            return sorted(files)
    return []


def parquet_rows(path: Path, label_columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows with where they stand. Class ids become the class names that `datasets` wrote into the file.

    Raises:
        DataError: not a parquet file, or a damaged one.
    """
    import pyarrow  # takes a second to load, and composing a run needs only the names of files
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        names = {column: _class_names(file.schema_arrow, column) for column in label_columns}
        number = 0
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                for column in label_columns:
                    if names[column] and row.get(column) is not None:
                        row[column] = _name_of(row[column], names[column])
                yield f"{path} row {number}", row
                number += 1
    except (*DAMAGED, pyarrow.ArrowException) as error:
        raise DataError(f"{path} can't be read as a parquet file: {error}") from error


def _class_names(schema: Any, column: str) -> tuple[str, ...]:
    if b"huggingface" not in (schema.metadata or {}):
        return ()
    from datasets import Features  # takes seconds to load

    return tuple(getattr(Features.from_arrow_schema(schema).get(column), "names", None) or ())


def _name_of(value: Any, names: tuple[str, ...]) -> Any:
    """`None` for -1, which is how `datasets` marks a row without a label."""
    if not isinstance(value, int) or value >= len(names):
        return value
    return names[value] if value >= 0 else None
