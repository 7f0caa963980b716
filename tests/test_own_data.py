"""A task of one's own from one YAML file: every format, every mistake, and a whole run."""

from __future__ import annotations

import csv
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from composing import config_of
from hypothesis import given
from hypothesis import strategies as st

from nlu_ppo.choices import CONF
from nlu_ppo.composition import check_task
from nlu_ppo.config import RecordConfig
from nlu_ppo.errors import ConfigError, DataError
from nlu_ppo.identity import identity, run_key
from nlu_ppo.prompting import Prompter
from nlu_ppo.run import build_run, execute
from nlu_ppo.tasks import Task, get_task, parse_answer, read_split, score, tasks_of
from nlu_ppo.tasks.__main__ import main
from nlu_ppo.tasks.own import read_task_file
from nlu_ppo.tasks.registry import task_of

RECORD = {
    "instruction": "Is the guest content?",
    "template": "Hotel: {place}\nReview: {text}",
    "columns": {"text": "what they wrote"},
    "label_column": "verdict",
    "labels": {"good": "Yes", "bad": "No", "unsure": None},
    "files": {"train": "train.csv", "validation": "dev.csv"},
}
ROWS = [
    {"place": "Ritz", "what they wrote": 'They said "no",\nand left', "verdict": "bad"},
    {"place": "Inn", "what they wrote": " Fine, really ", "verdict": "good"},
    {"place": "Inn", "what they wrote": "Hm", "verdict": "unsure"},
    {"place": "Grand", "what they wrote": "Großartig\u2028!", "verdict": "good"},
]
TEXTS = ['They said "no",\nand left', "Fine, really", "Großartig\u2028!"]


def described(folder: Path, **changes: Any) -> Path:
    """Writes mine.yaml, the description above with changes; a change to None takes the key out."""
    record = {key: value for key, value in {**RECORD, **changes}.items() if value is not None}
    source = record.pop("source", "raw")
    tree = {"name": "mine", "source": source, "record": record}
    path = folder / "task" / "mine.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    path.write_text("defaults: [/schema/task@_here_, _self_]\n" + text, encoding="utf-8")
    return path


def task_in(folder: Path, **changes: Any) -> Task:
    return task_of(read_task_file(described(folder, **changes)))


def read(task: Task, folder: Path, split: str = "validation", **options: Any) -> list[Any]:
    return list(read_split(task, split, "raw", folder, **options))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        from datasets import Dataset

        Dataset.from_list(rows).to_parquet(str(path))
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


# -- formats -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_every_format_gives_the_same_examples(tmp_path, suffix):
    write(tmp_path / f"dev.{suffix}", ROWS)
    examples = read(task_in(tmp_path, files={"validation": f"dev.{suffix}"}), tmp_path)
    assert [e.fields for e in examples] == [
        {"place": place, "text": text} for place, text in zip(["Ritz", "Inn", "Grand"], TEXTS, strict=True)
    ]
    assert [e.label for e in examples] == [1, 0, 0]  # ids in the order in which the words come: Yes, No
    assert [e.id for e in examples] == ["validation-0", "validation-1", "validation-3"]
    assert {e.task for e in examples} == {"mine"}


def test_tsv_has_no_quoting(tmp_path):
    (tmp_path / "dev.tsv").write_text(
        'place\twhat they wrote\tverdict\nInn\t"quite, so\tgood\nRitz\t""\tbad\n', encoding="utf-8"
    )
    examples = read(task_in(tmp_path, files={"validation": "dev.tsv"}), tmp_path)
    assert [e.fields["text"] for e in examples] == ['"quite, so', '""']


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
    str.strip
)


@given(st.lists(texts, min_size=1, max_size=4))
def test_csv_keeps_any_text(written):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "dev.csv", [{"text": text, "label": "a"} for text in written])
        task = task_in(
            folder, template="{text}", columns={}, label_column="label", labels={"a": "Yes", "b": "No"},
            files={"validation": "dev.csv"},
        )  # fmt: skip
        assert [e.fields["text"] for e in read(task, folder)] == [text.strip() for text in written]


