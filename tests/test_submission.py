"""From a run to the zip that a benchmark's server takes, read back by a reader of the tests' own."""

from __future__ import annotations

import json
import logging
import random
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from composing import config_of, run_of
from hypothesis import given
from hypothesis import strategies as st
from submissions import EVERY, GLUE, OFFICIAL, read_file, read_zip, write_benchmarks

import nlu_ppo.answering
from nlu_ppo.errors import ConfigError, DataError
from nlu_ppo.identity import run_key
from nlu_ppo.prompting import Prompter
from nlu_ppo.run import build_run, execute
from nlu_ppo.tables.summary import before_and_after
from nlu_ppo.tasks import TASKS, Example, get_task, read_split
from nlu_ppo.tasks.__main__ import main
from nlu_ppo.tasks.splits import commonest_label
from nlu_ppo.tasks.submission import OFFICIAL_FILES, OfficialFile, fall_back, files_of, render
from nlu_ppo.tasks.submission_sets import load_submission

BY_NAME = {file.name: file for file in OFFICIAL_FILES}
QUICK = ("eval=submission", "eval.likelihood=false", "eval.bootstrap_samples=10", "tracking=none")


# -- formats -------------------------------------------------------------------------------------------------


def official_index(name: str, number: int) -> Any:
    """`Example.idx` of a test set's example, where MultiRC has 3 answers a question and 2 questions a text."""
    if name == "MultiRC.jsonl":
        return {"paragraph": number // 6, "question": number // 3, "answer": number}
    return {"passage": number // 2, "query": number} if name == "ReCoRD.jsonl" else number


def index_in_file(name: str, number: int) -> Any:
    return (number // 6, number // 3, number) if name == "MultiRC.jsonl" else number


def labels_of(name: str) -> st.SearchStrategy[Any]:
    legal = EVERY[name][1]
    if legal is not None:
        return st.sampled_from(sorted(legal))
    return st.floats(-9, 9) if name == "STS-B.tsv" else st.text(min_size=1)


def expected(name: str, label: Any) -> Any:
    legal = EVERY[name][1]
    if legal is not None:
        return legal[label]
    return f"{max(0.0, min(5.0, label)):.3f}" if name == "STS-B.tsv" else label


@pytest.mark.parametrize("name", EVERY)
@given(data=st.data())
def test_any_labels_come_back_from_the_file(name: str, data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.integers(0, 10**6), unique=True, min_size=1, max_size=20))
    labels = data.draw(st.lists(labels_of(name), min_size=len(numbers), max_size=len(numbers)))
    answers = list(zip(numbers, labels, strict=True))
    text = render(BY_NAME[name], [(official_index(name, n), label) for n, label in answers])
    assert read_file(name, text) == {index_in_file(name, n): expected(name, label) for n, label in answers}


def test_lines_by_hand() -> None:
    def text(name: str, *answers: Any) -> str:
        return render(BY_NAME[name], [(official_index(name, n), label) for n, label in enumerate(answers)])

    assert text("CoLA.tsv", 1, 0) == "index\tprediction\n0\t1\n1\t0\n"
    assert text("STS-B.tsv", 5.2, -0.0, 3.80004) == "index\tprediction\n0\t5.000\n1\t0.000\n2\t3.800\n"
    assert text("BoolQ.jsonl", 1) == '{"idx": 0, "label": "true"}\n'
    assert text("WSC.jsonl", 1) == '{"idx": 0, "label": "True"}\n'
    assert text("COPA.jsonl", 1) == '{"idx": 0, "label": 1}\n'
    assert text("CB.jsonl", 1) == '{"idx": 0, "label": "contradiction"}\n'
    assert text("ReCoRD.jsonl", "Ann") == '{"idx": 0, "label": "Ann"}\n'
    questions = (
        '{"idx": 0, "answers": [{"idx": 0, "label": 1}, {"idx": 1, "label": 0}, {"idx": 2, "label": 0}]}, '
        '{"idx": 1, "answers": [{"idx": 3, "label": 1}]}'
    )
    assert text("MultiRC.jsonl", 1, 0, 0, 1) == f'{{"idx": 0, "passage": {{"questions": [{questions}]}}}}\n'


def test_the_files_are_the_official_ones_and_rte_is_in_both() -> None:
    assert {name: file.rows for name, file in BY_NAME.items()} == {name: n for name, (n, _) in EVERY.items()}
    assert {file.name for file in files_of("mnli")} == {"MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"}
    assert {file.name for file in files_of("rte")} == {"RTE.tsv", "RTE.jsonl", "AX-b.jsonl", "AX-g.jsonl"}
    answered = {file.task for file in OFFICIAL_FILES} | {file.diagnostic for file in OFFICIAL_FILES}
    assert answered - {None} == {
        (task.judged_as or task).name for task in TASKS.values() if task.benchmark in ("glue", "super_glue")
    }


@pytest.mark.parametrize(
    ("task", "train", "answers", "legal"),
    [
        ("cola", [0, 1, 1], [None, 0, None], [1, 0, 1]),
        ("mnli", [2, 1, 2, 1, 0], [None], [1]),  # as often as 2: the first by name
        ("stsb", [5.0, 5.0], [None, 1.5], [2.5, 1.5]),
        ("record", [("x",)], [None, "Bob"], ["Ann", "Bob"]),
    ],
)
def test_unparsable_answers_fall_back(task: str, train: Any, answers: Any, legal: Any) -> None:
    examples = [Example(str(i), {}, None, candidates=("Ann", "Zoë")) for i in range(len(answers))]
    assert fall_back(get_task(task), examples, answers, train) == legal


# -- runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Example, Prompter], Any]:
    """Test sets are answered by a rule: unparsable where the index is a multiple of 3, else label 1 (or 0)."""

    def label(example: Example, prompter: Prompter) -> Any:
        parts = example.idx if isinstance(example.idx, dict) else {"": example.idx}
        number = list(parts.values())[-1]
        if number % 3 == 0:
            return None
        kind = prompter.task.kind.value
        return {"classify": number % 2, "regress": number / 2, "choose": f"Name {number}"}[kind]

    original = nlu_ppo.answering.answer

    def answer(policy: Any, prompter: Prompter, examples: Sequence[Example], *rest: Any, **named: Any) -> Any:
        original(policy, prompter, examples[:2], *rest, **named)  # the real one must do its part
        labels = [label(example, prompter) for example in examples]
        return nlu_ppo.evaluation.Answers([], [], labels)

    monkeypatch.setattr(nlu_ppo.answering, "answer", answer)
    return label


def start(folder: Path, task: str, data: Path, *more: str) -> dict[str, Any]:
    raw = ("task.source=raw", f"task.data_dir={data}")
    method = () if any(m.startswith("method=") for m in more) else ("method=zero_shot",)
    return execute(run_of(folder, f"task={task}", *raw, *QUICK, *method, *more))


def submitted(folder: Path) -> dict[str, dict[Any, Any]]:
    return {
        p.name: read_file(p.name, p.read_text("utf-8")) for p in sorted((folder / "submission").iterdir())
    }


ANSWERED = sorted({file.task for file in OFFICIAL_FILES})


@pytest.mark.parametrize("task", ANSWERED)
def test_a_run_answers_all_test_sets_of_its_task(
    task: str, tmp_path: Path, written: Path, scripted: Any
) -> None:
    result = start(tmp_path / "run", task, written)
    files = submitted(tmp_path / "run")
    assert set(files) == {file.name for file in files_of(task)}
    assert result["submission_missing"] == {}
    assert "submission" in result["seconds"]
    count = {"multirc": 15, "record": 10}.get(task, 5)
    for name, found in files.items():
        numbers = [key[-1] if isinstance(key, tuple) else key for key in found]
        assert numbers == list(range(count))
        assert result["metrics"][f"submission/{name}/rows"] == count
        assert result["metrics"][f"submission/{name}/unparsable"] == len(range(0, count, 3))
        for number, value in zip(numbers, found.values(), strict=True):
            if EVERY[name][1] is not None:
                assert value == expected(name, 0 if number % 3 == 0 else number % 2)
            elif task == "stsb":
                assert value == ("2.500" if number % 3 == 0 else f"{number / 2:.3f}")
            else:
                assert value == ("Ann" if number % 3 == 0 else f"Name {number}")
    if task == "multirc":
        assert list(files["MultiRC.jsonl"])[:4] == [(0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 2, 3)]


REAL = {"cola": 1063, "sst2": 1821, "mrpc": 1725, "stsb": 1379, "qnli": 5463, "rte": 3000, "wnli": 146}
REAL |= {"cb": 250, "copa": 500}


@pytest.mark.parametrize("task", REAL)
def test_real_test_files_through_the_tiny_model(task: str, tmp_path: Path, shared: Path) -> None:
    limit = () if task == "wnli" else ("task.limit.eval=6",)
    result = start(tmp_path / "run", task, shared / "data", *limit)
    test = {e.idx for e in read_split(task, "test", "raw", shared / "data")}
    files = submitted(tmp_path / "run")
    absent = {"AX-b.jsonl", "AX-g.jsonl"} if task == "rte" else set()
    assert set(files) == {file.name for file in files_of(task)} - absent
    assert set(result["submission_missing"]) == absent
    for name, found in files.items():
        assert set(found) <= test
        assert max(found) < REAL[task]
        assert len(found) == (146 if task == "wnli" else 6) == result["metrics"][f"submission/{name}/rows"]
        unparsable = result["metrics"][f"submission/{name}/unparsable"]
        constant = commonest_label([e.label for e in read_split(task, "train", "raw", shared / "data")])
        substitute = "2.500" if task == "stsb" else expected(name, constant)
        assert unparsable <= sum(value == substitute for value in found.values())


def test_a_trained_model_answers_test_as_it_answers_validation(tmp_path: Path) -> None:
    """The same texts in both splits: what is in predictions.jsonl is in the file."""
    data = write_benchmarks(tmp_path / "data", train=40, test=4)
    lines = (data / "glue/RTE/dev.tsv").read_text().splitlines()
    (data / "glue/RTE/test.tsv").write_text("".join(line.rpartition("\t")[0] + "\n" for line in lines))
    training = ("method=sft", "method.max_steps=12", "method.learning_rate=3e-3", "method.select_every=0")
    result = start(tmp_path / "run", "rte", data, *training)
    predictions = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    assert result["unparsable"] < result["n"], "train longer: nothing is compared"
    names = {0: "entailment", 1: "not_entailment", None: "entailment"}
    files = submitted(tmp_path / "run")
    assert [names[p["label"]] for p in predictions] == list(files["RTE.tsv"].values())
    assert files["RTE.tsv"] == files["RTE.jsonl"]
    assert result["metrics"]["submission/RTE.tsv/unparsable"] == result["unparsable"]


@pytest.mark.parametrize(("diagnostic", "owner"), [("ax", "mnli"), ("axb", "rte"), ("axg", "rte")])
def test_diagnostic_sets_are_prompted_as_their_own_records_do(
    diagnostic: str, owner: str, written: Path
) -> None:
    raw = config_of(f"task={owner}", "task.source=raw", f"task.data_dir={written}").task
    sets = load_submission([get_task(owner)], raw).sets
    ours = next(part.examples for part in sets if part.files[0].diagnostic == diagnostic)
    theirs = list(read_split(diagnostic, "test", "raw", written))
    assert [Prompter(get_task(owner), None).render(e) for e in ours] == [
        Prompter(get_task(diagnostic), None).render(e) for e in theirs
    ]
    assert [e.idx for e in ours] == [e.idx for e in theirs] == list(range(5))


def test_demonstrations_stand_before_diagnostic_examples_too(tmp_path: Path, written: Path) -> None:
    start(tmp_path / "run", "rte", written, "method=few_shot", "method.k=2")
    assert len(submitted(tmp_path / "run")["AX-g.jsonl"]) == 5


def test_a_missing_test_file_stops_the_run_before_the_model_is_loaded(
    tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shutil.copytree(written, tmp_path / "data")
    for name in ("test_matched", "test_mismatched"):
        (data / f"glue/MNLI/{name}.tsv").unlink()
    monkeypatch.setattr("nlu_ppo.models.loading.load_policy", lambda *_: pytest.fail("loaded the model"))
    with pytest.raises(DataError, match=r"leave eval\.submission out") as raised:
        start(tmp_path / "run", "mnli", data, "method=ppo")
    for file, name in (("MNLI-m.tsv", "test_matched"), ("MNLI-mm.tsv", "test_mismatched")):
        assert re.search(rf"{file}: .*{data}/glue/MNLI/{name}\.tsv", str(raised.value))


def test_all_missing_test_files_of_a_group_are_named_at_once(tmp_path: Path, written: Path) -> None:
    data = shutil.copytree(written, tmp_path / "data")
    for task in ("BoolQ", "WSC"):
        (data / f"superglue/{task}/test.jsonl").unlink()
    with pytest.raises(DataError) as raised:
        start(tmp_path / "run", "superglue", data)
    assert all(
        f"{name}.jsonl: task {name.lower()}: no file" in str(raised.value) for name in ("BoolQ", "WSC")
    )


def test_a_damaged_diagnostic_file_is_no_missing_one(tmp_path: Path, written: Path) -> None:
    data = shutil.copytree(written, tmp_path / "data")
    (data / "superglue/AX-b/AX-b.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"AX-b\.jsonl:1: no 'sentence1'"):
        start(tmp_path / "run", "rte", data)


def test_missing_diagnostic_sets_are_told_by_log_and_result(
    tmp_path: Path, written: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = shutil.copytree(written, tmp_path / "data")
    shutil.rmtree(data / "superglue/AX-g")
    with caplog.at_level(logging.WARNING):
        result = start(tmp_path / "run", "rte", data)
    assert "AX-g.jsonl will be missing from submission/" in caplog.text
    assert "superglue/AX-g/AX-g.jsonl" in result["submission_missing"]["AX-g.jsonl"]
    assert set(submitted(tmp_path / "run")) == {"RTE.tsv", "RTE.jsonl", "AX-b.jsonl"}
    printed = before_and_after(tmp_path / "run", result)
    assert "AX-b.jsonl: 5 rows, " in printed
    assert "AX-g.jsonl: missing" in printed


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("toy_nli", r"task=toy_nli; it fits cola, .*wsc"),
        ("axb", r"AX-b\.jsonl .* task=rte in place of task=axb"),
    ],
)
def test_tasks_that_no_server_takes_are_refused(task: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        build_run(config_of(f"task={task}", "method=zero_shot", "eval=submission"), tmp_path)


def test_the_key_counts_test_files_only_with_a_submission(tmp_path: Path, written: Path) -> None:
    data = shutil.copytree(written, tmp_path / "data")

    def keys(*more: str) -> tuple[str, str]:
        raw = ("task=mnli", "task.source=raw", f"task.data_dir={data}", "method=zero_shot", *more)
        return run_key(config_of(*raw)), run_key(config_of(*raw, "eval=submission"))

    seen = [keys()]
    with (data / "glue/MNLI/test_mismatched.tsv").open("a") as file:
        file.write("9\tOne more.\tYes.\n")
    seen.append(keys())
    (data / "glue/AX.tsv").unlink()
    seen.append(keys())
    assert len({without for without, _ in seen}) == 1
    assert len({with_one for _, with_one in seen} | {seen[0][0]}) == 4


# -- the zip -------------------------------------------------------------------------------------------------


def fake_run(study: Path, files: Sequence[OfficialFile], rows: int | None = None, **about: Any) -> Path:
    """A finished run's folder with random answers to these files."""
    result: dict[str, Any] = {
        "status": "finished",
        "task": files[0].task,
        "model": "m",
        "method": "ppo",
        "seed": 0,
    }
    result |= {"submission_missing": {}, **about}
    folder = (
        study
        / f"{result['task']}/{result['model']}/{result['method']}/{result['seed']}-{len(list(study.rglob('*'))):08x}"
    )
    (folder / "submission").mkdir(parents=True)
    rng, result["metrics"] = random.Random(0), {}
    for file in files:
        count = file.rows if rows is None else rows
        legal = EVERY[file.name][1]
        options: list[Any] = list(legal) if legal else [0.25, 4.0] if file.task == "stsb" else ["Ann", "Zoë"]
        answers = [(official_index(file.name, n), rng.choice(options)) for n in range(count)]
        (folder / "submission" / file.name).write_text(render(file, answers), encoding="utf-8")
        result["metrics"] |= {f"submission/{file.name}/rows": count, f"submission/{file.name}/unparsable": 3}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def fake_study(outputs: Path, *left_out: str, rows: int | None = None) -> Path:
    """A study `s` with a run for every task, but for those left out."""
    for task in ANSWERED:
        if task not in left_out:
            fake_run(outputs / "s", files_of(task), rows)
    return outputs / "s"


def zip_of(outputs: Path, *arguments: str, benchmark: str = "glue") -> int:
    where = ["--outputs", str(outputs), "--out", str(outputs / "out.zip")]
    return main(["submission", "s", "--benchmark", benchmark, *where, *arguments])


@pytest.mark.parametrize("benchmark", OFFICIAL)
def test_a_whole_submission_is_what_the_server_expects(
    benchmark: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_study(tmp_path)
    assert zip_of(tmp_path, benchmark=benchmark) == 0
    files = read_zip(tmp_path / "out.zip", benchmark)
    assert {name: len(found) for name, found in files.items()} == {
        n: r for n, (r, _) in OFFICIAL[benchmark].items()
    }
    if benchmark == "glue":
        assert all(list(found) == list(range(len(found))) for found in files.values())
    printed = capsys.readouterr().out
    for name, (count, _) in OFFICIAL[benchmark].items():
        row = next(line.split() for line in printed.splitlines() if line.startswith(f"{name} "))
        assert row[:3] == [name, str(count), "3"]
        assert (Path(row[3]) / "submission" / name).is_file()
    first = (tmp_path / "out.zip").read_bytes()
    assert zip_of(tmp_path, benchmark=benchmark) == 0
    assert (tmp_path / "out.zip").read_bytes() == first


@pytest.mark.parametrize("benchmark", OFFICIAL)
def test_one_model_for_a_whole_benchmark_makes_a_whole_submission(
    benchmark: str, tmp_path: Path, written: Path, scripted: Any
) -> None:
    result = start(tmp_path / f"s/{benchmark}/tiny/zero_shot/0-00000000", benchmark, written)
    assert zip_of(tmp_path, "--partial", benchmark=benchmark) == 0
    files = read_zip(tmp_path / "out.zip", benchmark)
    for name, found in files.items():
        assert result["metrics"][f"submission/{name}/rows"] == len(found)
        if EVERY[name][1] is not None:
            numbers = [key[-1] if isinstance(key, tuple) else key for key in found]
            assert list(found.values()) == [expected(name, 0 if n % 3 == 0 else n % 2) for n in numbers]


def test_missing_tasks_are_all_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = fake_study(tmp_path, "qqp", "cola", "mnli", "wnli", rows=2)
    without_ax = [file for file in files_of("mnli") if file.diagnostic is None]
    fake_run(study, without_ax, 2, submission_missing={"AX.tsv": "tried data/AX.tsv"})
    unfinished = fake_run(study, files_of("cola"), 2, status="failed")
    fake_run(study, files_of("wnli"), 2, method="sft")
    assert zip_of(tmp_path, "--partial", "--method", "ppo") == 2
    told = capsys.readouterr().err
    assert "QQP.tsv: no finished run with task=qqp eval=submission" in told
    assert "CoLA.tsv: no finished run" in told
    assert str(unfinished) not in told
    assert "AX.tsv: " in told
    assert "ran without its examples: tried data/AX.tsv" in told
    assert "WNLI.tsv: only in runs that the flags leave out: " in told
    assert "--fill FILE.zip" in told
    assert "SST-2" not in told
    assert not (tmp_path / "out.zip").exists()


def test_several_runs_of_a_task_must_be_chosen_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = fake_study(tmp_path, rows=2)
    other = fake_run(study, files_of("rte"), 2, method="sft", seed=1)
    assert zip_of(tmp_path, "--partial") == 2
    told = capsys.readouterr().err
    assert "2 runs have RTE.tsv; choose with --method or --seed or --run:" in told
    assert f"{other}: model m, method sft, seed 1" in told
    assert zip_of(tmp_path, "--partial", "--seed", "0") == 0
    assert str(other) not in capsys.readouterr().out
    assert zip_of(tmp_path, "--partial", "--method", "ppo", "--run", str(other)) == 0
    assert str(other) in capsys.readouterr().out
    twin = fake_run(study, files_of("rte"), 2, method="sft", seed=1)
    assert zip_of(tmp_path, "--partial", "--run", str(other), "--run", str(twin)) == 2
    assert "choose with --run:" in capsys.readouterr().err
    assert zip_of(tmp_path, "--run", str(tmp_path)) == 2
    assert "no finished run of study s" in capsys.readouterr().err


def test_another_submission_fills_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_study(tmp_path / "other")
    assert zip_of(tmp_path / "other") == 0
    shutil.move(tmp_path / "other/out.zip", tmp_path / "CBOW.zip")
    fake_study(tmp_path, "qqp")
    fill = ("--fill", str(tmp_path / "CBOW.zip"))
    capsys.readouterr()
    assert zip_of(tmp_path, *fill) == 0
    printed = capsys.readouterr().out
    assert f"filled in from {tmp_path / 'CBOW.zip'}: QQP.tsv\n" in printed
    assert f"QQP.tsv      390965  -           {tmp_path / 'CBOW.zip'}" in " ".join(printed.split(" "))
    assert len(read_zip(tmp_path / "out.zip", "glue")["QQP.tsv"]) == 390965

    with zipfile.ZipFile(tmp_path / "less.zip", "w") as archive:
        archive.writestr("folder/QQP.tsv", "id\tlabel\n0\t1\n")
    assert zip_of(tmp_path, "--fill", str(tmp_path / "less.zip")) == 2
    assert "less.zip/QQP.tsv:1: the header line" in capsys.readouterr().err
    assert zip_of(tmp_path, "--fill", str(tmp_path / "less.zip"), benchmark="superglue") == 0
    (tmp_path / "no.zip").write_text("no zip")
    assert zip_of(tmp_path, "--fill", str(tmp_path / "no.zip")) == 2
    assert "can't be read as a zip" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "s/cola")
    assert zip_of(tmp_path, *("--fill", str(tmp_path / "less.zip"), "--partial")) == 2


def test_what_neither_has_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_study(tmp_path, "qqp", rows=2)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    assert zip_of(tmp_path, "--fill", str(tmp_path / "empty.zip")) == 2
    assert "neither has" in capsys.readouterr().err


def test_wrong_sizes_are_refused_and_under_partial_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = fake_study(tmp_path, "cola", "sst2", "wnli", "rte")
    fake_run(study, files_of("cola"), 5)
    for task in ("sst2", "wnli", "rte"):
        fake_run(study, [file for file in files_of(task) if file.name in GLUE])
    (sst2,) = study.rglob("SST-2.tsv")
    sst2.write_text(sst2.read_text().replace("\n1820\t", "\n1821\t"))
    (wnli,) = study.rglob("WNLI.tsv")
    wnli.write_text(wnli.read_text().replace("\n7\t", "\n8\t"))
    wrong = {
        "CoLA.tsv": "5 rows, and the server expects 1063",
        "SST-2.tsv": "its indices aren't 0 to 1820",
        "WNLI.tsv": "1 of its 146 rows repeat an index",
    }
    assert zip_of(tmp_path) == 2
    told = capsys.readouterr().err
    assert all(f"{name}: {what}" in told for name, what in wrong.items())
    assert "RTE.tsv" not in told
    assert not (tmp_path / "out.zip").exists()
    assert zip_of(tmp_path, "--partial") == 0
    printed = capsys.readouterr().out
    assert all(f"warning: {name}: {what}" in printed for name, what in wrong.items())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("CoLA.tsv", "0\t1\n", ":1: the header line"),
        ("CoLA.tsv", "index\tprediction\n0\t1\nx\t1\n", ":3: not in the server's format"),
        ("CoLA.tsv", "index\tprediction\n0\t\n", ":2: not in the server's format"),
        ("CB.jsonl", '{"idx": 0, "label": "neutral"}\n{"idx": 1}\n', ":2: not in the server's format"),
        ("MultiRC.jsonl", '{"idx": 0, "label": 1}\n', ":1: not in the server's format"),
    ],
)
def test_damaged_files_are_named_with_their_line(
    name: str, text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = fake_study(tmp_path, rows=2)
    (path,) = study.rglob(name)
    path.write_text(text)
    assert zip_of(tmp_path, "--partial", benchmark="glue" if name in GLUE else "superglue") == 2
    assert f"{path}{message}" in capsys.readouterr().err


def test_damaged_results_and_unknown_studies_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = fake_study(tmp_path, rows=2)
    path = next(study.rglob("result.json"))
    path.write_text('{"status": "finished"}')
    assert zip_of(tmp_path, "--partial") == 2
    assert str(path) in capsys.readouterr().err
    assert main(["submission", "t", "--benchmark", "glue", "--outputs", str(tmp_path)]) == 2
    assert f"no folder {tmp_path / 't'}; studies in {tmp_path}: s." in capsys.readouterr().err


def test_real_data_from_runs_to_zip(tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two tasks with real test files, the rest filled in from a complete submission."""
    fake_study(tmp_path / "other")
    assert zip_of(tmp_path / "other") == 0
    for task in ("cola", "rte"):
        start(tmp_path / f"s/{task}/tiny/zero_shot/0-00000000", task, shared / "data", "task.limit.eval=4")
    fill = ("--fill", str(tmp_path / "other/out.zip"))
    assert zip_of(tmp_path, *fill) == 2
    assert "CoLA.tsv: 4 rows, and the server expects 1063" in capsys.readouterr().err
    assert zip_of(tmp_path, *fill, "--partial") == 0
    files = read_zip(tmp_path / "out.zip", "glue")
    assert (len(files["CoLA.tsv"]), len(files["RTE.tsv"]), len(files["QNLI.tsv"])) == (4, 4, 5463)
