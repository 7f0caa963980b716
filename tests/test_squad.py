"""SQuAD: both sources, the official metrics, rewards, and every method on a small file of the release's form."""

from __future__ import annotations

import collections
import json
import random
import re
import string
from pathlib import Path
from typing import Any

import pytest
from composing import config_of, run_of
from models import byte_tokenizer, random_policy

from nlu_ppo.config import RewardConfig
from nlu_ppo.errors import ConfigError, DataError
from nlu_ppo.evaluation import SPARE_TOKENS, longest_answer, majority_score
from nlu_ppo.identity import run_key
from nlu_ppo.methods.setting import Part, Setting, TrainingStream
from nlu_ppo.methods.sft import tokenized
from nlu_ppo.prompting import CLOSE, Prompter
from nlu_ppo.rewards import get_reward
from nlu_ppo.run import execute
from nlu_ppo.tables import build_table, collect
from nlu_ppo.tables.sections import sections
from nlu_ppo.tasks import Example, get_task, parse_answer, read_split, score
from nlu_ppo.tasks.__main__ import main
from nlu_ppo.tasks.splits import TaskData

SQUAD = get_task("squad")
PLACES = ("Oslo", "Bergen", "Turku", "Visby", "Aarhus", "Malmo")


def article(number: int) -> dict[str, Any]:
    """Two paragraphs with two questions each, in the release's form."""
    paragraphs = []
    for part, place in enumerate(PLACES[number % 3 :: 3]):
        context = (
            f"The old harbour of {place} was built in {1200 + 10 * number + part}. It has a white tower."
        )
        asked = [
            (f"Where is the harbour number {number}?", place, [place, f"the  old harbour of {place}", place]),
            ("When was it built?", str(1200 + 10 * number + part), [str(1200 + 10 * number + part)]),
        ]
        qas = [
            {
                "id": f"{number:02}{part}{i}abcdef",
                "question": question,
                "answers": [{"text": text, "answer_start": context.find(first)} for text in texts],
            }
            for i, (question, first, texts) in enumerate(asked)
        ]
        paragraphs.append({"context": context, "qas": qas})
    return {"title": f"Harbour_{number}", "paragraphs": paragraphs}


def document(numbers: range) -> dict[str, Any]:
    return {"version": "1.1", "data": [article(n) for n in numbers]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten articles to train on, three to evaluate on: 40 and 12 questions."""
    folder = tmp_path_factory.mktemp("data") / "squad"
    folder.mkdir()
    for name, numbers in (("train", range(10)), ("dev", range(10, 13))):
        (folder / f"{name}-v1.1.json").write_text(json.dumps(document(numbers)), encoding="utf-8")
    return folder.parent


def hub_rows(numbers: range) -> list[dict[str, Any]]:
    """The same questions in the hub's schema, written down once more."""
    return [
        {
            "id": qa["id"],
            "title": a["title"],
            "context": paragraph["context"],
            "question": qa["question"],
            "answers": {
                "text": [answer["text"] for answer in qa["answers"]],
                "answer_start": [answer["answer_start"] for answer in qa["answers"]],
            },
        }
        for a in document(numbers)["data"]
        for paragraph in a["paragraphs"]
        for qa in paragraph["qas"]
    ]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the hub's repository: parquet files, with the features that its data card states."""
    from datasets import Dataset, Features, List, Value

    folder = tmp_path_factory.mktemp("hub") / "plain_text"
    folder.mkdir()
    texts = {name: Value("string") for name in ("id", "title", "context", "question")}
    answers = {"text": List(Value("string")), "answer_start": List(Value("int32"))}
    for split, numbers in (("train", range(10)), ("validation", range(10, 13))):
        rows = Dataset.from_list(hub_rows(numbers), features=Features({**texts, "answers": answers}))
        rows.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    return folder.parent


# -- reading -------------------------------------------------------------------------------------------------


def test_both_sources_give_the_same_examples(data: Path, hub: Path) -> None:
    for split, count in (("train", 40), ("validation", 12)):
        raw = list(read_split("squad", split, "raw", data))
        assert raw == list(read_split("squad", split, "hub", hub_path=hub))
        assert len(raw) == count
    first, second, third, _ = raw[:4]
    assert (first.id, first.idx) == ("validation-1000abcdef", "1000abcdef")
    assert first.label == ("Bergen", "the old harbour of Bergen")  # once each, single blanks, first one first
    assert first.fields["context"].startswith("The old harbour of Bergen")
    assert first.group == second.group != third.group
    # the folder of the benchmark itself will do, too
    assert next(read_split("squad", "train", "raw", data / "squad")).id == "train-0000abcdef"


def broken(**changes: Any) -> dict[str, Any]:
    """A document whose second question is not as it should be; `None` leaves a key out."""
    whole = document(range(1))
    question = whole["data"][0]["paragraphs"][0]["qas"][1]
    question |= changes
    for name in [name for name, value in changes.items() if value is None]:
        del question[name]
    return whole


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"train-v1\.1\.json: invalid JSON"),
        ("[]", r"json: the document: no list 'data'"),
        ('{"data": [{"title": "x"}]}', r"json: data\[0\]: no list 'paragraphs'"),
        ('{"data": [{"paragraphs": [{"qas": 3}]}]}', r"json: data\[0\]\.paragraphs\[0\]: no list 'qas'"),
        (
            '{"data": [{"paragraphs": [{"qas": ["x"]}]}]}',
            r"paragraphs\[0\]\.qas\[0\]: not the release's shape",
        ),
        (json.dumps(broken(question=None)), r"data\[0\]\.paragraphs\[0\]\.qas\[1\]: no key 'question'"),
        (json.dumps(broken(question=4)), r"qas\[1\]: a column of the wrong type"),
        (json.dumps(broken(answers=[])), r"qas\[1\]: a question without an answer: SQuAD 2\.0"),
        (json.dumps(broken(answers="x")), r"qas\[1\]: not the release's shape"),
        (json.dumps(broken(answers=[{"text": 3}])), r"qas\[1\]: answers .* is not of the form"),
    ],
)
def test_errors_name_the_file_and_the_place_in_it(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train-v1.1.json").write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_split("squad", "train", "raw", tmp_path))


def test_a_bad_question_can_be_skipped_alone(tmp_path: Path) -> None:
    (tmp_path / "train-v1.1.json").write_text(json.dumps(broken(answers=[])))
    assert len(list(read_split("squad", "train", "raw", tmp_path, on_bad_row="skip"))) == 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"squad/dev-v1\.1\.json"):
        read_split("squad", "validation", "raw", tmp_path)


