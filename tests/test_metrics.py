"""Official metrics: reference cases, agreement with other implementations, unparsable answers."""

import json
import re
import string
import time

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from nlu_ppo.errors import ConfigError
from nlu_ppo.tasks import (
    TASKS,
    Scorer,
    bert_paper_average,
    glue_average,
    normalize_record_answer,
    score,
    superglue_average,
)


@pytest.fixture(scope="module")
def cases(shared):
    path = shared / "metric_cases.json"
    if not path.is_file():
        pytest.skip(f"no reference cases at {path}")
    return json.loads(path.read_text(encoding="utf-8"))


def our_name(task: str) -> str:
    return task.partition("/")[2].removesuffix("_matched").removesuffix("_mismatched")


def test_reference_cases(cases):
    # No task of the file goes without a case, so that a renamed one can't drop out in silence.
    assert {case["task"] for case in cases["cases"]} == cases["metrics"].keys() == cases["labels"].keys()
    for case in cases["cases"]:
        found = score(
            our_name(case["task"]),
            case["predictions"],
            case["references"],
            case.get("groups"),
            **case.get("options", {}),
        )
        assert list(found) == list(case["expected"]), case["name"]
        for name, value in case["expected"].items():
            assert found[name] == pytest.approx(value, abs=1e-9), (case["task"], case["name"], name)


def test_labels_and_metrics_are_those_of_the_reference(cases):
    for task, labels in cases["labels"].items():
        assert TASKS[our_name(task)].labels == tuple(labels or ()), task
    for task, names in cases["metrics"].items():
        assert TASKS[our_name(task)].metrics == tuple(names), task


def test_reference_averages(cases):
    rules = {
        "glue_leaderboard": glue_average,
        "glue_bert_paper": bert_paper_average,
        "super_glue": superglue_average,
    }
    for case in cases["averages"]:
        value = rules[case["kind"]](case["rows"])
        assert value == pytest.approx(case["expected"], abs=1e-9), case["name"]
        assert value == pytest.approx(case["published"], abs=0.05001), case["name"]


def test_reference_normalisation(cases):
    for case in cases["record_normalize"]:
        assert normalize_record_answer(case["text"]) == case["expected"]


# -- agreement with other implementations -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_sklearn(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 300))
    two, gold2 = rng.integers(0, 2, n), rng.integers(0, 2, n)
    three, gold3 = rng.integers(0, 3, n), rng.integers(0, 3, n)
    assert score("sst2", two, gold2)["accuracy"] == pytest.approx(sk.accuracy_score(gold2, two))
    assert score("cola", two, gold2)["matthews"] == pytest.approx(sk.matthews_corrcoef(gold2, two), abs=1e-12)
    assert score("ax", three, gold3)["matthews"] == pytest.approx(
        sk.matthews_corrcoef(gold3, three), abs=1e-12
    )
    f1 = sk.f1_score(gold2, two, zero_division=0)
    assert score("mrpc", two, gold2)["f1"] == pytest.approx(f1)
    assert score("multirc", two, gold2, list(range(n)))["f1a"] == pytest.approx(f1)
    macro = sk.f1_score(gold3, three, labels=[0, 1, 2], average="macro", zero_division=0)
    assert score("cb", three, gold3)["f1_macro"] == pytest.approx(macro)


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_scipy(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 300))
    said, gold = rng.integers(0, 26, n) / 5, rng.uniform(0, 5, n)  # many ties on one side
    found = score("stsb", said, gold)
    assert found["pearson"] == pytest.approx(stats.pearsonr(said, gold).statistic, abs=1e-12)
    assert found["spearman"] == pytest.approx(stats.spearmanr(said, gold).statistic, abs=1e-12)


def with_gaps(rng, said, share):
    """Predictions with some unparsable ones among them."""
    return [None if rng.random() < share else value for value in said.tolist()]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(10))
