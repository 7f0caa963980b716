"""`python -m nlu_ppo.tasks submission STUDY`: one zip for a benchmark's server, from the runs of a study.

Every file comes from exactly one run. What is missing, what several runs offer, and what has another size than
the server expects is an error unless the user decides it: nothing is left out or chosen in silence.
"""

from __future__ import annotations

import argparse
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlu_ppo.errors import MALFORMED, DataError
from nlu_ppo.tasks.submission import BENCHMARK_FILES, TSV_HEADER, OfficialFile
from nlu_ppo.tasks.text_table import aligned

FOLDER = "submission"  # in a run's folder
CHOOSING = ("model", "method", "seed")


@dataclass(frozen=True, eq=False)  # each is itself: two runs are never one
class Candidate:
    """A finished run that has answered test sets.

    Attributes:
        unparsable: file name to rows without a parsable answer.
        missing: file name to reason, for diagnostic sets that the run's data didn't hold.
    """

    folder: Path
    model: str
    method: str
    seed: str
    unparsable: Mapping[str, int]
    missing: Mapping[str, str]

    def path(self, file: OfficialFile) -> Path:
        return self.folder / FOLDER / file.name


@dataclass(frozen=True)
class Entry:
    """One file of the zip: its text, the official indices of its rows, and where it is from."""

    file: OfficialFile
    text: str
    indices: list[Any]
    unparsable: int | None
    origin: str


# -- the command ---------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", help="name of the study: its folder below --outputs")
    parser.add_argument("--benchmark", choices=tuple(BENCHMARK_FILES), required=True)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="folder of all studies")
    for name in CHOOSING:
        parser.add_argument(f"--{name}", help=f"only runs with this {name}")
    parser.add_argument(
        "--run",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="take this run's files where several runs have them (may be repeated)",
    )
    parser.add_argument(
        "--fill", type=Path, metavar="FILE.zip", help="take missing files from another submission"
    )
    parser.add_argument(
        "--partial", action="store_true", help="write the zip even if files have too few rows for the server"
    )
    parser.add_argument("--out", type=Path, default=Path("submission.zip"), help="where to (%(default)s)")


def command(options: argparse.Namespace) -> str:
    """Writes the zip; returns what to tell about it.

    Raises:
        DataError: a file is missing, damaged, offered by several runs, or not of the official size.
    """
    entries = gather(options)
    wrong = [f"{entry.file.name}: {told} ({entry.origin})" for entry in entries if (told := mismatch(entry))]
    if wrong and not options.partial:
        raise DataError(
            "\n  ".join(["the server would refuse these files:", *wrong])
            + "\nA sample of the test data, task.limit.eval and task.on_bad_row=skip leave rows out; "
            "--partial writes the zip all the same"
        )
    write_zip(entries, options.out)
    rows = [("file", "rows", "unparsable", "from")]
    for entry in entries:
        unparsable = "-" if entry.unparsable is None else str(entry.unparsable)
        rows.append((entry.file.name, str(len(entry.indices)), unparsable, entry.origin))
    lines = [aligned(rows), ""]
    lines += [f"warning: {told}" for told in wrong]
    filled = [entry.file.name for entry in entries if entry.origin == str(options.fill)]
    if filled:
        lines.append(f"not answered by this study, but filled in from {options.fill}: {', '.join(filled)}")
    return "\n".join([*lines, f"wrote {options.out}"])


