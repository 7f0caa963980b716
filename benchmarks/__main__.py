"""`python -m benchmarks`: measures cases, keeps the rounds in a result file, prints the tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contenders import ONE_PREFIX, OURS, PLAIN, ROOT, contenders
from benchmarks.growth import growth, is_growth
from benchmarks.machine import describe
from benchmarks.report import SHOWN, last_line, tables, write_page
from benchmarks.results import RESULTS, Results
from benchmarks.session import Session, run_session
from benchmarks.workload import DATA_CASE, Workload, built_in, shrunk

QUICK_FILE = ROOT / "outputs" / "benchmarks" / "quick.json"
QUICK = {"reference": (OURS, "trl_1_12", "trl_0_11"), "eval_5_shot": (OURS, "lm_eval")}
ROUNDS, QUICK_ROUNDS = 5, 3
QUICK_BUDGET = {"reference": 330.0, "eval_5_shot": 90.0}  # seconds, so that the whole stays under 10 minutes
GROWTH_ROUNDS = 3
# All peers at the reference; elsewhere those that the question of a case is about.
OUR_WAYS, WITH_TRL = (OURS, ONE_PREFIX, PLAIN), (OURS, PLAIN, "trl_1_12", "trl_0_11")
PEERS_OF = {
    "all_linear": WITH_TRL,
    "vocabulary_152k": WITH_TRL,
    "prompt_256_common_90": WITH_TRL,
    "prompt_256_common_180": OUR_WAYS,
    "no_common": OUR_WAYS,
    "ragged": OUR_WAYS,
    DATA_CASE: OUR_WAYS,
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="few rounds of two cases; ends with one JSON line"
    )
    parser.add_argument(
        "--growth",
        action="store_true",
        help="the cases that show how time and memory grow, in place of the others",
    )
    parser.add_argument("--case", action="append", help="measure only this one (may be repeated)")
    parser.add_argument("--contenders", help="comma-separated names, in place of the case's own")
    parser.add_argument(
        "--rounds", type=int, default=None, help="rounds of every case (default 5; quick and growth 3)"
    )
    parser.add_argument("--append", action="store_true", help="add to the case's earlier rounds")
    parser.add_argument("--name", default="local", help="name of the result file in benchmarks/results/")
    parser.add_argument("--file", type=Path, help="a result file anywhere, in place of --name")
    parser.add_argument(
        "--data-dir", type=Path, help=f"raw files of the benchmarks: adds the case {DATA_CASE}"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="toy shapes, to try the harness: numbers mean nothing"
    )
    parser.add_argument(
        "--show", action="store_true", help="print the tables of the result file, measure nothing"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    path = options.file or (QUICK_FILE if options.quick else RESULTS / f"{options.name}.json")
    if not options.show:
        try:
            measure(options, path)
        except ValueError as error:
            print(f"benchmarks: {error}", file=sys.stderr)
            return 2
    results = Results.read(path)
    print(f"\n{tables(results)}")
    if path.resolve() == SHOWN.resolve():
        write_page()
    if options.quick:
        print(last_line(results))
    return 0


def measure(options: argparse.Namespace, path: Path) -> None:
    """Runs the chosen cases; the file is written after each round, so that nothing is lost by an interruption."""
    cases = _cases(options)
    machine = describe(next(iter(cases.values())).threads)
    results = Results(machine)
    if path.exists() and not options.quick:
        results = Results.read(path)
        if results.machine != machine:
            raise ValueError(f"{path.name} holds another machine's results: choose another --name")
    for name, workload in cases.items():
        print(f"{name}: {workload.about}", flush=True)
        known = contenders(workload.kind)
        chosen = _names(options, name, known)
        earlier = results if options.append else results.without(name)

        def save(session: Session, earlier: Results = earlier) -> None:
            earlier.plus(session).write(path)

        session = run_session(
            workload,
            [known[c] for c in chosen],
            options.rounds or _rounds(options, name),
            budget=QUICK_BUDGET[name] if options.quick else None,
            say=lambda text: print(text, flush=True),
            save=save,
        )
        results = earlier.plus(session)


def _rounds(options: argparse.Namespace, case: str) -> int:
    if options.quick:
        return QUICK_ROUNDS
    return GROWTH_ROUNDS if is_growth(case) else ROUNDS


def _cases(options: argparse.Namespace) -> dict[str, Workload]:
    known = built_in()
    if options.data_dir:
        from benchmarks.multirc import multirc

        known[DATA_CASE] = multirc(options.data_dir)
    chosen = list(QUICK) if options.quick else options.case or list(growth() if options.growth else known)
    known |= growth()
    unknown = [name for name in chosen if name not in known]
    if unknown:
        hint = f" ({DATA_CASE} needs --data-dir)" if DATA_CASE in unknown else ""
        raise ValueError(f"no case {', '.join(unknown)}{hint}; there are {', '.join(known)}")
    return {name: shrunk(known[name]) if options.tiny else known[name] for name in chosen}


def _names(options: argparse.Namespace, case: str, known: dict) -> list[str]:
    if options.contenders:
        names = [name for name in options.contenders.split(",") if name in known]
        if not names:
            raise ValueError(
                f"none of {options.contenders} takes part in {case}: there are {', '.join(known)}"
            )
        return names
    if options.quick:
        return list(QUICK[case])
    return [OURS, PLAIN] if is_growth(case) else list(PEERS_OF.get(case, known))


if __name__ == "__main__":
    sys.exit(main())