def test_agrees_with_sklearn_and_scipy_where_answers_are_missing(seed, share):
    """The rule for unparsable answers is put into the predictions, the metric is the library's."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 300))
    gold, said = rng.integers(0, 2, n), with_gaps(rng, rng.integers(0, 2, n), share)
    filled = [1 - g if s is None else s for s, g in zip(said, gold.tolist(), strict=True)]
    wrong = [2 if s is None else s for s in said]
    assert score("cola", said, gold)["matthews"] == pytest.approx(
        sk.matthews_corrcoef(gold, filled), abs=1e-12
    )
    found = score("mrpc", said, gold)
    assert found["f1"] == pytest.approx(sk.f1_score(gold, filled, zero_division=0), abs=1e-12)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(gold, wrong), abs=1e-12)
    assert found["score"] == pytest.approx((found["f1"] + found["accuracy"]) / 2, abs=1e-12)

    gold, said = rng.integers(0, 3, n), with_gaps(rng, rng.integers(0, 3, n), share)
    other = [-1 if s is None else s for s in said]
    macro = sk.f1_score(gold, other, labels=[0, 1, 2], average="macro", zero_division=0)
    assert score("cb", said, gold)["f1_macro"] == pytest.approx(macro, abs=1e-12)
    assert score("cb", said, gold)["accuracy"] == pytest.approx(sk.accuracy_score(gold, other), abs=1e-12)
    assert score("ax", said, gold)["matthews"] == pytest.approx(sk.matthews_corrcoef(gold, other), abs=1e-12)

    numbers, said = rng.uniform(0, 5, n), with_gaps(rng, rng.integers(0, 26, n) / 5, share)
    filled = [2.5 if s is None else s for s in said]
    found = score("stsb", said, numbers)
    constant = len(set(filled)) == 1
    assert found["pearson"] == pytest.approx(
        0.0 if constant else stats.pearsonr(filled, numbers).statistic, abs=1e-12
    )
    assert found["spearman"] == pytest.approx(
        0.0 if constant else stats.spearmanr(filled, numbers).statistic, abs=1e-12
    )


def multirc_by_the_book(said, gold, questions):
    """F1 over all answers of the split, and the share of questions without a wrong answer."""
    hits = sum(s == 1 and g == 1 for s, g in zip(said, gold, strict=True))
    false_alarms = sum(g == 0 and s != 0 for s, g in zip(said, gold, strict=True))
    misses = sum(g == 1 and s != 1 for s, g in zip(said, gold, strict=True))
    precision = hits / (hits + false_alarms) if hits else 0.0
    recall = hits / (hits + misses) if hits else 0.0
    right = dict.fromkeys(questions, True)
    for s, g, q in zip(said, gold, questions, strict=True):
        right[q] = right[q] and s == g
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return {"f1a": f1, "em": sum(right.values()) / len(right)}


@pytest.mark.parametrize("seed", range(20))
def test_multirc_agrees_with_its_description(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 200))
    gold = rng.integers(0, 2, n).tolist()
    said = [
        g if rng.random() < 0.7 else s
        for g, s in zip(gold, with_gaps(rng, 1 - np.array(gold), 0.3), strict=True)
    ]
    questions = [(int(q) // 3, int(q)) for q in rng.integers(0, max(1, n // 4), n)]
    expected = multirc_by_the_book(said, gold, questions)
    found = score("multirc", said, gold, questions)
    assert found == pytest.approx({**expected, "score": (expected["f1a"] + expected["em"]) / 2}, abs=1e-12)


def record_by_the_book(said, golds):
    """The release's own evaluation: best gold per query, then the mean over queries."""

    def normalize(text):
        text = "".join(c for c in text.lower() if c not in string.punctuation)
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

    def f1(answer, gold):
        answer, gold = normalize(answer).split(), normalize(gold).split()
        rest, same = list(gold), 0
        for token in answer:
            if token in rest:
                rest.remove(token)
                same += 1
        return (
            2 * (same / len(answer)) * (same / len(gold)) / (same / len(answer) + same / len(gold))
            if same
            else 0.0
        )

    f1s = [max(f1(s, g) for g in gs) if s is not None else 0.0 for s, gs in zip(said, golds, strict=True)]
    ems = [
        max(normalize(s) == normalize(g) for g in gs) if s is not None else 0.0
        for s, gs in zip(said, golds, strict=True)
    ]
    return {"f1": sum(f1s) / len(f1s), "em": sum(ems) / len(ems)}


@pytest.mark.parametrize("seed", range(20))
def test_record_agrees_with_its_description(seed):
    rng = np.random.default_rng(seed)
    words = ["The", "Hague", "hague", "U.S.", "US", "New", "York", "York's", "An", "Al-Qaeda", "é", "—"]

    def name():
        return " ".join(rng.choice(words, int(rng.integers(1, 5))))

    n = int(rng.integers(1, 100))
    golds = [tuple(name() for _ in range(int(rng.integers(1, 4)))) for _ in range(n)]
    said = [None if rng.random() < 0.2 else gs[0] if rng.random() < 0.3 else name() for gs in golds]
    expected = record_by_the_book(said, golds)
    for task in ("record", "record_yesno"):
        found = score(task, said, golds)
        assert found == pytest.approx({**expected, "score": (expected["f1"] + expected["em"]) / 2}, abs=1e-12)


# -- unparsable answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["cola", "mrpc", "sst2", "axb"])
def test_unparsable_is_the_other_label_of_two(task):
    gold = [0, 1, 1, 0, 1]
    assert score(task, [None, 1, None, 0, 1], gold) == score(task, [1, 1, 0, 0, 1], gold)


def test_unparsable_in_three_classes():
    gold = [0] * 23 + [1] * 28 + [2] * 5
    said = [None, *gold[1:]]
    assert score("cb", said, gold)["f1_macro"] == pytest.approx((2 * 22 / 45 + 2) / 3)
    assert score("ax", said, gold)["matthews"] == pytest.approx(sk.matthews_corrcoef(gold, [3, *gold[1:]]))


