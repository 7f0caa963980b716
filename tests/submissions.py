"""Reads submissions as the servers' documentation describes them, and writes small benchmark files.

Nothing here comes from the package's own tables: two tellings of one format must agree.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

NLI = {0: "entailment", 1: "neutral", 2: "contradiction"}
TWO = {0: "entailment", 1: "not_entailment"}
DIGITS = {0: "0", 1: "1"}
GLUE: dict[str, tuple[int, dict[int, str] | None]] = {  # rows without the header, and what label ids stand as
    "CoLA.tsv": (1063, DIGITS),
    "SST-2.tsv": (1821, DIGITS),
    "MRPC.tsv": (1725, DIGITS),
    "STS-B.tsv": (1379, None),
    "MNLI-m.tsv": (9796, NLI),
    "MNLI-mm.tsv": (9847, NLI),
    "QNLI.tsv": (5463, TWO),
    "QQP.tsv": (390965, DIGITS),
    "RTE.tsv": (3000, TWO),
    "WNLI.tsv": (146, DIGITS),
    "AX.tsv": (1104, NLI),
}
SUPERGLUE: dict[str, tuple[int, dict[int, Any] | None]] = {
    "BoolQ.jsonl": (3245, {0: "false", 1: "true"}),
    "CB.jsonl": (250, {0: "entailment", 1: "contradiction", 2: "neutral"}),
    "COPA.jsonl": (500, {0: 0, 1: 1}),
    "MultiRC.jsonl": (9693, {0: 0, 1: 1}),
    "ReCoRD.jsonl": (10000, None),
    "RTE.jsonl": (3000, TWO),
    "WiC.jsonl": (1400, {0: "false", 1: "true"}),
    "WSC.jsonl": (146, {0: "False", 1: "True"}),
    "AX-b.jsonl": (1104, TWO),
    "AX-g.jsonl": (356, TWO),
}
OFFICIAL = {"glue": GLUE, "superglue": SUPERGLUE}
EVERY = {**GLUE, **SUPERGLUE}


# -- reading -------------------------------------------------------------------------------------------------


def read_file(name: str, text: str) -> dict[Any, Any]:
    """Index to what is predicted for it; asserts all that the format demands of every row."""
    assert text.endswith("\n")
    lines = text[:-1].split("\n")
    rows = _tsv(lines) if name.endswith(".tsv") else [r for line in lines for r in _json(name, line)]
    found = dict(rows)
    assert len(found) == len(rows), f"{name}: an index twice"
    assert list(found) == sorted(found), f"{name}: not in the order of the test set"
    legal = EVERY[name][1]
    for value in found.values():
        if legal is not None:
            assert value in legal.values()
            assert type(value) is type(next(iter(legal.values())))
        elif name == "STS-B.tsv":
            assert 0 <= float(value) <= 5
            assert len(value.partition(".")[2]) == 3
        else:
            assert type(value) is str
            assert value
    return found


def _tsv(lines: list[str]) -> list[tuple[int, str]]:
    assert lines[0] == "index\tprediction"
    rows = [line.split("\t") for line in lines[1:]]
    assert all(len(row) == 2 and row[0].isdecimal() for row in rows)
    return [(int(index), value) for index, value in rows]


def _json(name: str, line: str) -> list[tuple[Any, Any]]:
    row = json.loads(line)
    assert type(row["idx"]) is int
    if name != "MultiRC.jsonl":
        assert list(row) == ["idx", "label"]
        return [(row["idx"], row["label"])]
    assert list(row) == ["idx", "passage"]
    assert list(row["passage"]) == ["questions"]
    found = []
    for question in row["passage"]["questions"]:
        assert list(question) == ["idx", "answers"]
        for answer in question["answers"]:
            assert list(answer) == ["idx", "label"]
            found.append(((row["idx"], question["idx"], answer["idx"]), answer["label"]))
    return found


def read_zip(path: Path, benchmark: str) -> dict[str, dict[Any, Any]]:
    """All files of a submission; it must be flat and hold exactly the official ones."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == sorted(OFFICIAL[benchmark])
        return {name: read_file(name, archive.read(name).decode("utf-8")) for name in archive.namelist()}


# -- writing -------------------------------------------------------------------------------------------------


