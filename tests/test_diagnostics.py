"""Diagnostic sets (AX, AX-b, AX-g): no training of their own, evaluated with another task's adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from composing import run_of

from nlu_ppo.errors import ConfigError, DataError
from nlu_ppo.run import execute
from nlu_ppo.tasks import get_task

PAIR = "index\tsentence1\tsentence2\tlabel\n"
FULL = "Lexical Semantics\tLogic\tPremise\tHypothesis\tLabel\n"
MNLI = "\t".join(["index", "promptID", "pairID", "genre", *"abcd", "sentence1", "sentence2"])


def put(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """RTE, MNLI and the diagnostic sets in their own layouts, with a few rows each."""
    folder = tmp_path / "data"
    words = ("entailment", "not_entailment")
    rows = [f"{i}\tA dog sleeps {i}.\tIt sleeps {i}.\t{words[i % 2]}\n" for i in range(20)]
    put(folder, "glue/RTE/train.tsv", PAIR + "".join(rows))
    put(folder, "glue/RTE/dev.tsv", PAIR + "".join(rows[:6]))
    three = ("entailment", "neutral", "contradiction")
    rows = [f"{i}\t\t\t\t\t\t\t\tA dog {i}.\tA cat {i}.\t\t{three[i % 3]}\n" for i in range(20)]
    put(folder, "glue/MNLI/train.tsv", f"{MNLI}\tlabel1\tgold_label\n" + "".join(rows))
    for name in ("dev_matched", "dev_mismatched"):
        put(folder, f"glue/MNLI/{name}.tsv", f"{MNLI}\tlabel1\tgold_label\n" + "".join(rows[:6]))
    full = [f"\t\tA dog {i}.\tA cat {i}.\t{three[i % 3]}\n" for i in range(6)]
    put(folder, "glue/AX/diagnostic-full.tsv", FULL + "".join(full))
    axb = [{"idx": str(i), "sentence1": "A", "sentence2": f"B{i}", "label": words[i % 2]} for i in range(6)]
    axg = [
        {"idx": i, "premise": f"P{i}", "hypothesis": f"H{i // 2}", "label": words[0], "pair_id": 9 * i}
        for i in range(6)
    ]
    put(folder, "superglue/AX-b/AX-b.jsonl", "".join(json.dumps(row) + "\n" for row in axb))
    put(folder, "superglue/AX-g/AX-g.jsonl", "".join(json.dumps(row) + "\n" for row in axg))
    return folder


def start(folder: Path, data: Path, model_dir: Path, *overrides: str) -> dict[str, Any]:
    fixed = ("task.source=raw", f"task.data_dir={data}", "tracking=none", "eval.bootstrap_samples=20")
    return execute(run_of(folder, "model=local", f"model.path={model_dir}", *fixed, *overrides))


@pytest.mark.parametrize(("task", "owner"), [("ax", "mnli"), ("axb", "rte"), ("axg", "rte")])
@pytest.mark.parametrize("method", ["few_shot", "sft", "ppo"])
def test_training_on_one_is_an_error_that_names_the_task_to_train_on(
    tmp_path: Path, task: str, owner: str, method: str
) -> None:
    with pytest.raises(
        ConfigError, match=rf"task={task} has no training split: train on {owner} .*model\.adapter"
    ):
        run_of(tmp_path / "run", f"task={task}", f"method={method}")


@pytest.mark.parametrize(("owner", "sets"), [("mnli", ["ax"]), ("rte", ["axb", "axg"])])
def test_an_adapter_is_evaluated_on_them(
    tmp_path: Path, data: Path, model_dir: Path, owner: str, sets: list[str]
) -> None:
    start(tmp_path / "sft", data, model_dir, f"task={owner}", "method=sft", "method.max_steps=2",
          "method.learning_rate=1e-2", "task.selection=0")  # fmt: skip
    adapter = f"model.adapter={tmp_path / 'sft' / 'adapter'}"
    for task in sets:
        with_adapter = start(tmp_path / task, data, model_dir, f"task={task}", "method=zero_shot", adapter)
        assert with_adapter["n"] == 6
        assert set(get_task(task).metrics) <= with_adapter["metrics"].keys()
        assert with_adapter["majority"] is None  # no training labels of its own
        bare = start(tmp_path / f"{task}-bare", data, model_dir, f"task={task}", "method=zero_shot")
        assert bare["status"] == "finished"
        lines = [json.loads(line) for line in (tmp_path / task / "predictions.jsonl").open(encoding="utf-8")]
        if task == "axg":
            assert [line["group"] for line in lines] == [0, 0, 1, 1, 2, 2]


def test_without_labels_the_error_says_where_they_are(tmp_path: Path, data: Path, model_dir: Path) -> None:
    (data / "glue/AX/diagnostic-full.tsv").unlink()
    put(data, "glue/AX/AX.tsv", "index\tsentence1\tsentence2\n0\tA\tB\n")
    with pytest.raises(DataError, match=r"split test has examples without a label.*diagnostic-full\.tsv"):
        start(tmp_path / "run", data, model_dir, "task=ax", "method=zero_shot")


def test_skipped_rows_reach_the_result_and_the_console(
    tmp_path: Path, data: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (data / "glue/RTE/dev.tsv").open("a", encoding="utf-8") as file:
        file.write("one column\n7\tA\tB\tmaybe\n")
    with pytest.raises(DataError, match=r"dev\.tsv:8: 1 columns instead of 4"):
        start(tmp_path / "stops", data, model_dir, "task=rte", "method=zero_shot")
    result = start(
        tmp_path / "skips", data, model_dir, "task=rte", "method=zero_shot", "task.on_bad_row=skip"
    )
    assert result["skipped_rows"] == {"train": 0, "validation": 2}
    assert result["n"] == 6
    written = json.loads((tmp_path / "skips" / "result.json").read_text(encoding="utf-8"))
    assert written["skipped_rows"] == result["skipped_rows"]
    out = capsys.readouterr().out
    assert "task rte, split validation: skipped 2 bad rows; first: " in out
    assert "dev.tsv:8: 1 columns" in out