# -- answers and metrics -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Denver  Broncos</Judgement> and more", "Denver Broncos"),
        ("the\nBroncos", "the Broncos"),
        ("∀</Judgement>", "∀"),
        ("", None),
        (" \n</Judgement>x", None),
    ],
)
def test_any_text_is_an_answer(text: str, answer: str | None) -> None:
    assert parse_answer("squad", text) == answer


def official(predictions: list[str], golds: list[list[str]]) -> dict[str, float]:
    """The official evaluation, version 1.1, step by step: fractions where it prints per cent."""

    def normalize(text: str) -> str:
        text = "".join(char for char in text.lower() if char not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

    def f1(prediction: str, gold: str) -> float:
        said, wanted = normalize(prediction).split(), normalize(gold).split()
        same = sum((collections.Counter(said) & collections.Counter(wanted)).values())
        if same == 0:
            return 0.0
        precision, recall = same / len(said), same / len(wanted)
        return 2 * precision * recall / (precision + recall)

    em = [max(normalize(p) == normalize(g) for g in gs) for p, gs in zip(predictions, golds, strict=True)]
    overlap = [max(f1(p, g) for g in gs) for p, gs in zip(predictions, golds, strict=True)]
    return {"em": sum(em) / len(em), "f1": sum(overlap) / len(overlap)}


@pytest.mark.parametrize("seed", range(20))
def test_metrics_are_those_of_the_official_script(seed: int) -> None:
    rng = random.Random(seed)
    words = [
        "The",
        "a",
        "an",
        "theory",
        "U.S.",
        "US",
        "re-do",
        "redo",
        "10,000",
        "Łódź",
        "–",
        "$",
        "A.C.",
        "x",
    ]

    def phrase() -> str:
        return rng.choice(["", " "]) + rng.choice([" ", "  ", "\t"]).join(
            rng.choices(words, k=rng.randint(1, 5))
        )

    golds = [[phrase() for _ in range(rng.randint(1, 4))] for _ in range(200)]
    said = [rng.choice(gs) if rng.random() < 0.4 else phrase() for gs in golds]
    answers = [parse_answer("squad", text + CLOSE) for text in said]
    found = score("squad", answers, [tuple(gs) for gs in golds])
    expected = official(said, golds)
    assert list(found) == ["em", "f1", "score"]
    assert found["em"] == pytest.approx(expected["em"], abs=1e-12)
    assert found["f1"] == pytest.approx(expected["f1"], abs=1e-12)
    assert found["score"] == found["f1"]  # no mean with exact match, unlike ReCoRD's


def test_an_unparsable_answer_scores_nothing() -> None:
    found = score("squad", [None, "white tower"], [("tower",), ("white", "the white tower")])
    assert found == {"em": 0.5, "f1": 0.5, "score": 0.5}


def test_there_is_no_majority_and_no_list_of_answers() -> None:
    example = Example("x", {"context": "c", "question": "q"}, ("gold", "other"))
    assert majority_score(SQUAD, [("gold",)], [example]) is None
    assert SQUAD.answers(example) == ()
    assert not SQUAD.lists_answers


def test_the_longest_gold_answer_bounds_the_completion() -> None:
    prompter = Prompter(SQUAD, byte_tokenizer())
    examples = [Example(str(i), {}, ("x", "y" * i)) for i in range(1, 1000)]
    assert longest_answer(prompter, examples) == 999 + len(CLOSE) + SPARE_TOKENS


def test_sft_learns_the_first_gold_answer() -> None:
    policy = random_policy("llama")
    prompter = Prompter(SQUAD, policy.tokenizer)
    example = Example("x", {"context": "c", "question": "q"}, ("Zebra", "a zebra"))
    part = Part(TaskData(SQUAD, [example], [], {}, []), prompter)
    setting = Setting(config_of("task=squad"), policy, (part,), None)  # type: ignore[arg-type]
    (row,) = tokenized(setting, TrainingStream(setting), "completion")
    learned = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert prompter.tokenizer.decode(learned) == f"Zebra{CLOSE}</s>"


def test_answers_that_a_tokenizer_composes_are_spelled_well_enough() -> None:
    from tokenizers import normalizers

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()  # as Qwen's does
    ids = Prompter(SQUAD, tokenizer).completion_ids("Ame\u0301lie" + CLOSE)
    assert tokenizer.decode(ids) == "Am\u00e9lie" + CLOSE


# -- rewards -------------------------------------------------------------------------------------------------

HARBOUR = Example("train-0", {}, ("the old harbour", "old white tower"))


@pytest.mark.parametrize(
    ("answer", "agreement", "overlap"),
    [("Old harbour!", 1, 1), ("old tower", -1, 0.8), ("Oslo", -1, 0), (None, -3, -1)],
)
def test_rewards(answer: str | None, agreement: float, overlap: float) -> None:
    exact = get_reward(RewardConfig("label_agreement"), SQUAD)
    graded = get_reward(config_of("reward=token_f1").reward, SQUAD)
    assert exact("", answer, HARBOUR) == agreement
    assert graded("", answer, HARBOUR) == pytest.approx(overlap)


def test_token_f1_runs_from_wrong_to_correct() -> None:
    reward = get_reward(RewardConfig("token_f1", correct=3, wrong=-1, unparsable=-9), SQUAD)
    assert reward("", "old tower", HARBOUR) == pytest.approx(-1 + 4 * 0.8)
    assert reward("", None, HARBOUR) == -9


@pytest.mark.parametrize(("task", "use"), [("rte", "label_agreement"), ("stsb", "graded")])
def test_token_f1_needs_words(tmp_path: Path, task: str, use: str) -> None:
    with pytest.raises(ConfigError, match=rf"token_f1.*{task} has .*reward={use}"):
        run_of(tmp_path / "run", f"task={task}", "reward=token_f1")
    get_reward(RewardConfig("token_f1"), get_task("record"))


def test_graded_refuses_words() -> None:
    with pytest.raises(ConfigError, match="graded needs"):
        get_reward(RewardConfig("graded"), SQUAD)


# -- runs ----------------------------------------------------------------------------------------------------

SHORT = (
    "task=squad", "model=tiny", "tracking=none", "study=s", "eval.bootstrap_samples=20", "eval.max_new_tokens=12",
    "task.limit.train=16", "task.limit.eval=8", "task.selection=4", "seed=0",
)  # fmt: skip
METHODS = {
    "zero_shot": (),
    "few_shot": ("method.k=2", "method.choice=balanced"),
    "sft": ("method.max_steps=2",),
    "ppo": ("method.max_steps=2", "reward=token_f1"),
}


def test_every_method_runs_and_the_table_shows_what_there_is(tmp_path: Path, data: Path, hub: Path) -> None:
    from_file = ("task.source=raw", f"task.data_dir={data}")
    for method, more in METHODS.items():
        folder = tmp_path / "s" / "squad" / "tiny" / method / "0-abc"
        source = (f"task.hub_path={hub}",) if method == "sft" else from_file
        result = execute(run_of(folder, *SHORT, *source, f"method={method}", *more))
        assert result["likelihood_score"] is None
        assert result["majority"] is None
        assert set(result["metrics"]) == {"em", "f1", "score"}
        assert result["score"] == pytest.approx(100 * result["metrics"]["f1"])
        assert result["n"] == 8
        lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        assert all("likely" not in line and isinstance(line["reference"], list) for line in lines)
        assert sum(line["correct"] for line in lines) / 8 == pytest.approx(result["metrics"]["em"])
        assert len({line["group"] for line in lines}) == 4  # whole passages
    scores = sections(build_table(collect(tmp_path, "s")))[0]
    head = [name for name, _ in scores.columns]
    shown = [dict(zip(head, row, strict=True)) for row in scores.rows]
    assert [row["method"] for row in shown] == ["majority", *METHODS]
    assert {row["by likelihood"] for row in shown} == {row["majority"] for row in shown} == {"-"}
    assert all(float(row["score"]) >= 0 for row in shown[1:])


def test_likelihood_is_no_part_of_the_key(data: Path) -> None:
    chosen = ("task=squad", "method=zero_shot", "task.source=raw", f"task.data_dir={data}")
    assert run_key(config_of(*chosen)) == run_key(config_of(*chosen, "eval.likelihood=false"))
    assert run_key(config_of(*chosen)) != run_key(config_of(*chosen, "eval.decoding=sample"))


def test_show(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nlu_ppo.models.locate import TINY

    assert main(["show", "squad", "--data-dir", str(data), "--model", str(TINY)]) == 0
    told = capsys.readouterr().out
    assert "gold completion: Bergen</Judgement>\nexample: validation-1000abcdef" in told
    assert "completion: ['B" in told