def _put(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _table(path: Path, columns: str, rows: list[dict[str, object]], header: bool = True) -> None:
    names = columns.split()
    lines = ["\t".join(str(row.get(name, "-")) for name in names) for row in rows]
    _put(path, ["\t".join(names)] * header + lines)


def write_benchmarks(folder: Path, train: int = 30, test: int = 5) -> Path:
    """Every task's files in the benchmarks' own layout, with made-up texts; diagnostic sets included.

    Labels of train are 0, 0, 1, 0, 0, 1 ...: class 0 is the commonest everywhere.
    """
    for split, count in (("train", train), ("dev", 4), ("test", test)):
        _write_glue(folder / "glue", split, count)
        _write_superglue(folder / "superglue", {"dev": "val"}.get(split, split), count)
    pairs = [{"index": i, "sentence1": f"Premise {i}.", "sentence2": f"Hypothesis {i}."} for i in range(test)]
    _table(folder / "glue/AX.tsv", "index sentence1 sentence2", pairs)
    diagnostic = [
        {"idx": str(i), "sentence1": f"P {i}.", "sentence2": "H.", "label": "entailment"} for i in range(test)
    ]
    _put(folder / "superglue/AX-b/AX-b.jsonl", [json.dumps(row) for row in diagnostic])
    gender = [
        {"idx": i, "premise": f"P {i}.", "hypothesis": "H.", "label": "entailment", "pair_id": 7 * i}
        for i in range(test)
    ]
    _put(folder / "superglue/AX-g/AX-g.jsonl", [json.dumps(row) for row in gender])
    return folder


def _write_glue(folder: Path, split: str, count: int) -> None:
    ids = [int(i % 3 == 2) for i in range(count)]
    known = split != "test"
    two, three = ("entailment", "not_entailment"), ("entailment", "neutral", "contradiction")
    texts = [
        {"index": i, "id": i, "source1": "s", "label": k, "score": f"{k}.5", "is_duplicate": k, "Quality": k}
        | {name: f"{name} {i} of {split}." for name in ("sentence", "sentence1", "sentence2")}
        | {name: f"{name} {i}?" for name in ("question", "question1", "question2")}
        | {"#1_String": f"One {i}.", "#2_String": f"Two {i}."}
        for i, k in enumerate(ids)
    ]
    named = [{**row, "label": two[k], "gold_label": three[k]} for row, k in zip(texts, ids, strict=True)]
    label = " label" if known else ""
    _table(folder / f"SST-2/{split}.tsv", f"{'' if known else 'index '}sentence{label}", texts)
    _table(folder / f"WNLI/{split}.tsv", f"index sentence1 sentence2{label}", texts)
    _table(folder / f"RTE/{split}.tsv", f"index sentence1 sentence2{label}", named)
    _table(folder / f"QNLI/{split}.tsv", f"index question sentence{label}", named)
    _table(folder / f"STS-B/{split}.tsv", f"index sentence1 sentence2{' score' * known}", texts)
    if known:
        _table(folder / f"CoLA/{split}.tsv", "source1 label mark sentence", texts, header=False)
        _table(folder / f"QQP/{split}.tsv", "id qid1 qid2 question1 question2 is_duplicate", texts)
    else:
        _table(folder / "CoLA/test.tsv", "index sentence", texts)
        _table(folder / "QQP/test.tsv", "id question1 question2", texts)
    mrpc = folder / f"MRPC/{split}.tsv"
    _table(mrpc, f"{'Quality' if known else 'index'} #1_ID #2_ID #1_String #2_String", texts)
    mrpc.write_text(mrpc.read_text().replace("_", " ", 4))  # the release's columns have blanks in their names
    for part in ("",) if split == "train" else ("_matched", "_mismatched"):
        _table(folder / f"MNLI/{split}{part}.tsv", f"index sentence1 sentence2{' gold_label' * known}", named)


def _write_superglue(folder: Path, split: str, count: int) -> None:
    two, three = ("entailment", "not_entailment"), ("entailment", "contradiction", "neutral")
    span = {"span1_text": "Ann", "span1_index": 0, "span2_text": "she", "span2_index": 3}
    spans = {"start1": 0, "end1": 4, "start2": 0, "end2": 4}
    wic = {"word": "bank", "sentence1": "bank by a river", "sentence2": "bank with money", **spans}
    copa = {"premise": "It rained.", "choice1": "Wet.", "choice2": "Dry.", "question": "effect"}
    tasks: dict[str, list[tuple[dict[str, Any], Any]]] = {
        name: [] for name in ("BoolQ", "CB", "COPA", "RTE", "WiC", "WSC")
    }
    for i in range(count):
        k = int(i % 3 == 2)
        pair = {"premise": f"Premise {i}.", "hypothesis": f"Hypothesis {i}."}
        tasks["BoolQ"].append(({"passage": f"Passage {i}.", "question": "is it so"}, bool(k)))
        tasks["CB"].append((pair, three[k]))
        tasks["RTE"].append((pair, two[k]))
        tasks["COPA"].append((copa, k))
        tasks["WiC"].append((wic, bool(k)))
        tasks["WSC"].append(({"text": f"Ann said that she has {i}.", "target": span}, bool(k)))
    known = split != "test"
    for name, rows in tasks.items():
        lines = [
            json.dumps({**r, "idx": i, **({"label": v} if known else {})}) for i, (r, v) in enumerate(rows)
        ]
        _put(folder / f"{name}/{split}.jsonl", lines)
    _put(folder / f"MultiRC/{split}.jsonl", _multirc(count, known))
    _put(folder / f"ReCoRD/{split}.jsonl", _record(count, known))


def _multirc(paragraphs: int, known: bool) -> list[str]:
    """Two questions a paragraph with two and one answers; numbers run through the split."""
    lines = []
    for p in range(paragraphs):
        questions = []
        for q, answers in ((2 * p, (3 * p, 3 * p + 1)), (2 * p + 1, (3 * p + 2,))):
            given = [
                {"idx": a, "text": f"Answer {a}.", **({"label": int(a % 3 == 2)} if known else {})}
                for a in answers
            ]
            questions.append({"idx": q, "question": f"Question {q}?", "answers": given})
        lines.append(
            json.dumps({"idx": p, "version": 1.1, "passage": {"text": f"Text {p}.", "questions": questions}})
        )
    return lines


def _record(passages: int, known: bool) -> list[str]:
    """Two queries a passage about Ann and Zoë; numbers of queries run through the split."""
    text = "Zoë met Ann in the park."
    entities = [{"start": 0, "end": 2}, {"start": 8, "end": 10}]
    gold = {"answers": [{"start": 8, "end": 10, "text": "Ann"}]} if known else {}
    lines = []
    for p in range(passages):
        queries = [{"idx": q, "query": f"@placeholder was met, {q}.", **gold} for q in (2 * p, 2 * p + 1)]
        passage = {"text": text, "entities": entities}
        lines.append(json.dumps({"source": "-", "idx": p, "passage": passage, "qas": queries}))
    return lines