def test_labels_are_matched_as_they_are_written(tmp_path):
    numbers = {0: "No", 1: "Yes", -1: None}
    for name, rows in (
        ("dev.csv", "text,label\na,1\nb,0\nc,-1\n"),
        (
            "dev.jsonl",
            '{"text": "a", "label": 1}\n{"text": "b", "label": 0.0}\n{"text": "c", "label": "-1"}\n',
        ),
    ):
        (tmp_path / name).write_text(rows)
        task = task_in(
            tmp_path, template="{text}", columns={}, label_column="label", labels=numbers,
            files={"validation": name},
        )  # fmt: skip
        assert [task.verbalize(e.label) for e in read(task, tmp_path)] == ["Yes", "No"]
    truths = {"true": "Yes", "false": "No"}
    (tmp_path / "dev.jsonl").write_text('{"text": "a", "label": true}\n{"text": "b", "label": "False"}\n')
    task = task_in(
        tmp_path, template="{text}", columns={}, label_column="label", labels=truths,
        files={"validation": "dev.jsonl"},
    )  # fmt: skip
    assert [task.verbalize(e.label) for e in read(task, tmp_path)] == ["Yes", "No"]


def test_several_labels_may_share_a_word(tmp_path):
    task = task_in(tmp_path, labels={"1": "Bad", "2": "Bad", "3": None, "4": "Good", "5": "Good"})
    assert task.verbalizers == ("Bad", "Good")
    assert task.raw.labels == {"1": 0, "2": 0, "4": 1, "5": 1}


def test_class_ids_in_parquet_go_by_their_names(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    data = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    data.to_parquet(str(tmp_path / "test.parquet"))
    task = task_in(
        tmp_path, template="{text}", columns={}, label_column="label", labels={"good": "Yes", "bad": "No"},
        files={"test": "test.parquet"},
    )  # fmt: skip
    assert [e.label for e in read(task, tmp_path, "test")] == [0, 1, None]


def test_a_column_of_the_slots_own_name_does_not_stand_in(tmp_path):
    """The slot {text} is filled from another column; where a row lacks that, `text` must not be taken."""
    rows = [{"place": "Inn", "text": "wrong", "what they wrote": "right", "verdict": "good"}]
    write(tmp_path / "dev.jsonl", rows)
    task = task_in(tmp_path, files={"validation": "dev.jsonl"})
    assert read(task, tmp_path)[0].fields["text"] == "right"
    write(tmp_path / "dev.jsonl", [{k: v for k, v in rows[0].items() if k != "what they wrote"}])
    with pytest.raises(DataError, match=r"dev\.jsonl:1: no 'text'"):
        read(task, tmp_path)


def test_numbers(tmp_path):
    record = {
        "kind": "regress", "template": "{text}", "columns": {}, "labels": None, "label_column": "stars",
        "low": 1, "high": 3, "files": {"validation": "dev.csv"},
    }  # fmt: skip
    task = task_in(tmp_path, **record)
    (tmp_path / "dev.csv").write_text("text,stars\na,1\nb,2.5\nc,3\n")
    examples = read(task, tmp_path)
    assert [e.label for e in examples] == [1.0, 2.5, 3.0]
    assert (task.metrics, task.answers(examples[0])[-1]) == (("pearson", "spearman"), "3.0")
    # unparsable counts as the middle of this scale, not of another task's: 2, which continues the line here
    assert score(task, [1.0, None, 3.0], [1.0, 2.0, 3.0])["pearson"] == pytest.approx(1.0)
    (tmp_path / "dev.csv").write_text("text,stars\na,4\n")
    with pytest.raises(DataError, match=r"dev\.csv:2: the score '4' is not between 1\.0 and 3\.0"):
        read(task, tmp_path)


def test_candidates(tmp_path):
    record = {
        "kind": "choose", "template": "Q: {question}\n{options}", "columns": {}, "labels": None,
        "candidates": "options", "label_column": "answer",
    }  # fmt: skip
    (tmp_path / "dev.csv").write_text("question,options,answer\nSky?,red | blue,blue\n")
    write(tmp_path / "dev.jsonl", [{"question": "Sky?", "options": ["red", "blue"], "answer": "blue"}])
    for name in ("dev.csv", "dev.jsonl"):
        task = task_in(tmp_path, **record, files={"validation": name})
        (example,) = read(task, tmp_path)
        assert example.fields["options"] == "- red\n- blue"
        assert (example.candidates, example.label) == (("red", "blue"), ("blue",))
        assert parse_answer(task, "Blue!</Judgement>", example.candidates) == "blue"
        assert score(task, ["blue"], [example.label]) == {"em": 1.0, "score": 1.0}
    (tmp_path / "dev.csv").write_text("question,options,answer\nSky?,red | blue,green\n")
    with pytest.raises(DataError, match=r"dev\.csv:2: the answer 'green' is none of the candidates"):
        read(task_in(tmp_path, **record, files={"validation": "dev.csv"}), tmp_path)


# -- where files lie -----------------------------------------------------------------------------------------


def test_paths_are_relative_to_the_project_or_to_data_dir(tmp_path):
    assert len(list(read_split("example_csv", "validation"))) == 57  # below the project, without data_dir
    assert get_task("example_csv").benchmark == "own"
    write(tmp_path / "dev.csv", ROWS)
    task = task_in(tmp_path)
    assert len(read(task, tmp_path)) == 3
    absolute = task_in(tmp_path, files={"validation": str(tmp_path / "dev.csv")})
    assert len(list(read_split(absolute, "validation"))) == 3
    with pytest.raises(DataError, match=r"tried .*/train\.csv\. Mend task\.record\.files\.train"):
        read(task, tmp_path, "train")


def test_a_hub_repository(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"body": Value("string"), "stars": ClassLabel(names=["one", "two", "three"])})
    rows = {"body": ["a", "b", "c"], "stars": [0, 1, 2]}
    (tmp_path / "data").mkdir()
    data = Dataset.from_dict(rows, features=features)
    data.to_parquet(str(tmp_path / "data" / "held_out-00000-of-00001.parquet"))
    path = described(
        tmp_path, source="hub", template="{text}", columns={"text": "body"}, label_column="stars",
        labels={"one": "Bad", "two": None, "three": "Good"}, files=None,
        hub={"path": "someone/reviews", "splits": {"test": "held_out"}},
    )  # fmt: skip
    config = read_task_file(path)
    task = task_of(config)
    examples = list(read_split(task, "test", "hub", hub_path=tmp_path))
    assert [(e.id, e.fields["text"], e.label) for e in examples] == [("test-0", "a", 0), ("test-2", "c", 1)]
    assert (task.eval_splits, task.trainable) == (("test",), False)


