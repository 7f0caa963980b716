"""`python -m nlu_ppo.tables STUDY` prints the table of a study and writes it, with plots, beside its runs."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement

from nlu_ppo.tables.collect import Study, collect
from nlu_ppo.tables.plots import CURVE, learning_curves, score_bars
from nlu_ppo.tables.render import Table, build_table, to_csv, to_markdown, to_rich


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 if the study has no finished run."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a "±" that a console can't show is no reason to stop
    study = collect(options.outputs, options.study)
    table = build_table(study, options.expect_seeds)
    if not study.runs:
        _print_problems(table)
        print(_how_to_make_runs(study, options.outputs), file=sys.stderr)
        return 1
    _print_table(table)
    _print_problems(table)
    for line in _write(study, table):
        print(line)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nlu_ppo.tables", description=__doc__)
    parser.add_argument("study", help="name of the study: its folder below --outputs")
    parser.add_argument(
        "--outputs", type=Path, default=Path("outputs"), help="folder of all studies (%(default)s)"
    )
    parser.add_argument(
        "--expect-seeds",
        type=_positive,
        metavar="N",
        help="seeds each cell should have; fewer show as n=2/N, and cells that never ran as n=0/N",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def _print_table(table: Table) -> None:
    console = Console()
    drawn = to_rich(table)
    # In a narrow window, or a pipe (which counts as 80 wide), rich would cut numbers off: let lines wrap.
    widest = Measurement.get(console, console.options.update(max_width=10_000), drawn).maximum
    console = Console(width=max(console.width, widest))
    console.print(drawn)
    for note in table.notes:
        print(f"- {note}")


def _print_problems(table: Table) -> None:
    if table.problems:
        print("\nRuns without a result:")
        for problem in table.problems:
            print(f"- {problem}")


def _write(study: Study, table: Table) -> list[str]:
    """Writes table and plots; returns what to tell about each."""
    folder = study.folder / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    told = [""]
    for name, text in (("table.md", to_markdown(table)), ("table.csv", to_csv(table))):
        (folder / name).write_text(text, encoding="utf-8")
        told.append(str(folder / name))
    curves = folder / "learning_curves.png"
    if learning_curves(study, table.rows, curves):
        told.append(str(curves))
    else:
        curves.unlink(missing_ok=True)  # of an earlier call, and no longer true
        told.append(f"no {curves.name}: no finished run has recorded {CURVE}")
    score_bars(study, table.rows, folder / "scores.png")
    told.append(str(folder / "scores.png"))
    return told


def _how_to_make_runs(study: Study, outputs: Path) -> str:
    where = study.folder.resolve()
    if study.problems:
        found = f"no finished run in {where} ({len(study.problems)} failed, broken or unfinished)"
    else:
        found = f"no runs in {where}" if where.is_dir() else f"no folder {where}"
    others = sorted(path.name for path in outputs.glob("*") if path.is_dir() and path.name != study.name)
    lines = [
        found,
        f"make runs with: make sweep NAME={study.name}   (or: python train.py -m +sweeps={study.name})",
    ]
    if others:
        lines.append("studies in that place: " + ", ".join(others))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
