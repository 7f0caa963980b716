"""What a study is held to: the files in sweeps/expected, and the exit code that they give."""

from __future__ import annotations

from pathlib import Path

import pytest
from composing import ROOT, every_cell
from run_folders import write_run

from nlu_ppo.choices import read_groups
from nlu_ppo.errors import ConfigError
from nlu_ppo.tables import build_table, collect
from nlu_ppo.tables.__main__ import main
from nlu_ppo.tables.expected import load_expected

REASON = "reason: by hand\n"


def write(folder: Path, text: str) -> Path:
    """Makes `text` what the study `demo` is held to."""
    place = folder / "expected"
    place.mkdir(exist_ok=True)
    (place / "demo.yaml").write_text(text)
    return place


def table_of(outputs: Path, text: str):
    return build_table(collect(outputs, "demo"), expected=load_expected("demo", write(outputs, text)))


class TestFile:
    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("sedes: 3", "the file: unknown key sedes"),
            ("[1, 2]", "is no mapping"),
            ("seeds: 0", "seeds: 0 is no number from 1 up"),
            ("seeds: true", "seeds: True is no number"),
            ("printed: [a_table_99]", "printed: there is no printed table 'a_table_99'"),
            ("printed: a_table_9", "printed: 'a_table_9' is no list"),
            ("printed: [a_table_9]\nmodel: gpt", "model: 'gpt' is in none"),
            ("printed: [a_table_9]\nrows: {x: {task: rte}}", "rows: no printed row is labelled 'x'"),
            ("printed: [a_table_9]\ntasks: {record: record_yesno}", "tasks: 'record' is in none"),
            (REASON + "cells: [{task: rte, model: tiny}]", "cells[0]: no method"),
            (
                REASON + "cells: [{task: rte, model: tiny, method: sft, score: 3}]",
                "cells[0]: unknown key score",
            ),
            (REASON + "cells: [{task: rte, model: tiny, method: sft, value: 3}]", "go together"),
            (
                REASON + "cells: [{task: rte, model: tiny, method: sft, value: a, tolerance: 1}]",
                "'a' is no number",
            ),
            (
                REASON + "cells: [{task: rte, model: tiny, method: sft, value: .nan, tolerance: 1}]",
                "no number",
            ),
            (REASON + "cells: [{task: rte, model: tiny, method: sft, value: 1, tolerance: -1}]", "below 0"),
            ("cells: [{task: rte, model: tiny, method: sft, value: 1, tolerance: 1}]", "reason: say where"),
            ("require: [{task: rte, method: sft}]", "require[0]: no model"),
            ("seeds: 1\nseeds: 2", "seeds"),
            ("seeds: [", "demo.yaml"),
        ],
    )
    def test_a_mistake_is_named(self, tmp_path, text, complaint):
        folder = write(tmp_path, text)
        with pytest.raises(ConfigError) as raised:
            load_expected("demo", folder)
        assert complaint in str(raised.value)
        assert "demo.yaml" in str(raised.value)

    def test_two_values_for_a_cell(self, tmp_path):
        cell = "{task: rte, model: tiny, method: sft, value: 1, tolerance: 1}"
        with pytest.raises(ConfigError, match="two values for rte, tiny, sft"):
            load_expected("demo", write(tmp_path, f"{REASON}cells: [{cell}, {cell}]"))

    def test_none_and_empty(self, tmp_path):
        assert load_expected("other", write(tmp_path, "")) is None
        assert load_expected("demo", write(tmp_path, "")).demands == ()

    def test_a_product(self, tmp_path):
        folder = write(tmp_path, "require: [{task: [rte, cb], model: tiny, method: [sft, ppo]}]")
        assert [str(d) for d in load_expected("demo", folder).demands] == [
            "rte, tiny, sft", "rte, tiny, ppo", "cb, tiny, sft", "cb, tiny, ppo",
        ]  # fmt: skip

    def test_no_choice_of_a_sweep(self):
        groups = read_groups()
        assert [name for name in groups if "expected" in name] == []
        studies = {choice.name for choice in groups["sweeps"]}
        expected = {file.stem for file in (ROOT / "sweeps" / "expected").glob("*.yaml")}
        assert expected <= studies  # a file without its study would never be read

    @pytest.mark.parametrize(
        "file", sorted((ROOT / "sweeps" / "expected").glob("*.yaml")), ids=lambda f: f.stem
    )
    def test_every_file_is_legal(self, file):
        assert load_expected(file.stem) is not None


EXPECTED = sorted(file.stem for file in (ROOT / "sweeps" / "expected").glob("*.yaml"))


@pytest.mark.parametrize("study", [name for name in EXPECTED if load_expected(name).demands])
def test_what_is_required_is_what_the_study_runs(study):
    demands = {demand.cell[:3] for demand in load_expected(study).demands}
    words = [dict(word.partition("=")[::2] for word in cell) for cell in every_cell(study)]
    assert demands == {(w["task"], w.get("model", "tiny"), w["method"]) for w in words}


