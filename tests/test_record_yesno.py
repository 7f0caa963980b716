"""ReCoRD asked as yes or no: one item per candidate, one answer per query."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from composing import run_of
from models import random_policy

import nlu_ppo.evaluation
from nlu_ppo.config import EvalConfig, LimitConfig, TaskConfig
from nlu_ppo.errors import DataError
from nlu_ppo.evaluation import evaluate, majority_score, score_answers_of
from nlu_ppo.prompting import Prompter
from nlu_ppo.run import execute
from nlu_ppo.tasks import Example, get_task, read_split, score
from nlu_ppo.tasks.reduction import judge
from nlu_ppo.tasks.splits import load_task

YESNO = get_task("record_yesno")
TEXT = "Rome greeted Bob. Bob met Al, said Bob Ross.\n@highlight\nAl of Rome smiled"


def span(name: str, occurrence: int = 0) -> dict[str, int]:
    start = -1
    for _ in range(occurrence + 1):
        start = TEXT.index(name, start + 1)
    return {"start": start, "end": start + len(name) - 1}  # the release's end is the last character


def release(*queries: tuple[int, str, list[str]], idx: int = 1) -> dict[str, Any]:
    """One line of the release; entities in no particular order, one of them twice."""
    entities = [span("Al"), span("Bob Ross"), span("Rome", 1), span("Bob"), span("Rome"), span("Bob", 1)]
    qas = [
        {"idx": number, "query": query, "answers": [{**span(name), "text": name} for name in names]}
        for number, query, names in queries
    ]
    return {"source": "x", "idx": idx, "passage": {"text": TEXT, "entities": entities}, "qas": qas}


def put(folder: Path, name: str, *items: dict[str, Any]) -> None:
    path = folder / "superglue" / "ReCoRD" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")


def read(folder: Path, split: str = "validation") -> list[Example]:
    return list(read_split(YESNO, split, "raw", folder))


SMILED = (4, "@placeholder smiled", ["Al"])
MET = (5, "@placeholder met him", ["Bob", "Bob Ross"])


# -- items ---------------------------------------------------------------------------------------------------


def test_one_item_per_candidate_in_the_order_of_the_passage(tmp_path: Path) -> None:
    put(tmp_path, "val", release(SMILED))
    items = read(tmp_path)
    assert [item.candidates for item in items] == [("Rome",), ("Bob",), ("Al",), ("Bob Ross",)]
    assert [item.label for item in items] == [0, 0, 1, 0]
    assert [item.fields["query"] for item in items][2:] == ["Al smiled", "Bob Ross smiled"]
    assert {item.accepted for item in items} == {("Al",)}
    assert {item.group for item in items} == {(1, 4)}
    assert [item.id for item in items] == [f"validation-1-4-{i}" for i in range(4)]
    assert items[1].idx == {"passage": 1, "query": 4, "candidate": 1}


def test_the_passage_is_whole(tmp_path: Path) -> None:
    put(tmp_path, "val", release(SMILED))
    text = "Rome greeted Bob. Bob met Al, said Bob Ross. Al of Rome smiled."
    assert {item.fields["passage"] for item in read(tmp_path)} == {text}
    assert text in Prompter(YESNO, None).render(read(tmp_path)[0])


def test_unlabelled_queries_have_items_too(tmp_path: Path) -> None:
    item = release(SMILED)
    del item["qas"][0]["answers"]
    put(tmp_path, "test", item)
    items = read(tmp_path, "test")
    assert len(items) == 4
    assert {(item.label, item.accepted) for item in items} == {(None, ())}


def test_a_query_without_a_slot_is_a_bad_row(tmp_path: Path) -> None:
    put(tmp_path, "val", release((4, "He smiled", ["Al"])))
    with pytest.raises(DataError, match=r"val\.jsonl:1: the query has no @placeholder"):
        read(tmp_path)


def test_hub_and_raw_agree(tmp_path: Path) -> None:
    from datasets import Dataset

    put(tmp_path, "val", release(SMILED))
    spans = [("Al", 26), ("Bob Ross", 35), ("Rome", 62), ("Bob", 13), ("Rome", 0), ("Bob", 18)]
    row = {
        "passage": TEXT,
        "query": SMILED[1],
        "entities": ["Bob Ross", "Rome", "Al", "Bob"],
        "entity_spans": {"text": [t for t, _ in spans], "start": [s for _, s in spans], "end": [0] * 6},
        "answers": ["Al"],
        "idx": {"passage": 1, "query": 4},
    }
    (tmp_path / "hub" / "record").mkdir(parents=True)
    Dataset.from_list([row]).to_parquet(
        str(tmp_path / "hub" / "record" / "validation-00000-of-00001.parquet")
    )
    hub = list(read_split(YESNO, "validation", "hub", hub_path=tmp_path / "hub"))
    assert hub == read(tmp_path)


# -- one answer per query ------------------------------------------------------------------------------------


def items_of(*queries: tuple[str, ...], gold: tuple[str, ...] = ("Al",)) -> list[Example]:
    return [
        Example(f"validation-0-{q}-{k}", {"passage": "", "query": name}, int(name in gold), (0, q), (name,),
                {"passage": 0, "query": q, "candidate": k}, accepted=gold)
        for q, names in enumerate(queries)
        for k, name in enumerate(names)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "chosen"),
    [
        ([0, 1, 0], "Bob"),
        ([0, 1, 1], "Bob"),  # of several, the first in the passage
        ([None, None, 1], "Al"),
        ([0, 0, 0], "Rome"),  # none: the first of all
        ([None, 0, None], "Rome"),
        ([None, None, None], None),  # nothing was said: that is no answer
    ],
)
def test_first_yes_in_passage_order(answers: list[int | None], chosen: str | None) -> None:
    judged = judge(YESNO, items_of(("Rome", "Bob", "Al")), answers)
    assert (judged.task.name, list(judged.answers)) == ("record", [chosen])
    (question,) = judged.examples
    assert (question.id, question.idx) == ("validation-0-0", {"passage": 0, "query": 0})
    assert (question.label, question.candidates) == (("Al",), ("Rome", "Bob", "Al"))


def test_the_likeliest_yes_where_likelihoods_are_known() -> None:
    items = items_of(("Rome", "Bob", "Al"), ("Al", "Bob"))
    judged = judge(YESNO, items, [0] * 5, strengths=[-3.0, -2.0, -1.0, -0.5, -0.5])
    assert list(judged.answers) == ["Al", "Al"]  # of equals, the first
    assert [list(rows) for rows in judged.rows] == [[2, 0, 1], [3, 4]]


def test_scores_are_the_official_ones_per_query() -> None:
    items = items_of(("Rome", "Al Gore", "Al"), ("Al", "Bob"), ("Bob", "Al"))
    answers = [0, 1, 1, 1, 0, None, None]  # Al Gore, Al, nothing
    found = score_answers_of(YESNO, answers, items)
    assert found == score("record", ["Al Gore", "Al", None], [("Al",)] * 3)
    assert found["em"] == pytest.approx(1 / 3)
    assert found["f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert score("record_yesno", ["Al Gore", "Al", None], [("Al",)] * 3) == found


def test_majority_says_no_to_all_and_so_takes_the_first_entity() -> None:
    items = items_of(("Rome", "Al"), ("Al", "Bob"))
    assert majority_score(YESNO, [0, 0, 1], items) == pytest.approx(50.0)


def test_evaluation_counts_queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is random; its completions are replaced, all else is real."""
    put(tmp_path, "val", release(SMILED, MET))
    examples = read(tmp_path)
    policy = random_policy("llama", lora=False)
    said = ["No</Judgement>", "Yes</Judgement>", "Yes</Judgement>", "?"] + ["mumble"] * 4
    tokens = [policy.tokenizer(text, add_special_tokens=False)["input_ids"] for text in said]
    monkeypatch.setattr(nlu_ppo.evaluation, "generate", lambda *_, **__: tokens)
    found = evaluate(policy, Prompter(YESNO, policy.tokenizer), examples, EvalConfig(bootstrap_samples=20))
    assert (found.n, found.unparsable, found.score) == (2, 1, 0.0)
    first, second = found.predictions
    assert (first["id"], first["label"], first["reference"]) == ("validation-1-4", "Bob", ("Al",))
    assert (first["completion"], first["correct"]) == ("Yes</Judgement>", False)
    assert [item["candidate"] for item in first["items"]] == ["Rome", "Bob", "Al", "Bob Ross"]
    assert [item["label"] for item in first["items"]] == [0, 1, 1, None]
    assert first["prompt_sha"] == first["items"][1]["prompt_sha"]
    assert (second["label"], second["reference"]) == (None, ("Bob", "Bob Ross"))
    assert second["likely"] in {"Rome", "Bob", "Al", "Bob Ross"}
    assert "group" not in first  # a query is resampled by itself
    assert {"likelihood/f1", "likelihood/em", "f1", "em", "score"} <= found.metrics.keys()
    assert found.interval == (0.0, 0.0)


