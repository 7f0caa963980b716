"""What a study's table lacks, what that costs, and that only that is run."""

from __future__ import annotations

from pathlib import Path

import pytest
from composing import ROOT, config_of, every_cell
from omegaconf import OmegaConf

from nlu_ppo.errors import ConfigError
from nlu_ppo.run import build_run, execute
from nlu_ppo.tables.needs import absent
from nlu_ppo.tables.reproduce import Cell, check_minutes, cost, main, make_plan, minutes_of

STUDIES = sorted(file.stem for file in (ROOT / "sweeps").glob("*.yaml"))
SHORT = ["task.limit.eval=12", "eval.bootstrap_samples=20", "tracking=none"]


def test_only_what_is_missing_is_run_and_then_the_table_is_built(tmp_path: Path, capfd):
    words = ["task=toy_nli", "method=zero_shot,few_shot", "study=small", f"outputs={tmp_path}", *SHORT]
    plan, folder = make_plan("demo", words)
    assert [cell.state for cell in plan] == ["missing", "missing"]
    assert [cell.name for cell in plan] == ["method=zero_shot", "method=few_shot"]
    assert [cell.seconds for cell in plan] == [12.0, 12.0]  # the study says 0.2 minutes
    assert folder == tmp_path / "small"
    assert plan[0].run is not None
    execute(plan[0].run)  # where the plan looks for a result is where a run leaves it
    written = (plan[0].run.folder / "result.json").stat().st_mtime_ns

    assert main(["demo", "--dry-run", *words]) == 0
    said = capfd.readouterr().out
    assert "2 cells: 1 finished, 1 to run." in said
    assert "method=few_shot" in said
    assert "method=zero_shot" not in said
    assert not (plan[1].run and plan[1].run.folder.exists())

    assert main(["demo", *words]) == 0
    said = capfd.readouterr().out
    assert [cell.state for cell in make_plan("demo", words)[0]] == ["finished", "finished"]
    assert (plan[0].run.folder / "result.json").stat().st_mtime_ns == written
    assert (folder / "tables" / "table.md").is_file()
    assert "few_shot" in said


def test_a_finished_run_tells_what_its_like_will_take(tmp_path: Path):
    words = ["task=toy_nli", "method=zero_shot", f"outputs={tmp_path}", *SHORT]
    (cell,), _ = make_plan("demo", words)
    assert cell.run is not None
    result = execute(cell.run)
    first, second = make_plan("demo", [*words, "seed=0,1"])[0]
    assert first.state == "finished"
    assert (second.state, second.source) == ("missing", "finished runs like it")
    assert second.seconds == pytest.approx(sum(result["seconds"].values()))


def test_a_cell_that_makes_no_sense_is_told_and_the_others_are_planned(tmp_path: Path, capfd):
    words = ["task=toy_nli,stsb", "method=ppo", "reward=token_f1", f"outputs={tmp_path}"]
    assert main(["demo", "--dry-run", *words]) == 0
    said = capfd.readouterr().out
    assert "2 that can't be run" in said
    assert "reward=token_f1 needs a task" in said
    assert main(["demo", "--dry-run", "task=toy_nli,rte", "task.source=web"]) == 0
    assert main(["demo", "--dry-run", "seed=interval(0,1)"]) == 2
    assert main(["dmo", "--dry-run"]) == 2
    assert "Did you mean sweeps=demo?" in capfd.readouterr().err


def test_an_attempt_that_failed_is_told_from_none(tmp_path: Path):
    words = ["task=toy_nli", "method=zero_shot", f"outputs={tmp_path}", *SHORT]
    (cell,), _ = make_plan("demo", words)
    assert cell.run is not None
    cell.run.folder.mkdir(parents=True)
    (cell.run.folder / "result.json").write_text('{"status": "failed", "error": "no"}', encoding="utf-8")
    assert make_plan("demo", words)[0][0].state == "failed"
    (cell.run.folder / "result.json").write_text("{", encoding="utf-8")
    assert make_plan("demo", words)[0][0].state == "missing"


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [
        (None, None),
        (3, 3.0),
        ({"sft": 4, "ppo": 5}, 5.0),
        ({"ppo": {"rte": 7, "cola": 8}}, 7.0),
        ({"ppo": {"cola": 8}}, None),
        ({"tiny": {"ppo": {"rte": 0.5}}}, 0.5),
        ({"zero_shot": 1}, None),
    ],
)
def test_minutes_of_a_cell(minutes, expected):
    check_minutes(minutes)
    assert minutes_of(minutes, ("rte", "tiny", "ppo")) == expected


@pytest.mark.parametrize("minutes", ["3", {"sft": "long"}, [1], -1, True, {"a": {"b": {"c": {"d": 1}}}}])
def test_malformed_minutes_are_named(minutes):
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.minutes"):
        check_minutes(minutes)


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_says_what_each_of_its_cells_takes(study):
    sweeper = OmegaConf.to_container(OmegaConf.load(ROOT / "sweeps" / f"{study}.yaml"))["hydra"]["sweeper"]
    check_minutes(sweeper["minutes"])
    for cell in every_cell(study):
        words = dict(word.split("=", 1) for word in cell)
        members = words.get("task.members", "").strip("[]").replace(",", "+")
        names = (members or words.get("task", ""), words.get("model", "tiny"), words.get("method", ""))
        assert minutes_of(sweeper["minutes"], names) is not None, cell


def test_the_cost_is_a_sum_and_what_is_unknown_is_said():
    cells = [Cell("a", None, "missing", 90.0), Cell("b", None, "missing", 3510.0)]
    assert "2 runs of about 1 h" in cost(cells)
    assert "and 1 more of which nothing is known" in cost([*cells, Cell("c", None, "missing")])
    assert "unknown" in cost([Cell("c", None, "missing")])


def test_what_is_not_here_is_named_once(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("nlu_ppo.tables.needs.HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    raw = ["task.source=raw", f"task.data_dir={tmp_path}", "method=sft"]
    runs = [
        build_run(config_of(*words), tmp_path)
        for words in (["task=cb", *raw], ["task=cb", "seed=1", *raw], ["task=rte", "method=zero_shot"])
    ]
    lines = absent(runs)
    assert len(lines) == 3  # cb's train and val, and rte on the hub
    assert any("superglue/CB/train.jsonl" in line for line in lines)
    assert any("superglue/CB/val.jsonl" in line for line in lines)
    assert any("nyu-mll/glue" in line for line in lines)
    (tmp_path / "superglue" / "CB").mkdir(parents=True)
    for name in ("train", "val"):
        (tmp_path / "superglue" / "CB" / f"{name}.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "datasets" / "nyu-mll___glue" / "rte").mkdir(parents=True)
    assert absent(runs) == []
