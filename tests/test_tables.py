"""Tables and plots of run folders that the tests write themselves."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from run_folders import write_lines, write_run

from nlu_ppo.tables import Cell, build_table, collect, compare, summarize, to_csv, to_markdown
from nlu_ppo.tables.__main__ import main
from nlu_ppo.tables.collect import read_curve
from nlu_ppo.tables.order import cell_order
from nlu_ppo.tables.plots import learning_curves, mean_curve, score_bars


def records(table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(table))))


def line_of(table, *words: str, section: str = "Scores") -> list[str]:
    """The cells of the one Markdown line of that section that holds all words."""
    text = to_markdown(table).split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = [li for li in text.splitlines() if li.startswith("|") and all(w in li for w in words)]
    assert len(lines) == 1, lines
    return [cell.strip() for cell in lines[0].strip("|").split("|")]


class TestCollect:
    def test_finished(self, tmp_path):
        folder = write_run(tmp_path, "ppo", 3)
        study = collect(tmp_path, "demo")
        (run,) = study.runs
        assert (run.folder, run.seed) == (folder, 3)
        assert run.cell == Cell("rte", "tiny", "ppo", "label", "paper")
        one = run.headline
        assert (one.score, one.ci95, one.n, one.unparsable) == (75.0, (65.0, 85.0), 4, 1)
        assert run.fit_and_evaluate == 24.0
        assert run.seconds == 124.0  # with loading
        assert (study.problems, study.notes) == ((), ())

    def test_no_study(self, tmp_path):
        study = collect(tmp_path, "nothing")
        assert (study.runs, study.problems) == ((), ())

    def test_newest_of_duplicates_wins_and_says_so(self, tmp_path):
        old = write_run(tmp_path, key="ffffffff", score=10.0)
        new = write_run(tmp_path, key="00000000", score=90.0)
        os.utime(old / "result.json", (1000, 1000))
        os.utime(new / "result.json", (2000, 2000))
        study = collect(tmp_path, "demo")
        assert [run.score for run in study.runs] == [90.0]
        (note,) = study.notes
        assert "0-00000000, is shown, not 0-ffffffff" in note

    def test_failed_and_unfinished(self, tmp_path):
        write_run(
            tmp_path, seed=0, status="failed", error="Traceback ...\n  File x\nOutOfMemoryError: 3 GiB\n"
        )
        write_run(tmp_path, seed=1, status="running")
        bare = write_run(tmp_path, seed=2, curve=[(8, 50.0), (16, 60.0)])
        (bare / "result.json").unlink()
        study = collect(tmp_path, "demo")
        assert study.runs == ()
        told = {problem.seed: (problem.status, problem.error) for problem in study.problems}
        assert told == {
            0: ("failed", "OutOfMemoryError: 3 GiB"),
            1: ("unfinished", "result.json says running"),
            2: ("unfinished", "no result.json; last recorded step 1"),
        }

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ('{"status": "fini', "result.json"),
            ("", "result.json"),
            ("[]", "not a JSON object"),
            ('{"status": "finished"}', "without a score"),
            ('{"status": "finished", "score": NaN}', "score is nan"),
            ('{"status": "finished", "score": "81"}', "score is '81'"),
            ('{"status": "finished", "score": 81, "ci95": [80]}', "ci95"),
            ('{"status": "finished", "score": 81, "n": 0}', "nothing was evaluated"),
            ('{"status": "finished", "score": 81, "seconds": 3}', "seconds"),
            ('{"status": "finished", "score": 81, "task": 7}', "task is 7"),
            ('{"status": "done"}', "unknown status 'done'"),
            ("{}", "unknown status None"),
        ],
    )
    def test_broken_is_reported(self, tmp_path, text, reason):
        folder = write_run(tmp_path)
        (folder / "result.json").write_text(text)
        study = collect(tmp_path, "demo")
        assert study.runs == ()
        (problem,) = study.problems
        assert (problem.status, problem.folder) == ("broken", folder)
        assert reason in problem.error

    def test_wrong_bytes_are_reported(self, tmp_path):
        (write_run(tmp_path) / "result.json").write_bytes(b"\xff\xfe\x00")
        assert [p.status for p in collect(tmp_path, "demo").problems] == ["broken"]

    def test_other_folders_are_no_runs(self, tmp_path):
        folder = write_run(tmp_path)
        (folder.parent / ".hydra").mkdir()
        (folder / "checkpoints" / "step").mkdir(parents=True)
        (tmp_path / "demo" / "tables").mkdir()
        study = collect(tmp_path, "demo")
        assert (len(study.runs), study.problems) == (1, ())

    def test_sparse_result(self, tmp_path):
        folder = write_run(tmp_path)
        (folder / "result.json").write_text('{"status": "finished", "score": 50}')
        (run,) = collect(tmp_path, "demo").runs
        assert run.cell == Cell("rte", "tiny", "sft")
        assert (run.seed, run.score, run.headline.ci95, run.seconds) == (0, 50.0, None, None)

    def test_curve_of_a_resumed_run(self, tmp_path):
        folder = write_run(tmp_path)
        text = (
            '{"step": 0, "examples": 0, "select/score": 40}\n'
            '{"step": 1, "examples": 8, "train/loss": 1.0}\n'
            '{"step": 2, "examples": 16, "select/score": 50}\n'
            '{"step": 3, "examples": 24, "select/sc\n'  # cut off here, resumed from step 1
            '{"step": 2, "examples": 16, "select/score": 55}\n'
            '{"step": 3, "examples": 24, "select/score": NaN}\n'
            '{"step": 4, "examples": 32, "select/score": 60}\n'
        )
        (folder / "metrics.jsonl").write_text(text)
        (run,) = collect(tmp_path, "demo").runs
        assert read_curve(run, "select/score") == [(0, 40), (16, 55), (32, 60)]


class TestTable:
    def test_mean_over_seeds(self, tmp_path):
        for seed, score in enumerate([70.0, 72.0, 77.0]):
            write_run(tmp_path, seed=seed, score=score, ci95=[score - 6, score + 3])
        table = build_table(collect(tmp_path, "demo"))
        cells = line_of(table, "sft")
        assert cells[:5] == ["rte", "sft", "73.0 ± 3.6", "67.0 to 76.0", "n=3"]
        assert cells[5:8] == ["25.0", "77.0", "55.0"]
        # three runs of 124 seconds
        assert line_of(table, "sft", section="Cost")[2:] == ["n=3", "4", "24.0", "12.5", "0.103", "1.00"]

    def test_natural_order(self, tmp_path):
        for task in ("wic", "cola", "my_task", "rte"):
            for method in ("rloo", "ppo", "few_shot", "grpo", "sft", "zero_shot"):
                write_run(tmp_path, method, task=task)
        table = build_table(collect(tmp_path, "demo"))
        methods = ["majority", "zero_shot", "few_shot", "sft", "ppo", "grpo", "rloo"]
        expected = [(task, method) for task in ("cola", "rte", "wic", "my_task") for method in methods]
        assert [(row.cell.task, row.cell.method) for row in table.rows] == expected

    def test_models_sort_by_number(self):
        cells = [Cell("rte", model, "sft") for model in ("qwen", "llama2_13b", "llama2_7b")]
        assert [c.model for c in sorted(cells, key=cell_order)] == ["llama2_7b", "llama2_13b", "qwen"]

    def test_majority_row(self, tmp_path):
        write_run(tmp_path)
        cells = line_of(build_table(collect(tmp_path, "demo")), "majority |", "rte")
        assert cells == ["rte", "majority", "55.0", "-", "-", "-", "-", "55.0"]

    def test_columns_appear_where_they_tell_apart(self, tmp_path):
        write_run(tmp_path, "zero_shot")
        write_run(tmp_path, "ppo")
        assert build_table(collect(tmp_path, "demo")).fields == ()
        write_run(tmp_path, "ppo", reward="graded")
        write_run(tmp_path, "ppo", model="other")
        table = build_table(collect(tmp_path, "demo"))
        assert table.fields == ("model", "reward")
        assert line_of(table, "graded")[:4] == ["rte", "tiny", "ppo", "graded"]
        assert line_of(table, "zero_shot |", "tiny")[:4] == ["rte", "tiny", "zero_shot", "-"]

    def test_missing_is_a_dash_never_zero(self, tmp_path):
        write_run(tmp_path, ci95=None, unparsable=None, likelihood_score=None, seconds=None, majority=None)
        table = build_table(collect(tmp_path, "demo"))
        assert line_of(table, "sft") == ["rte", "sft", "75.0", "-", "n=1", "-", "-", "-"]
        (majority, sft) = records(table)
        assert (
            majority["score"]
            == sft["ci_low"]
            == sft["seconds"]
            == sft["p_value_vs_zero_shot"]
            == sft["deviation"]
            == "-"
        )

    def test_unfinished_seeds_are_counted(self, tmp_path):
        write_run(tmp_path, seed=0)
        write_run(tmp_path, seed=1)
        (write_run(tmp_path, seed=2) / "result.json").unlink()
        write_run(tmp_path, "ppo", status="failed", error="boom")
        table = build_table(collect(tmp_path, "demo"))
        assert line_of(table, "sft")[2:5] == ["75.0 ± 0.0", "65.0 to 85.0", "n=2/3"]
        assert line_of(table, "| ppo")[2:] == ["-", "-", "n=0/1", *["-"] * 3]
        assert any("failed" in problem and "boom" in problem for problem in table.problems)
        assert "boom" in to_markdown(table)

    def test_a_repeated_failure_is_one_seed(self, tmp_path):
        write_run(tmp_path, seed=0, key="aaaaaaaa", status="failed", error="boom")
        write_run(tmp_path, seed=0, key="bbbbbbbb")
        assert line_of(build_table(collect(tmp_path, "demo")), "sft")[4] == "n=1"

    def test_a_run_that_could_be_of_several_cells_counts_for_none(self, tmp_path):
        write_run(tmp_path, "ppo", 0)
        write_run(tmp_path, "ppo", 0, reward="graded")
        (write_run(tmp_path, "ppo", 1) / "result.json").unlink()
        table = build_table(collect(tmp_path, "demo"))
        assert [(row.seeds, row.expected) for row in table.rows[1:]] == [(1, 1), (1, 1)]
        assert len(table.problems) == 1

    def test_expected_seeds_complete_the_grid(self, tmp_path):
        write_run(tmp_path, "sft", task="rte")
        write_run(tmp_path, "zero_shot", task="rte")
        write_run(tmp_path, "sft", task="cb")
        study = collect(tmp_path, "demo")
        table = build_table(study, expect_seeds=3)
        assert line_of(table, "cb", "| zero_shot")[2:5] == ["-", "-", "n=0/3"]
        assert line_of(table, "rte", "sft")[4] == "n=1/3"
        assert len(summarize(study)[0]) == len(summarize(study, 3)[0]) - 1

    def test_a_setting_of_a_task_is_expected_on_no_other(self, tmp_path):
        for mixing in ("equal", "proportional"):
            write_run(tmp_path, task="glue", identity={"task": {"mixing": mixing}, "method": {"k": 1}})
        write_run(tmp_path, task="rte", identity={"method": {"k": 1}})
        rows, _ = summarize(collect(tmp_path, "demo"), 1)
        cells = [(row.cell.task, dict(row.cell.settings)) for row in rows if row.cell.method == "sft"]
        assert cells == [
            ("rte", {}),
            ("glue", {}),  # the cell of rte
            ("glue", {"task.mixing": "equal"}),
            ("glue", {"task.mixing": "proportional"}),
        ]

    def test_seeds_share_a_row_whatever_their_first_stages_are_called(self, tmp_path):
        for seed, rate, key in ((0, 0.1, "aaaa"), (1, 0.1, "bbbb"), (0, 0.2, "cccc")):
            run = write_run(
                tmp_path, "ppo", seed=seed, identity={"start": key, "reward": {"label_model": key[::-1]}}
            )
            config = {"method": {"start": {"learning_rate": rate}}, "reward": {"label_model": {"epochs": 1}}}
            (run / "config.yaml").write_text(json.dumps(config))
        rows, _ = summarize(collect(tmp_path, "demo"), 1)
        ours = [row for row in rows if row.cell.method == "ppo"]
        assert sorted(row.seeds for row in ours) == [1, 2]
        assert all([key for key, _ in row.cell.settings] == ["start"] for row in ours)

    def test_other_sizes_are_noted(self, tmp_path):
        write_run(tmp_path, "sft", majority=50.0)
        write_run(tmp_path, "ppo", correct=[1] * 6, majority=60.0)
        table = build_table(collect(tmp_path, "demo"))
        assert any("4 or 6 examples" in note for note in table.notes)
        assert line_of(table, "majority |", "rte")[2] == "60.0"

    def test_pipes_and_brackets_in_names(self, tmp_path):
        write_run(tmp_path, lora="a|b")
        write_run(tmp_path, lora="[red]x")
        assert "a\\|b" in to_markdown(build_table(collect(tmp_path, "demo")))


class TestCompare:
    def test_one_seed_is_mcnemar(self, tmp_path):
        write_run(tmp_path, "zero_shot", correct=[0] * 8 + [1] * 2 + [1] * 10)
        write_run(tmp_path, "sft", correct=[1] * 8 + [0] * 2 + [1] * 10)
        table = build_table(collect(tmp_path, "demo"))
        assert line_of(table, "| sft")[8] == "+30.0 (p=0.109)"
        assert line_of(table, "| zero_shot |", "rte")[8] == "-"
        sft = records(table)[-1]
        assert sft["difference_vs_zero_shot"] == "30"
        assert sft["p_value_vs_zero_shot"] == sft["p_holm_vs_zero_shot"] == "0.109375"
        assert sft["n_compared_vs_zero_shot"] == "20"

    def test_seeds_don_t_multiply_examples(self, tmp_path):
        for seed in range(3):
            write_run(tmp_path, "zero_shot", seed, correct=[0] * 4 + [1] * 4)
            write_run(tmp_path, "sft", seed, correct=[1] * 8)
        comparisons, notes = compare(collect(tmp_path, "demo"))
        (comparison,) = comparisons.values()
        assert comparison.seeds == 3
        assert comparison.test.n == 8
        assert comparison.test.p_value == pytest.approx(2 / 2**4)
        assert notes == []

    def test_missing_seed_of_zero_shot(self, tmp_path):
        write_run(tmp_path, "zero_shot", 0, correct=[0] * 4)
        write_run(tmp_path, "sft", 0, correct=[1] * 4)
        write_run(tmp_path, "sft", 1, correct=[1] * 4)
        comparisons, (note,) = compare(collect(tmp_path, "demo"))
        (comparison,) = comparisons.values()
        assert comparison.seeds == 2
        assert "1 runs (seeds 1 of rte)" in note

    def test_only_common_ids_with_the_same_reference(self, tmp_path):
        write_run(tmp_path, "zero_shot", correct=[0, 0, 0, 0])
        folder = write_run(tmp_path, "sft", correct=[1, 1, 1, 1, 1, 1])
        rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        rows[0]["reference"] = 0
        write_lines(folder / "predictions.jsonl", rows)
        comparisons, notes = compare(collect(tmp_path, "demo"))
        assert next(iter(comparisons.values())).test.n == 3
        assert any("1 examples have another reference" in note for note in notes)

    def test_groups(self, tmp_path):
        groups = [[0, 1], [0, 1], [0, 2], [0, 2]]  # JSON has no tuples
        write_run(tmp_path, "zero_shot", correct=[0] * 4, groups=groups)
        write_run(tmp_path, "sft", correct=[1] * 4, groups=groups)
        comparisons, _ = compare(collect(tmp_path, "demo"))
        assert next(iter(comparisons.values())).test.p_value == pytest.approx(0.5)

    def test_nothing_to_compare(self, tmp_path):
        write_run(tmp_path, "zero_shot", correct=[None] * 4)  # regression: no right and wrong
        write_run(tmp_path, "sft", correct=[None] * 4)
        write_run(tmp_path, "sft", task="cb")  # no zero-shot run
        (write_run(tmp_path, "zero_shot", task="wic") / "predictions.jsonl").unlink()
        write_run(tmp_path, "sft", task="wic")
        study = collect(tmp_path, "demo")
        assert compare(study) == ({}, [])
        assert "vs zero_shot" not in to_markdown(build_table(study))


class TestPlots:
    def test_mean_curve_over_common_range(self):
        x, mean, deviation = mean_curve([[(0, 10), (10, 20), (20, 30)], [(5, 20), (15, 40)]])
        assert x.tolist() == [5, 10, 15]
        assert mean.tolist() == [17.5, 25.0, 32.5]
        assert deviation == pytest.approx(np.array([5, 10, 15]) / np.sqrt(2))

    def test_mean_curve_of_one_seed_and_of_none_in_common(self):
        x, mean, deviation = mean_curve([[(0, 1.0), (4, 2.0)]])
        assert (x.tolist(), mean.tolist(), deviation) == ([0, 4], [1.0, 2.0], None)
        assert mean_curve([[(0, 1.0)], [(4, 2.0)]])[0].tolist() == []

    def test_files(self, tmp_path):
        write_run(tmp_path, "zero_shot")
        for seed in (0, 1):
            write_run(tmp_path, "ppo", seed, curve=[(0, 50.0), (64, 60.0 + seed)])
        write_run(tmp_path, "sft", status="failed", error="boom")
        write_run(tmp_path, "sft", task="cola", score=-3.0, ci95=[-9.0, 4.0])
        study = collect(tmp_path, "demo")
        rows = build_table(study).rows
        curves, bars = learning_curves(study, rows), score_bars(study, rows)
        assert curves is not None
        assert [axes.get_title() for axes in curves.axes] == ["rte"]  # cola has no curve
        # what is drawn: a bar per finished method, at its score
        heights = {axes.get_title(): [patch.get_height() for patch in axes.patches] for axes in bars.axes}
        assert heights == {"cola": [-3.0], "rte": [75.0, 75.0]}

    def test_no_curves_no_picture(self, tmp_path):
        write_run(tmp_path, "zero_shot")
        study = collect(tmp_path, "demo")
        assert learning_curves(study, build_table(study).rows) is None


def unbound(outputs) -> list[str]:
    """Options for studies that nothing is expected of, whatever they are called."""
    return ["--outputs", str(outputs), "--expected", str(outputs)]


class TestCommand:
    def test_writes_and_prints(self, tmp_path, capsys):
        write_run(tmp_path, "zero_shot")
        write_run(tmp_path, "sft", curve=[(0, 50.0), (64, 70.0)])
        write_run(tmp_path, "ppo", status="failed", error="ValueError: NaN in the loss")
        assert main(["demo", *unbound(tmp_path), "--expect-seeds", "2"]) == 0
        printed = capsys.readouterr().out
        assert "likelihood" in printed
        assert "n=1/2" in printed
        assert "failed" in printed
        assert "ValueError: NaN in the loss" in printed
        names = ("table.html", "table.md", "table.tex", "table.csv", "metrics.csv")
        for name in (*names, "learning_curves.png", "scores.png"):
            path = tmp_path / "demo" / "tables" / name
            assert path.stat().st_size > 0
            assert str(path) in printed

    def test_without_curves(self, tmp_path, capsys):
        write_run(tmp_path, "zero_shot")
        stale = tmp_path / "demo" / "tables" / "learning_curves.png"
        stale.parent.mkdir()
        stale.write_text("of an earlier call")
        assert main(["demo", *unbound(tmp_path)]) == 0
        assert "no learning_curves.png" in capsys.readouterr().out
        assert not stale.exists()

    def test_no_finished_runs(self, tmp_path, capsys):
        write_run(tmp_path, status="failed", error="boom")
        write_run(tmp_path, study="other")
        assert main(["demo", *unbound(tmp_path)]) == 1
        captured = capsys.readouterr()
        assert "boom" in captured.out
        assert f"no finished run in {tmp_path / 'demo'}" in captured.err
        assert "make sweep NAME=demo" in captured.err
        assert "other" in captured.err
        assert main(["absent", *unbound(tmp_path)]) == 1
        assert f"no folder {tmp_path / 'absent'}" in capsys.readouterr().err

    def test_wrong_option(self, tmp_path, capsys):
        with pytest.raises(SystemExit):
            main(["demo", "--expect-seeds", "0"])
        assert "from 1 up" in capsys.readouterr().err

    def test_through_a_pipe(self, tmp_path):
        # No terminal, no width, no Unicode: the whole table must still come out.
        write_run(tmp_path, "zero_shot")
        write_run(tmp_path, "sft", 0)
        write_run(tmp_path, "sft", 1)
        environment = {**os.environ, "COLUMNS": "40", "PYTHONIOENCODING": "ascii"}
        done = subprocess.run(
            [sys.executable, "-m", "nlu_ppo.tables", "demo", *unbound(tmp_path)],
            capture_output=True,
            encoding="ascii",
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        assert "75.0 ? 0.0" in done.stdout
        assert "65.0 to 85.0" in done.stdout
        assert "samples/s" in done.stdout