def gather(options: argparse.Namespace) -> list[Entry]:
    """The benchmark's files, each from its one run or from the zip that fills in.

    Raises:
        DataError: names all files that are missing and all that several runs have.
    """
    files = BENCHMARK_FILES[options.benchmark]
    found = list(read_candidates(options.outputs / options.study))
    fill = _read_zip(options.fill) if options.fill else {}
    chosen = _chosen(found, options)
    entries: list[Entry] = []
    missing: list[str] = []
    disputed: dict[tuple[Candidate, ...], list[str]] = {}
    for file in files:
        having = tuple(c for c in _preferred(chosen, options.run, file) if c.path(file).is_file())
        if len(having) == 1:
            entries.append(_entry(file, having[0]))
        elif having:
            disputed.setdefault(having, []).append(file.name)
        elif file.name in fill:
            text = fill[file.name]
            indices = read_indices(file, text, f"{options.fill}/{file.name}")
            entries.append(Entry(file, text, indices, None, str(options.fill)))
        else:
            missing.append(f"{file.name}: {_why_missing(file, found, chosen)}")
    problems = [*_dispute(disputed), *_shortfall(missing, options)]
    if problems:
        raise DataError("\n".join(problems))
    return entries


# -- runs ----------------------------------------------------------------------------------------------------


def read_candidates(study: Path) -> Iterator[Candidate]:
    """The finished runs anywhere below a study's folder that hold a submission.

    Raises:
        DataError: there is no such folder, or a result can't be read.
    """
    if not study.is_dir():
        others = sorted(path.name for path in study.parent.glob("*") if path.is_dir())
        known = f"; studies in {study.parent}: {', '.join(others)}" if others else ""
        raise DataError(f"no folder {study}{known}. --outputs names the folder of all studies")
    for path in sorted(study.rglob("result.json")):
        if not (path.parent / FOLDER).is_dir():
            continue
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            if result["status"] == "finished":
                yield _candidate(path.parent, result)
        except (OSError, *MALFORMED) as error:
            raise DataError(f"{path} can't be read as a run's result ({error!r}): start it again") from error


def _candidate(folder: Path, result: Mapping[str, Any]) -> Candidate:
    counts = {
        name.split("/")[1]: int(value)
        for name, value in result["metrics"].items()
        if name.startswith("submission/") and name.endswith("/unparsable")
    }
    missing = result.get("submission_missing") or {}
    return Candidate(
        folder,
        result["model"],
        result["method"],
        str(result["seed"]),
        counts,
        {str(k): v for k, v in missing.items()},
    )


def _chosen(candidates: Sequence[Candidate], options: argparse.Namespace) -> list[Candidate]:
    wanted = {name: getattr(options, name) for name in CHOOSING if getattr(options, name) is not None}
    known = {candidate.folder.resolve() for candidate in candidates}
    named = {folder.resolve() for folder in options.run}
    for folder in options.run:
        if folder.resolve() not in known:
            raise DataError(
                f"--run {folder}: no finished run of study {options.study} with a folder {FOLDER}/ in it"
            )
    return [
        c
        for c in candidates
        if c.folder.resolve() in named or all(getattr(c, name) == value for name, value in wanted.items())
    ]


def _preferred(
    candidates: Iterable[Candidate], runs: Sequence[Path], file: OfficialFile
) -> Iterable[Candidate]:
    """Those that `--run` names, if one of them has the file; else all."""
    named = {folder.resolve() for folder in runs}
    preferred = [c for c in candidates if c.folder.resolve() in named and c.path(file).is_file()]
    return preferred or candidates


def _entry(file: OfficialFile, run: Candidate) -> Entry:
    path = run.path(file)
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read: {error}") from error
    return Entry(
        file, text, read_indices(file, text, str(path)), run.unparsable.get(file.name), str(run.folder)
    )


# -- what the user must decide -------------------------------------------------------------------------------


def _why_missing(file: OfficialFile, found: Sequence[Candidate], chosen: Sequence[Candidate]) -> str:
    for candidate in chosen:
        if file.name in candidate.missing:
            return f"{candidate.folder} ran without its examples: {candidate.missing[file.name]}"
    passed_over = [str(c.folder) for c in found if c.path(file).is_file()]
    if passed_over:
        return f"only in runs that the flags leave out: {', '.join(passed_over)}"
    return f"no finished run with task={file.task} eval=submission"


