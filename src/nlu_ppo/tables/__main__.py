"""`python -m nlu_ppo.tables STUDY` prints the table of a study and writes it, with plots, beside its runs.

Exit codes: 0: there is a table, and all that `sweeps/expected/STUDY.yaml` asks for is there and within its
tolerance (without such a file: there are finished runs). 1: no finished run, or a cell is missing or drifted; the
list says which. 2: a wrong argument, or a malformed file in `sweeps/expected/`.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement

from nlu_ppo.errors import UserError
from nlu_ppo.tables.collect import Study, collect
from nlu_ppo.tables.expected import FOLDER, load_expected
from nlu_ppo.tables.latex import to_latex
from nlu_ppo.tables.page import to_html
from nlu_ppo.tables.plots import CURVE, learning_curves, printed_bars, score_bars
from nlu_ppo.tables.render import metrics_to_csv, to_csv, to_markdown, to_rich
from nlu_ppo.tables.sections import Table, build_table, sections

UNMET = 1
USER_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a "±" that a console can't show is no reason to stop
    try:
        expected = load_expected(options.study, options.expected)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    study = collect(options.outputs, options.study)
    table = build_table(study, options.expect_seeds, expected)
    if study.runs:
        _print_table(table)
        for line in _write(study, table):
            print(line)
    _print_problems(table)
    if not study.runs:
        print(_how_to_make_runs(study, options.outputs), file=sys.stderr)
        return UNMET
    return _print_verdicts(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nlu_ppo.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", help="name of the study: its folder below --outputs")
    parser.add_argument(
        "--outputs", type=Path, default=Path("outputs"), help="folder of all studies (%(default)s)"
    )
    parser.add_argument(
        "--expected", type=Path, default=FOLDER, help="folder of what studies are held to (sweeps/expected)"
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
    for section in sections(table):
        console = Console()
        drawn = to_rich(section, f"{table.title}: {section.title}")
        # In a narrow window, or a pipe (which counts as 80 wide), rich would cut numbers off: let lines wrap.
        widest = Measurement.get(console, console.options.update(max_width=10_000), drawn).maximum
        Console(width=max(console.width, widest)).print(drawn)
        for note in section.notes:
            print(f"- {note}\n")
    for note in (*table.notes, *table.printed_notes):
        print(f"- {note}")


def _print_problems(table: Table) -> None:
    if table.problems:
        print("\nRuns without a result:")
        for problem in table.problems:
            print(f"- {problem}")


def _print_verdicts(table: Table) -> int:
    """Tells what was expected and isn't so, and returns the exit code."""
    if not table.failures:
        if table.verdicts:
            print(f"\nAll {len(table.verdicts)} expected cells are there, within their tolerances.")
        return 0
    print(
        f"\n{len(table.failures)} of {len(table.verdicts)} expected cells drifted or are missing:",
        file=sys.stderr,
    )
    for verdict in table.failures:
        print(f"- {verdict.told}", file=sys.stderr)
    return UNMET


def _write(study: Study, table: Table) -> Iterator[str]:
    """Writes table and plots; yields what to tell about each."""
    folder = study.folder / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "scores.png": ("Scores with 95% intervals over examples.", score_bars(study, table.rows)),
        "beside_the_paper.png": (
            "Every metric that a paper prints: ours filled, the paper's hollow, each with its 95% interval.",
            printed_bars(study, table.rows, table.lines),
        ),
        "learning_curves.png": (
            "Score on the slice held out of train over the training examples seen, mean over seeds.",
            learning_curves(study, table.rows),
        ),
    }
    drawn = {caption: figure for caption, figure in pictures.values() if figure is not None}
    texts = {
        "table.html": to_html(study, table, drawn),
        "table.md": to_markdown(table),
        "table.tex": to_latex(table),
        "table.csv": to_csv(table),
        "metrics.csv": metrics_to_csv(table),
    }
    yield ""
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        yield str(folder / name)
    for name, (_, figure) in pictures.items():
        if figure is not None:
            figure.savefig(folder / name, dpi=150)
            yield str(folder / name)
            continue
        (folder / name).unlink(missing_ok=True)  # of an earlier call, and no longer true
        if name == "learning_curves.png":
            yield f"no {name}: no finished run has recorded {CURVE}"


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
