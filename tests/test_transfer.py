"""Transfer sets, and the evaluation of a run's model on them."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from composing import config_of, run_of

import nlu_ppo.models.loading
from nlu_ppo.choices import read_groups
from nlu_ppo.errors import ConfigError, DataError
from nlu_ppo.further import further_tasks
from nlu_ppo.identity import identity, run_key
from nlu_ppo.run import build_run, execute
from nlu_ppo.tables.answers import read_answers
from nlu_ppo.tables.summary import before_and_after
from nlu_ppo.tasks import TASKS, get_task, parse_answer, read_split
from nlu_ppo.tasks.registry import task_config
from nlu_ppo.tasks.transfer import TRANSFER_TASKS

SHORT = ("tracking=none", "task.limit.train=16", "task.limit.eval=8", "task.selection=4",
         "eval.bootstrap_samples=20")  # fmt: skip


def words(task: str, examples: list[Any]) -> Counter[str]:
    return Counter(get_task(task).verbalize(e.label) for e in examples)


# -- records -------------------------------------------------------------------------------------------------


# Rows by answer word, as the data's own list of contents states them by label.
REAL = {
    ("ag_news", "validation"): {"World": 250, "Sports": 250, "Business": 250, "Technology": 250},
    ("ag_news", "test"): {"World": 250, "Sports": 250, "Business": 250, "Technology": 250},
    ("amazon_polarity_derived", "test"): {"Negative": 400, "Positive": 400},
    ("amazon_review5", "test"): {"1": 200, "2": 200, "3": 200, "4": 200, "5": 200},
    ("boolq_contrast", "test"): {"No": 170, "Yes": 165},
    ("imdb_cad", "train"): {"Negative": 244, "Positive": 256},
    ("imdb_cad", "validation"): {"Negative": 122, "Positive": 123},
    ("imdb_cad", "validation_revised"): {"Negative": 123, "Positive": 122},
    ("imdb_cad", "test"): {"Negative": 243, "Positive": 245},
    ("imdb_cad", "test_revised"): {"Negative": 245, "Positive": 243},
    ("mr", "train"): {"Negative": 988, "Positive": 1012},
    ("mr", "validation"): {"Negative": 452, "Positive": 415},
    ("snli", "validation"): {"Entailment": 346, "Neutral": 328, "Contradiction": 326},
    ("snli_cad", "train"): {"Entailment": 562, "Neutral": 554, "Contradiction": 550},
    ("snli_cad", "validation"): {"Entailment": 74, "Neutral": 75, "Contradiction": 51},
    ("snli_cad", "test"): {"Entailment": 146, "Neutral": 123, "Contradiction": 131},
    ("snli_cad", "test_revised_premise"): {"Entailment": 254, "Neutral": 277, "Contradiction": 269},
    ("snli_cad", "test_revised_hypothesis"): {"Entailment": 254, "Neutral": 277, "Contradiction": 269},
    ("tweet_eval_sentiment", "validation"): {"Negative": 155, "Neutral": 416, "Positive": 429},
    ("tweet_eval_sentiment", "test"): {"Negative": 309, "Neutral": 506, "Positive": 185},
}


@pytest.mark.parametrize(("task", "split"), REAL)
def test_real_files(shared, task, split):
    examples = list(read_split(task, split, "raw", shared / "data"))
    assert words(task, examples) == REAL[task, split]
    assert len({e.id for e in examples}) == len(examples)
    assert all(value and value == value.strip() for e in examples for value in e.fields.values())


def test_real_sets_say_what_they_are_about(shared):
    """One row of each kind, read by a person, so that no label stands for another."""
    (first, *_) = read_split("imdb_cad", "test", "raw", shared / "data")
    assert first.fields["text"].startswith("If you haven't seen this, it's terrible.")
    assert TASKS["imdb_cad"].verbalize(first.label) == "Negative"
    reviews = {e.label: e for e in read_split("amazon_review5", "test", "raw", shared / "data")}
    assert parse_answer("amazon_review5", "5</Judgement>") == max(reviews)
    assert parse_answer("amazon_review5", "0") is None
    (first, *_) = read_split("boolq_contrast", "test", "raw", shared / "data")
    assert first.fields["question"].endswith("second studio album?")
    assert TASKS["boolq_contrast"].verbalize(first.label) == "No"


def test_every_set_of_the_shared_data_has_its_tests(shared):
    files = {
        (shared / "data" / name).resolve()
        for task, split in REAL
        for name in TRANSFER_TASKS[task].raw.files[split]
    }
    assert files == {path.resolve() for path in (shared / "data" / "ood").glob("*/*")}


# (Columns, label names of the hub's ClassLabel or None, rows (text..., label), answers) as the cards say.
HUB: dict[str, tuple[tuple[str, ...], list[str] | None, list[tuple[Any, ...]], list[str]]] = {
    "financial_phrasebank": (
        ("sentence", "label"), ["negative", "neutral", "positive"],
        [("Loss.", 0), ("So.", 1), ("Profit.", 2)], ["Negative", "Positive"],
    ),
    "mental_health": (("text", "label"), None, [("low", 1), ("fine", 0)], ["Negative", "Positive"]),
    "emotion": (
        ("text", "label"), ["sadness", "joy", "love", "anger", "fear", "surprise"],
        [(f"feeling {i}", i) for i in range(6)], ["Negative", "Positive", "Positive", "Negative", "Negative"],
    ),
    "babi_nli": (
        ("premise", "hypothesis", "label"), ["not-entailed", "entailed"],
        [("P", "H", 0), ("P", "G", 1)], ["No entailment", "Entailment"],
    ),
    "siga_nli": (
        ("premise", "statement", "label"), None,
        [("P", "H", "Neutral"), ("P", "G", "entailment"), ("P", "F", "Contradiction")],
        ["Neutral", "Entailment", "Contradiction"],
    ),
}  # fmt: skip


def hub_copy(folder: Path, name: str) -> Path:
    """A local copy of the repository, in the hub's own schema and layout."""
    from datasets import ClassLabel, Dataset, Features, Value

    columns, names, rows, _ = HUB[name]
    hub = TASKS[name].hub
    features: dict[str, Any] = {column: Value("string") for column in columns}
    if names:
        features["label"] = ClassLabel(names=names)
    elif isinstance(rows[0][-1], int):
        features["label"] = Value("int64")
    table = dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))
    for split in hub.splits["test"].split("+"):
        path = folder / (hub.config or "data") / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(table, features=Features(features)).to_parquet(str(path))
    return folder