def _shortfall(missing: Sequence[str], options: argparse.Namespace) -> list[str]:
    if not missing:
        return []
    lacking = f", and neither has {options.fill}" if options.fill else ""
    return [
        f"study {options.study} doesn't have all files of {options.benchmark}{lacking}:",
        *(f"  {line}" for line in missing),
        f"run what is missing (python train.py task=TASK eval=submission study={options.study} ...; a diagnostic "
        "set is answered along with its task, once its examples are there), or take these files from another "
        "submission with --fill FILE.zip",
    ]


def _dispute(disputed: Mapping[tuple[Candidate, ...], Sequence[str]]) -> list[str]:
    lines = []
    for runs, names in disputed.items():
        flags = [f"--{name}" for name in CHOOSING if len({getattr(run, name) for run in runs}) > 1]
        lines.append(
            f"{len(runs)} runs have {', '.join(names)}; choose with {' or '.join([*flags, '--run'])}:"
        )
        lines += [f"  {r.folder}: model {r.model}, method {r.method}, seed {r.seed}" for r in runs]
    return lines


# -- files ---------------------------------------------------------------------------------------------------


def read_indices(file: OfficialFile, text: str, where: str) -> list[Any]:
    """The official indices of a file's answers.

    Raises:
        DataError: names the line that isn't in the server's format.
    """
    lines = [line.rstrip("\r") for line in text.split("\n")]
    if lines[-1] == "":
        lines.pop()
    tsv, nested = file.name.endswith(".tsv"), file.task == "multirc"
    if tsv and lines[:1] != [TSV_HEADER]:
        raise DataError(f"{where}:1: the header line {TSV_HEADER!r} is due")
    read: Callable[[str], list[Any]] = _tsv_index if tsv else _nested if nested else _json_index
    indices: list[Any] = []
    for number, line in enumerate(lines, start=1):
        if tsv and number == 1:
            continue
        try:
            indices += read(line)
        except MALFORMED as error:
            raise DataError(f"{where}:{number}: not in the server's format ({error!r})") from error
    return indices


def _tsv_index(line: str) -> list[int]:
    index, value = line.split("\t")
    if not value:
        raise ValueError("no prediction")
    return [int(index)]


def _json_index(line: str) -> list[int]:
    row = json.loads(line)
    row["label"]  # must be there
    return [int(row["idx"])]


def _nested(line: str) -> list[tuple[int, int, int]]:
    row = json.loads(line)
    indices = []
    for question in row["passage"]["questions"]:
        for answer in question["answers"]:
            answer["label"]  # must be there
            indices.append((int(row["idx"]), int(question["idx"]), int(answer["idx"])))
    return indices


def mismatch(entry: Entry) -> str | None:
    """What the server would find wrong with the number of rows and their indices."""
    rows, expected = len(entry.indices), entry.file.rows
    distinct = len(set(entry.indices))
    if rows != expected:
        return f"{rows} rows, and the server expects {expected}"
    if distinct != rows:
        return f"{rows - distinct} of its {rows} rows repeat an index"
    # SuperGLUE's files are matched by idx, and no source says where each of them begins
    if entry.file.name.endswith(".tsv") and set(entry.indices) != set(range(expected)):
        return f"its indices aren't 0 to {expected - 1}"
    return None


def write_zip(entries: Iterable[Entry], path: Path) -> None:
    """A flat zip; the same answers give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with zipfile.ZipFile(partial, "w") as archive:
        for entry in entries:
            info = zipfile.ZipInfo(entry.file.name)  # has a fixed date
            info.external_attr = 0o644 << 16
            archive.writestr(info, entry.text.encode("utf-8"), zipfile.ZIP_DEFLATED)
    partial.replace(path)


def _read_zip(path: Path) -> dict[str, str]:
    """File name to text; folders within the zip don't count."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                Path(item.filename).name: archive.read(item).decode("utf-8")
                for item in archive.infolist()
                if item.filename.endswith((".tsv", ".jsonl")) and "__MACOSX" not in item.filename
            }
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, *MALFORMED) as error:
        raise DataError(f"--fill {path}: can't be read as a zip of submission files ({error})") from error