def test_minus_one_on_the_hub_is_a_label_where_it_is_one(tmp_path):
    from datasets import Dataset

    (tmp_path / "data").mkdir()
    rows = [{"text": text, "label": label} for text, label in (("a", -1), ("b", 1))]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "data" / "test.parquet"))
    common = {
        "source": "hub", "template": "{text}", "columns": {}, "label_column": None, "files": None,
        "hub": {"path": "someone/tweets", "splits": {"test": "test"}},
    }  # fmt: skip
    for changes, labels in (
        ({"labels": {-1: "Bad", 1: "Good"}}, [0, 1]),
        ({"labels": {0: "Bad", 1: "Good"}}, [None, 1]),
        ({"labels": None, "kind": "regress", "low": -1, "high": 1}, [-1.0, 1.0]),
    ):
        task = task_in(tmp_path, **{**common, **changes})
        assert [e.label for e in read_split(task, "test", "hub", hub_path=tmp_path)] == labels


# -- bad rows ------------------------------------------------------------------------------------------------


HEADER = "place,what they wrote,verdict\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEADER + "Inn,x,good\nInn,y,great\n",
            r"dev\.csv:3: unknown label 'great'; legal are good, bad, unsure",
        ),
        (HEADER + 'Inn,"two\nlines",good\nInn,y\n', r"dev\.csv:4: 2 columns instead of 3"),
        (HEADER + 'Inn,"x"y,good\n', r"dev\.csv:2: not valid CSV"),
        (HEADER + 'Inn,x,good\nInn,"never closed,good\n', r"dev\.csv:3: not valid CSV"),
        (HEADER.encode() + b"Inn,\xff,good\n", r"dev\.csv:2: not UTF-8"),
        (HEADER + ",,good\n", r"dev\.csv:2: nothing to show: place and text is empty"),
        (
            "place,text,verdict\nInn,x,good\n",
            r"dev\.csv:1: the header has no column 'what they wrote'.*columns",
        ),
        ("place,what they wrote,label\nInn,x,good\n", r"no column 'verdict'.*label_column"),
        ("place,place,what they wrote,verdict\na,b,c,good\n", r"the column 'place' 2 times"),
        (HEADER, r"split 'validation' is empty"),
        ("", r"dev\.csv is empty"),
    ],
)
def test_errors_name_file_and_line(tmp_path, text, message):
    (tmp_path / "dev.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        read(task_in(tmp_path), tmp_path)


def test_bad_rows_can_be_skipped(tmp_path, caplog):
    bad = 'Inn,x,great\nInn,"y"z,good\nInn,\nInn,ok,good\n'
    (tmp_path / "dev.csv").write_text(HEADER + bad)
    with caplog.at_level(logging.WARNING):
        (example,) = read(task_in(tmp_path), tmp_path, on_bad_row="skip")
    assert example.id == "validation-3"
    assert "skipped 3 bad rows" in caplog.text


def test_a_damaged_parquet_file(tmp_path):
    (tmp_path / "dev.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"dev\.parquet can't be read as a parquet file"):
        read(task_in(tmp_path, files={"validation": "dev.parquet"}), tmp_path)


# -- mistakes in the description -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"instruction": None}, "instruction"),
        ({"instruction": " "}, "task.record.instruction is empty"),
        ({"template": "no slots"}, "name a column in braces"),
        ({"template": "{}"}, "no plain name"),
        ({"template": "{text.x}"}, "no plain name"),
        ({"template": "{text"}, "task.record.template can't be read"),
        ({"labels": {}}, "has 0 answer words and needs two"),
        ({"labels": {"a": "Yes", "b": "Yes"}}, "has 1 answer words"),
        ({"labels": {"a": True, "b": False}}, "put it into quotes"),
        ({"labels": {True: "Yes", False: "No"}}, "put it into quotes"),
        ({"labels": {"a": ["x"], "b": "y"}}, "a word is due, or null"),
        ({"labels": {"a": "yes", "b": "Yes."}}, "these are one"),
        ({"labels": {"a": "?", "b": "Yes"}}, "no answer can match"),
        ({"columns": {"txt": "x"}}, "names the slot 'txt', but the template has place, text"),
        ({"metrics": ["bleu"]}, "kind=classify has accuracy, f1, f1_macro, matthews"),
        ({"metrics": ["f1"], "labels": {1: "A", 2: "B", 3: "C"}}, "use f1_macro"),
        (
            {"files": {"train": "train.xlsx", "validation": "dev.csv"}},
            "must end in .csv, .tsv, .jsonl, .parquet",
        ),
        ({"files": {"train": "train.csv"}}, "neither validation nor test in train"),
        ({"files": {}}, "task.record.files is empty"),
        ({"eval_splits": ["test"]}, "names 'test', but there is train, validation"),
        ({"source": "hub"}, "for record.files, say source: raw"),
        ({"source": "generated"}, "task.source=generated does not fit task.record"),
        ({"source": "hub", "files": None, "hub": {"path": "a/b"}}, "task.record.hub.splits is empty"),
        ({"kind": "regress"}, "labels is for kind=classify"),
        ({"kind": "regress", "labels": None, "low": 5, "high": 1}, "must be less than"),
        ({"kind": "choose", "labels": None}, "needs the slot"),
        ({"kind": "choose", "labels": None, "candidates": "options"}, "is no slot"),
        ({"candidates": "text"}, "is for kind=choose"),
        ({"kind": "rank"}, "classify, regress, choose"),
        ({"instrution": "x"}, "instrution"),
    ],
)
def test_a_wrong_description_is_told_with_its_file_and_key(tmp_path, changes, says):
    with pytest.raises(ConfigError) as caught:
        task_in(tmp_path, **changes)
    assert says in str(caught.value)
    assert "mine.yaml" in str(caught.value) or "task.record.labels" in str(caught.value)