@pytest.mark.parametrize("name", HUB)
def test_hub_sets_from_a_copy_in_the_hubs_schema(tmp_path, name):
    examples = list(read_split(name, "test", "hub", hub_path=hub_copy(tmp_path, name)))
    copies = len(TASKS[name].hub.splits["test"].split("+"))
    assert [TASKS[name].verbalize(e.label) for e in examples] == HUB[name][3] * copies
    assert len({e.id for e in examples}) == len(examples)


@pytest.mark.parametrize("name", HUB)
def test_the_same_from_a_local_file(tmp_path, name):
    columns, names, rows, answers = HUB[name]
    path = tmp_path / "transfer" / f"{name}.csv"
    path.parent.mkdir()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([*texts, names[label] if names else label] for *texts, label in rows)
    examples = list(read_split(name, "test", "raw", tmp_path))
    assert [TASKS[name].verbalize(e.label) for e in examples] == answers
    path.write_text(path.read_text() + ",".join(["x"] * (len(columns) - 1) + ["odd"]) + "\n")
    with pytest.raises(DataError, match=rf"{name}\.csv:\d+: unknown label 'odd'"):
        list(read_split(name, "test", "raw", tmp_path))


def test_financial_news_is_a_file_only(tmp_path):
    path = tmp_path / "transfer" / "financial_news.csv"
    path.parent.mkdir()
    path.write_text("headline,sentiment\nShares rise,Positive\nShares stay,Neutral\nShares fall,Negative\n")
    examples = list(read_split("financial_news", "test", "raw", tmp_path))
    assert words("financial_news", examples) == {"Positive": 1, "Negative": 1}
    with pytest.raises(DataError, match=r"tried data/transfer/financial_news\.csv"):
        read_split("financial_news", "test", "raw", "data")
    with pytest.raises(ConfigError, match=r"task\.source=hub does not fit task=financial_news: use raw"):
        build_run(config_of("task=financial_news", "task.source=hub", "method=zero_shot"), tmp_path)


def test_every_set_has_a_choice_and_a_place_in_a_list():
    groups = {group: {choice.name: choice for choice in choices} for group, choices in read_groups().items()}
    assert set(TRANSFER_TASKS) <= set(groups["task"])
    listed = [name for choice in groups["eval"].values() for name in choice.values.get("also", [])]
    assert set(listed) == set(TRANSFER_TASKS) - {"ag_news", "boolq_contrast"}
    for name in TRANSFER_TASKS:
        assert task_config(name).name == name