class TestVerdicts:
    CELL = REASON + "cells: [{task: rte, model: tiny, method: sft, value: 75, tolerance: 2%s}]"

    @pytest.mark.parametrize(
        ("score", "state"), [(73.0, "ok"), (77.0, "ok"), (72.9, "drifted"), (77.1, "drifted")]
    )
    def test_tolerance_counts_both_ends(self, tmp_path, score, state):
        write_run(tmp_path, score=score)
        (verdict,) = table_of(tmp_path, self.CELL % "").verdicts
        assert (verdict.state, verdict.found) == (state, score)

    def test_drift_says_by_how_much(self, tmp_path):
        write_run(tmp_path, score=70.0)
        (verdict,) = table_of(tmp_path, self.CELL % "").verdicts
        assert verdict.told == "rte, tiny, sft: 70.0, expected 75.0 within 2.0: -5.0, drifted"

    def test_another_metric_and_a_further_set(self, tmp_path):
        metrics = {"accuracy": 0.75, "score": 0.75, "cb/f1_macro": 0.5, "cb/accuracy": 0.8}
        write_run(tmp_path, metrics=metrics)
        for metric, state in (("accuracy", "ok"), ("cb/f1_macro", "drifted"), ("em", "missing")):
            (verdict,) = table_of(tmp_path, self.CELL % f", metric: {metric}").verdicts
            assert verdict.state == state

    def test_settings_choose_a_row(self, tmp_path):
        for clip, score in ((0.1, 75.0), (0.2, 10.0)):
            write_run(tmp_path, identity={"method": {"clip_range": clip}}, score=score)
        (verdict,) = table_of(tmp_path, self.CELL % "").verdicts
        assert (verdict.state, "2 rows of the table fit" in verdict.told) == ("missing", True)
        (verdict,) = table_of(tmp_path, self.CELL % ", settings: {method.clip_range: 0.1}").verdicts
        assert verdict.state == "ok"

    def test_required_cells_are_rows_and_no_others(self, tmp_path):
        write_run(tmp_path, "sft", task="rte")
        write_run(tmp_path, "ppo", task="cb")
        text = "seeds: 2\nrequire: [{task: [rte, cb], model: tiny, method: sft}]"
        table = table_of(tmp_path, text)
        assert [
            (*row.cell[:3], row.cell.lora, row.seeds, row.expected) for row in table.rows if row.cell.model
        ] == [
            ("rte", "tiny", "sft", "paper", 1, 2),
            ("cb", "tiny", "sft", "paper", 0, 2),
            ("cb", "tiny", "ppo", "paper", 1, 2),
        ]
        assert [verdict.state for verdict in table.verdicts] == ["missing", "missing"]

    def test_seeds_without_cells_hold_for_every_row(self, tmp_path):
        for seed in (0, 1):
            write_run(tmp_path, "sft", seed)
        write_run(tmp_path, "ppo", 0)
        told = [verdict.told for verdict in table_of(tmp_path, "seeds: 2").verdicts]
        assert told == [
            "rte, tiny, sft, paper: 75.0: ok",
            "rte, tiny, ppo, label, paper: 75.0: n=1/2, seeds missing",
        ]


class TestExitCode:
    def run(self, outputs: Path, *more: str) -> int:
        return main(["demo", "--outputs", str(outputs), "--expected", str(outputs / "expected"), *more])

    def test_all_as_expected(self, tmp_path, capsys):
        write_run(tmp_path, score=75.0)
        write(tmp_path, TestVerdicts.CELL % "")
        assert self.run(tmp_path) == 0
        assert "All 1 expected cells are there" in capsys.readouterr().out

    def test_without_a_file(self, tmp_path):
        write_run(tmp_path)
        assert self.run(tmp_path) == 0

    def test_drift(self, tmp_path, capsys):
        write_run(tmp_path, score=60.0)
        write(tmp_path, TestVerdicts.CELL % "")
        assert self.run(tmp_path) == 1
        told = capsys.readouterr().err
        assert "1 of 1 expected cells drifted or are missing:" in told
        assert "- rte, tiny, sft: 60.0, expected 75.0 within 2.0: -15.0, drifted" in told

    def test_missing_seed_and_missing_cell(self, tmp_path, capsys):
        for seed in (0, 1):
            write_run(tmp_path, "sft", seed)
        write(tmp_path, "seeds: 3\nrequire: [{task: rte, model: tiny, method: [sft, ppo]}]")
        assert self.run(tmp_path) == 1
        captured = capsys.readouterr()
        assert "- rte, tiny, sft: 75.0: n=2/3, seeds missing" in captured.err
        assert "- rte, tiny, ppo: missing, no finished run" in captured.err
        page = (tmp_path / "demo" / "tables" / "table.md").read_text()
        assert "| rte | sft | 75.0 ± 0.0 | 65.0 to 85.0 | n=2/3 | 25.0 | 77.0 | 55.0 |" in page
        assert "| rte | ppo | - | - | n=0/3 | - | - | - |" in page

    def test_no_runs(self, tmp_path):
        write(tmp_path, TestVerdicts.CELL % "")
        assert self.run(tmp_path) == 1

    def test_a_malformed_file(self, tmp_path, capsys):
        write_run(tmp_path)
        write(tmp_path, "sedes: 3")
        assert self.run(tmp_path) == 2
        assert "unknown key sedes" in capsys.readouterr().err