def test_the_description_in_the_documentation_is_legal(tmp_path):
    text = (CONF.parent / "docs" / "own_data.md").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    task = task_of(read_task_file(tmp_path / "mine.yaml"))
    assert task.verbalizers == ("No", "Yes")
    assert task.raw.left_out == ("3",)
    assert (task.metrics, task.columns) == (("accuracy", "f1_macro"), ("place", "text"))


def test_names_that_are_taken_or_name_no_folder(tmp_path):
    path = described(tmp_path)
    path.write_text(path.read_text().replace("name: mine", "name: sst2"))
    with pytest.raises(ConfigError, match=r"task\.name=sst2 is the name of a task"):
        task_of(read_task_file(path))
    path.write_text(path.read_text().replace("name: sst2", "name: glue"))
    with pytest.raises(ConfigError, match=r"task\.name=glue is the name of a task"):
        tasks_of(read_task_file(path))
    path.write_text(path.read_text().replace("name: glue", "name: a/b"))
    with pytest.raises(ConfigError, match=r"task\.name='a/b' names folders"):
        read_task_file(path)
    with pytest.raises(ConfigError, match=r"no such task file"):
        get_task(str(tmp_path / "none.yaml"))


def test_a_record_can_be_checked_without_a_file():
    config = config_of("task=example_csv").task
    assert isinstance(config.record, RecordConfig)
    check_task(config)
    with pytest.raises(ConfigError, match=r"task\.record\.template shows nothing"):
        config_of("task=example_csv", "task.record.template=hello")