def test_siblings_ask_as_the_task_that_a_model_learned():
    for name in ("mr", "snli", "snli_cad", "boolq_contrast"):
        owner = TASKS[TASKS[name].train_on]
        assert TASKS[name].instruction == owner.instruction
        assert TASKS[name].answer_format == owner.answer_format


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("ax", "train on mnli (task=mnli eval.also=[ax])"),
        ("amazon_review5", "train on sst2"),
        ("ag_news", "another"),
    ],
)
@pytest.mark.parametrize("method", ["few_shot", "sft", "ppo"])
def test_what_cannot_be_trained_on_says_what_can(tmp_path, task, says, method):
    with pytest.raises(ConfigError, match="no training split") as caught:
        build_run(config_of(f"task={task}", f"method={method}"), tmp_path)
    assert says in str(caught.value)


# -- beside a run's own task ---------------------------------------------------------------------------------


def ood(folder: Path) -> Path:
    """Small files in the layout of mr and imdb_cad."""
    for name, text in {
        "ood/mr/train.tsv": "sentence\tlabel\n" + "good\t1\n" * 4,
        "ood/mr/dev.tsv": "sentence\tlabel\n" + "good\t1\nbad\t0\nfine\t1\n" * 4,
        "ood/imdb_cad/orig_test.tsv": "Sentiment\tText\n" + "Negative\tbad<br />bad\n" * 6,
        "ood/imdb_cad/new_test.tsv": "Sentiment\tText\n" + "Positive\tgood\n" * 6,
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("method", ["zero_shot", "few_shot", "sft"])
def test_a_run_is_scored_on_further_sets_too(tmp_path, model_dir, method):
    shortened = (
        ("method.max_steps=2",) if method == "sft" else ("method.k=2",) if method == "few_shot" else ()
    )
    local = ("model=local", f"model.path={model_dir}", f"method={method}", *SHORT, *shortened)
    also = ("eval.also=[mr,imdb_cad,toy_nli,toy_sentiment]", f"eval.data_dir={ood(tmp_path)}", "eval.limit=5")
    plain = execute(run_of(tmp_path / "plain", *local))
    result = execute(run_of(tmp_path / "run", *local, *also))
    own = {key: value for key, value in result["metrics"].items() if key in plain["metrics"]}
    assert own == plain["metrics"]  # the headline is what it is without them
    for name in ("score", "ci95", "n", "unparsable", "majority", "likelihood_score"):
        assert result[name] == plain[name]
    metrics = result["metrics"]
    for prefix in ("mr", "imdb_cad", "imdb_cad/test_revised", "toy_nli"):
        assert metrics[f"{prefix}/n"] == 5
        assert 0 <= metrics[f"{prefix}/ci95_low"] <= metrics[f"{prefix}/accuracy"]
        assert metrics[f"{prefix}/accuracy"] <= metrics[f"{prefix}/ci95_high"] <= 1
        assert f"{prefix}/likelihood/accuracy" in metrics
    assert not any(key.startswith("toy_sentiment/") for key in metrics)  # the run's own

    predictions = lines(tmp_path / "run" / "predictions.jsonl")
    assert predictions[:8] == lines(tmp_path / "plain" / "predictions.jsonl")
    assert Counter(p.get("task") for p in predictions) == {None: 8, "mr": 5, "imdb_cad": 10, "toy_nli": 5}
    mr = [p for p in predictions if p.get("task") == "mr"]
    assert metrics["mr/accuracy"] == pytest.approx(sum(p["correct"] for p in mr) / 5)
    assert metrics["mr/unparsable"] == sum(p["label"] is None for p in mr)
    commonest = Counter(p["reference"] for p in mr).most_common(1)[0][1]
    assert metrics["mr/majority"] == pytest.approx(commonest / 5)
    assert "imdb_cad/test_revised" in before_and_after(tmp_path / "run", result)


def test_tables_compare_a_runs_own_examples_only(tmp_path):
    own = {"id": "validation-0", "correct": True, "reference": 1}
    other = {"task": "mr", "also": True, "id": "validation-0", "correct": False, "reference": 0}
    (tmp_path / "predictions.jsonl").write_text(f"{json.dumps(own)}\n{json.dumps(other)}\n")

    class Run:
        folder = tmp_path
        readings = ()

    answers = read_answers(Run())
    assert {on: found.correct.tolist() for on, found in answers.items()} == {None: [1.0], "mr": [0.0]}


def test_a_set_that_cannot_be_read_ends_the_run_before_it_begins(tmp_path, model_dir, monkeypatch):
    monkeypatch.setattr(nlu_ppo.models.loading, "load_policy", lambda *_: pytest.fail("a model was loaded"))
    local = ("model=local", f"model.path={model_dir}", "method=sft", *SHORT)
    with pytest.raises(DataError, match=r"task mr: no file for split 'validation'; tried .*ood/mr/dev\.tsv"):
        execute(run_of(tmp_path / "run", *local, "eval.also=[mr]", f"eval.data_dir={tmp_path}"))
    ood(tmp_path)
    (tmp_path / "ood/mr/dev.tsv").write_text("sentence\tlabel\ngood\t7\n")
    with pytest.raises(DataError, match=r"dev\.tsv:2: unknown label '7'"):
        execute(run_of(tmp_path / "again", *local, "eval.also=[mr]", f"eval.data_dir={tmp_path}"))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["eval.also=[mrr]"], "Did you mean 'mr'"),
        (["eval.also=[mr,mr]"], "eval.also names mr twice"),
        (["eval.also=[mr]", "eval.source=hub"], "task.source=hub does not fit task=mr: use raw"),
        (["eval.also=[rte]", "eval.source=raw"], "eval.source=raw needs eval.data_dir=DIR"),
        (["eval.also=[no/such/file.yaml]"], "there is no such task file"),
        (["eval.also=[toys,toy_nli]", "task=rte"], "names toy_nli twice"),
    ],
)
def test_mistakes_are_told_while_the_run_is_composed(tmp_path, overrides, says):
    with pytest.raises(ConfigError) as caught:
        build_run(config_of("method=zero_shot", *overrides), tmp_path)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "choice", ["transfer_sentiment", "transfer_nli", "reviews", "ood_sentiment", "ood_nli"]
)
def test_the_choices_compose_and_take_another_place(choice, tmp_path):
    config = config_of("task=sst2", f"eval={choice}", "eval.source=raw", f"eval.data_dir={tmp_path}")
    assert config.eval.decoding == "greedy"
    tasks = further_tasks(config)
    assert [task.name for task, _ in tasks] == config.eval.also
    assert {settings.data_dir for _, settings in tasks} == {str(tmp_path)}