def test_a_submission_has_one_entity_per_query(tmp_path: Path, model_dir: Path) -> None:
    put(tmp_path, "train", release(SMILED))
    put(tmp_path, "val", release(SMILED))
    unlabelled = release((7, SMILED[1], []), (6, MET[1], []))
    for query in unlabelled["qas"]:
        del query["answers"]
    put(tmp_path, "test", unlabelled)
    execute(
        run_of(tmp_path / "run", "task=record_yesno", "task.source=raw", f"task.data_dir={tmp_path}",
               "eval.submission=true", "model=local", f"model.path={model_dir}", "method=zero_shot",
               "tracking=none", "eval.bootstrap_samples=20")
    )  # fmt: skip
    file = tmp_path / "run" / "submission" / "ReCoRD.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [row["idx"] for row in rows] == [6, 7]
    assert {row["label"] for row in rows} <= {"Rome", "Bob", "Al", "Bob Ross"}


# -- training examples ---------------------------------------------------------------------------------------


def test_trained_on_are_one_true_and_one_false_entity_per_query(tmp_path: Path) -> None:
    put(tmp_path, "train", *(release(SMILED, MET, idx=i) for i in range(20)))
    put(tmp_path, "val", release(SMILED))
    config = TaskConfig("record_yesno", source="raw", data_dir=str(tmp_path), selection=16)
    data = load_task(YESNO, config)
    assert len(data.selection) == 16  # two passages, two queries each, with all four candidates
    assert len(data.train) == 18 * 2 * 2
    by_query: dict[Any, list[Any]] = {}
    for example in data.train:
        by_query.setdefault(example.group, []).append(example.label)
    assert all(sorted(labels) == [0, 1] for labels in by_query.values())
    held = {e.idx["passage"] for e in data.selection}
    assert not held & {e.idx["passage"] for e in data.train}
    assert len({e.candidates for e in data.train}) == 4  # not always the same ones
    assert list(load_task(YESNO, config).train) == list(data.train)
    short = TaskConfig("record_yesno", "raw", str(tmp_path), selection=16, limit=LimitConfig(train=6))
    assert len(load_task(YESNO, short).train) == 6


def test_a_query_whose_entities_are_all_right_gives_one_example(tmp_path: Path) -> None:
    put(tmp_path, "train", release((4, "@placeholder", ["Al", "Bob", "Rome", "Bob Ross"])))
    put(tmp_path, "val", release(SMILED))
    data = load_task(YESNO, TaskConfig("record_yesno", source="raw", data_dir=str(tmp_path)))
    assert [e.label for e in data.train] == [1]


def test_real_queries(shared: Path) -> None:
    queries = {e.id: e for e in read_split("record", "validation", "raw", shared / "data")}
    items = list(read_split(YESNO, "validation", "raw", shared / "data"))
    judged = judge(YESNO, items, [item.label for item in items])
    assert len(judged.examples) == len(queries) == 32
    for question in judged.examples:
        assert set(question.candidates) == set(queries[question.id].candidates)
        assert question.label == queries[question.id].label
        assert question.idx == queries[question.id].idx
    references = [question.label for question in judged.examples]
    assert score("record", judged.answers, references) == {"f1": 1.0, "em": 1.0, "score": 1.0}