# -- everything else works with it ---------------------------------------------------------------------------


def chosen(folder: Path, *overrides: str) -> list[str]:
    """The overrides that take mine.yaml from `folder`, as --config-dir does on the command line."""
    return [f"hydra.searchpath=[file://{folder}]", "task=mine", f"task.data_dir={folder}", *overrides]


def test_prompts_answers_and_scores(tmp_path):
    write(tmp_path / "dev.csv", ROWS)
    task = task_in(tmp_path, metrics=["accuracy", "f1"])
    examples = read(task, tmp_path)
    assert Prompter(task, None).render(examples[1]) == (
        "Is the guest content?\nAnswer with one of these: Yes, No. Write it as <Judgement>answer</Judgement>."
        "\n\nHotel: Inn\nReview: Fine, really\n<Judgement>"
    )
    answers = [parse_answer(task, text) for text in ("no</Judgement>", "Yes.</Judgement>", "perhaps")]
    assert answers == [1, 0, None]
    # binary F1 is of the second word, No: one hit, and the unparsable answer counts as No: 2 * 1 / (2 + 1)
    assert score(task, answers, [e.label for e in examples]) == {
        "accuracy": pytest.approx(2 / 3), "f1": pytest.approx(2 / 3), "score": pytest.approx(2 / 3),
    }  # fmt: skip


def test_show_takes_the_path_of_a_description(tmp_path, capsys):
    write(tmp_path / "dev.csv", ROWS)
    path = described(tmp_path)
    assert main(["show", str(path), "--data-dir", str(tmp_path), "--row", "1"]) == 0
    assert "gold completion: Yes</Judgement>\nexample: validation-1" in capsys.readouterr().out
    assert main(["show", "example_csv"]) == 0
    assert "\nReview: " in capsys.readouterr().out


def test_the_key_counts_contents_and_description_but_no_places(tmp_path):
    def key(folder: Path, name: str = "dev.csv", **changes: Any) -> str:
        described(folder, files={"validation": name}, **changes)
        return run_key(config_of(*chosen(folder), "method=zero_shot"))

    first, second = tmp_path / "a", tmp_path / "b"
    for folder, name in ((first, "dev.csv"), (second, "other.csv")):
        folder.mkdir()
        write(folder / name, ROWS)
    same = key(first)
    assert same == key(second, "other.csv")
    assert json.dumps(identity(config_of(*chosen(first), "method=zero_shot")))
    for changes in (
        {"instruction": "Is the guest happy?"},
        {"template": "{text} ({place})"},
        {"labels": {"bad": "No", "good": "Yes", "unsure": None}},  # the same words in another order
        {"labels": {"good": "Yes", "bad": "No", "unsure": "No"}},
        {"columns": {"text": "place", "place": "what they wrote"}},
        {"metrics": ["f1"]},
    ):
        assert key(first, **changes) != same, changes
    assert key(first) == same
    write(first / "dev.csv", ROWS[:3])
    assert key(first) != same


@pytest.mark.parametrize("method", ["zero_shot", "sft"])
def test_a_whole_run(tmp_path, model_dir, method):
    rows = [{**row, "place": f"{row['place']} {i}"} for i in range(10) for row in ROWS]
    write(tmp_path / "train.csv", rows)
    write(tmp_path / "dev.csv", ROWS)
    described(tmp_path)
    config = config_of(
        *chosen(tmp_path, f"method={method}", "model=local", f"model.path={model_dir}", "method.max_steps=2"),
        "tracking=none", "eval.bootstrap_samples=10", "task.selection=3",
    )  # fmt: skip
    result = execute(build_run(config, tmp_path / "run"))
    assert (result["status"], result["task"], result["n"]) == ("finished", "mine", 3)
    assert result["majority"] == pytest.approx(
        200 / 3
    )  # Yes is the commonest label in train, right in 2 of 3