def test_a_task_file_of_ones_own_among_them(tmp_path):
    (tmp_path / "dev.csv").write_text("text,label\nfine,good\nsad,bad\n")
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nsource: raw\nrecord:\n  instruction: Well?\n  template: '{text}'\n"
        "  labels: {good: 'Yes', bad: 'No'}\n  files: {test: " + str(tmp_path / "dev.csv") + "}\n"
    )
    config = config_of(
        "method=zero_shot", f"eval.also=[{path}]", "eval.source=hub", "eval.data_dir=elsewhere"
    )
    ((task, settings),) = further_tasks(config)
    assert (task.name, settings.source, settings.data_dir) == ("mine", "raw", None)


# -- the key -------------------------------------------------------------------------------------------------


def test_the_key_counts_further_sets_only_where_there_are_some(tmp_path):
    def key(*overrides: str) -> str:
        return run_key(config_of("method=zero_shot", *overrides))

    first, second = ood(tmp_path / "a"), ood(tmp_path / "moved" / "b")
    alone = key()
    assert alone == key("eval.source=raw", f"eval.data_dir={first}", "eval.limit=3")
    assert alone == key("eval.also=[toy_sentiment]")  # the run's own task, which is scored anyway
    with_mr = key("eval.also=[mr]", f"eval.data_dir={first}")
    assert with_mr not in (alone, key("eval.also=[imdb_cad]", f"eval.data_dir={first}"))
    assert with_mr == key("eval.also=[mr]", f"eval.data_dir={second}")
    assert with_mr != key("eval.also=[mr]", f"eval.data_dir={first}", "eval.limit=3")
    (second / "ood/mr/train.tsv").write_text("sentence\tlabel\nother\t0\n")  # nothing is trained on it
    assert with_mr == key("eval.also=[mr]", f"eval.data_dir={second}")
    (second / "ood/mr/dev.tsv").write_text("sentence\tlabel\nother\t0\n")
    assert with_mr != key("eval.also=[mr]", f"eval.data_dir={second}")
    json.dumps(identity(config_of("eval=transfer_nli")))