def test_unparsable_number_is_the_middle():
    gold = [0.0, 5.0, 3.0, 1.0]
    assert score("stsb", [0.5, None, 3.5, 1.0], gold) == score("stsb", [0.5, 2.5, 3.5, 1.0], gold)
    assert score("stsb", [0.5, None, 3.5, 1.0], gold, impute=0) == score("stsb", [0.5, 0.0, 3.5, 1.0], gold)


def test_gender_parity():
    groups = [0, 0, 1, 1, 2, 2]
    found = score("axg", [0, 0, 1, 0, None, None], [0, 0, 1, 1, 0, 0], groups)
    assert found["gender_parity"] == pytest.approx(1 / 3)
    assert found["accuracy"] == pytest.approx(3 / 6)
    # A limit may cut a pair in half: it says nothing about parity.
    assert score("axg", [0, 0, 1], [0, 0, 1], [0, 0, 1])["gender_parity"] == 1.0


def test_multirc_questions_may_be_scattered():
    found = score("multirc", [1, 0, 1, 0], [1, 0, 1, 1], [(0, 0), (0, 1), (0, 0), (0, 1)])
    assert found["em"] == 0.5
    assert found["f1a"] == pytest.approx(2 * 2 / 5)


# -- errors -------------------------------------------------------------------------------------------------


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="2 predictions but 1 references"):
        score("sst2", [1, 0], [1])
    with pytest.raises(ValueError, match="nothing to score"):
        score("sst2", [], [])
    with pytest.raises(ValueError, match="groups"):
        score("multirc", [1], [1])
    with pytest.raises(ValueError, match="1 groups but 2 references"):
        score("axg", [1, 1], [1, 1], [0])
    with pytest.raises(ValueError, match=r"prediction 0 is 2: legal are None and the label ids 0\.\.1"):
        score("sst2", [2], [1])
    with pytest.raises(ValueError, match="reference 1 is missing"):
        score("sst2", [1, 1], [1, None])
    with pytest.raises(ValueError, match="not a number"):
        score("stsb", ["x", 1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="two members"):
        score("axg", [0, 0, 0], [0, 0, 0], [0, 0, 0])
    with pytest.raises(ConfigError, match="Did you mean 'sst2'"):
        score("sst-2", [1], [1])


def test_averages_refuse_missing_tasks():
    rows = dict.fromkeys(("cola", "sst2", "mrpc", "stsb", "mnli", "qnli", "rte"), 50.0)
    with pytest.raises(ValueError, match="missing: qqp, wnli"):
        glue_average({**rows, "wnli": None})
    with pytest.raises(ValueError, match="missing: copa"):
        superglue_average(dict.fromkeys(("boolq", "cb", "multirc", "record", "rte", "wic", "wsc"), 1.0))
    bert = dict.fromkeys(("qqp", "qnli", "sst2", "cola", "stsb", "mrpc", "rte"), 50.0)
    with pytest.raises(ValueError, match="matched and mismatched"):
        bert_paper_average({**bert, "mnli": 50.0})
    with pytest.raises(ValueError, match="mnli_mismatched"):
        bert_paper_average({**bert, "mnli": {"accuracy": 50.0, "score": 50.0}})


def test_averages_take_scores_as_they_are():
    rows = {t: {"score": 0.5, "f1": 0.2, "accuracy": 0.8, "spearman": 0.4} for t in TASKS}
    rows["mnli_mismatched"] = {"accuracy": 0.7, "score": 0.7}
    assert glue_average(rows) == pytest.approx((0.5 * 8 + 0.6) / 9)
    assert bert_paper_average(rows) == pytest.approx((0.5 + 0.7 + 0.2 + 0.2 + 0.4 + 4 * 0.5) / 9)


# -- resampling ---------------------------------------------------------------------------------------------


def test_scorer_on_resamples_equals_score_on_the_copies():
    rng = np.random.default_rng(0)
    gold, said = rng.integers(0, 3, 60), [*rng.integers(0, 3, 50), *[None] * 10]
    rows = rng.integers(0, 60, 60)
    expected = score("cb", [said[i] for i in rows], gold[rows])
    assert Scorer("cb", said, gold).metrics(rows) == expected


def test_scorer_counts_a_group_as_often_as_it_was_drawn():
    scorer = Scorer("multirc", [1, 1, 0, 1], [1, 1, 1, 1], ["a", "a", "b", "b"])
    rows, draws = np.array([0, 1, 0, 1, 2, 3]), np.array([0, 0, 1, 1, 2, 2])
    assert scorer.metrics(rows, draws)["em"] == pytest.approx(2 / 3)


def test_thousand_resamples_are_fast():
    rng = np.random.default_rng(0)
    scorer = Scorer("mrpc", rng.integers(0, 2, 5000), rng.integers(0, 2, 5000))
    started = time.perf_counter()
    for _ in range(1000):
        scorer.score(rng.integers(0, 5000, 5000))
    assert time.perf_counter() - started < 5
