"""Every reader of files, on damaged files: a value of its own type, or an error of ours that names the file."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import damaged
from hypothesis import HealthCheck, given, settings
from run_folders import write_run
from submissions import write_benchmarks

from nlu_ppo.errors import UserError

FAULT = "Damaged or arbitrary bytes in a file that is read"
ROOT = Path(__file__).parents[1]
FULL = 1500


def hold_to(
    sources: list[bytes], check: Callable[[bytes], bool], count: int, figures: dict[str, Any]
) -> None:
    """Checks so many damaged files, and counts those that were refused."""
    seen = {"files": 0, "refused": 0}

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(damaged(sources))
    def each(data: bytes) -> None:
        seen["files"] += 1
        seen["refused"] += check(data)

    each()
    assert seen["refused"], "damage that is never noticed is no damage"
    figures.update(seen)


def names_it(error: UserError, path: Path) -> None:
    assert path.name in str(error) or path.parent.name in str(error), f"{error} doesn't name {path}"


# -- data of tasks -------------------------------------------------------------------------------------------

DATA = {
    "sst2": "glue/SST-2/dev.tsv", "cola": "glue/CoLA/dev.tsv", "stsb": "glue/STS-B/dev.tsv",
    "mrpc": "glue/MRPC/dev.tsv", "mnli": "glue/MNLI/dev_matched.tsv", "qqp": "glue/QQP/dev.tsv",
    "boolq": "superglue/BoolQ/val.jsonl", "cb": "superglue/CB/val.jsonl", "copa": "superglue/COPA/val.jsonl",
    "multirc": "superglue/MultiRC/val.jsonl", "record": "superglue/ReCoRD/val.jsonl",
    "record_yesno": "superglue/ReCoRD/val.jsonl", "wic": "superglue/WiC/val.jsonl", "wsc": "superglue/WSC/val.jsonl",
    "axb": "superglue/AX-b/AX-b.jsonl", "axg": "superglue/AX-g/AX-g.jsonl", "squad": "squad/dev-v1.1.json",
    "financial_phrasebank": "transfer/financial_phrasebank.csv", "emotion": "transfer/emotion.parquet",
    "imdb_cad": "ood/imdb_cad/orig_test.tsv",
}  # fmt: skip


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import pyarrow as pa
    from datasets import ClassLabel, Dataset, Features, Value
    from pyarrow import parquet

    folder = write_benchmarks(tmp_path_factory.mktemp("benchmarks"), train=4, test=3)
    for name in ("squad", "transfer", "ood/imdb_cad"):
        (folder / name).mkdir(parents=True)
    question = {"id": "q1", "question": "Who?", "answers": [{"text": "He", "answer_start": 0}]}
    paragraphs = [{"context": "He came.", "qas": [question, {**question, "id": "q2"}]}]
    document = {"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}
    (folder / "squad/dev-v1.1.json").write_text(json.dumps(document))
    rows = 'text,label\n"He said ""no"", and\nleft",negative\nGood,positive\n'
    (folder / "transfer/financial_phrasebank.csv").write_text(rows.replace("text,", "sentence,"))
    (folder / "ood/imdb_cad/orig_test.tsv").write_text(
        "Sentiment\tText\nPositive\tGood.\nNegative\tBad.<br />Yes\n"
    )
    labels = ClassLabel(names=["sadness", "joy", "love", "anger", "fear", "surprise"])
    table = {"text": ["a good day", "a bad day"], "label": [1, 0]}
    Dataset.from_dict(table, features=Features({"text": Value("string"), "label": labels})).to_parquet(
        str(folder / "transfer/emotion.parquet")
    )
    other = folder / "transfer/other.parquet"
    columns = {"text": pa.array([b"\xff", b"ok"], pa.binary()), "label": pa.array([None, 2.5])}
    parquet.write_table(pa.table(columns), other)
    return folder


@pytest.mark.promise(
    FAULT, "Readers of data give examples, or name the file and the row; no row is passed over in silence"
)
@pytest.mark.parametrize("name", DATA)
def test_data_files(name: str, benchmarks: Path, tmp_path: Path, full: bool, figures: dict[str, Any],
                    request: pytest.FixtureRequest) -> None:  # fmt: skip
    from nlu_ppo.tasks import Example, get_task, read_split

    path = tmp_path / DATA[name]
    path.parent.mkdir(parents=True)
    sources = [(benchmarks / DATA[name]).read_bytes()]
    if name == "emotion":
        sources.append((benchmarks / "transfer/other.parquet").read_bytes())
    for file in Path(os.environ.get("NLU_PPO_SHARED", "nowhere"), "data").glob(DATA[name]):
        sources.append(b"".join(file.open("rb").readlines()[:6]))
    task = get_task(name)
    split = task.eval_splits[0]

    def check(data: bytes) -> bool:
        path.write_bytes(data)
        bad: list[str] = []
        try:
            examples = list(read_split(name, split, "raw", tmp_path))
        except UserError as error:
            names_it(error, path)
            examples = []
        for example in examples:
            assert isinstance(example, Example)
            assert all(
                isinstance(text, str) and text.encode() is not None for text in example.fields.values()
            )
            task.template.format_map(example.fields)
            if example.label is not None:
                task.verbalize(example.label)
        if not examples:
            try:
                list(read_split(name, split, "raw", tmp_path, "skip", bad_rows=bad))
            except UserError as error:
                names_it(error, path)
            return True
        if path.suffix == ".tsv" and name in ("sst2", "imdb_cad"):  # a row a line, and a header
            lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
            assert len(examples) == sum(bool(line.rstrip(b"\r")) for line in lines) - 1
        return False

    hold_to(sources, check, FULL if full else 25, figures)


# -- run folders ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder as it lies in outputs/demo/rte/tiny/sft/."""
    return write_run(
        tmp_path_factory.mktemp("outputs"), curve=[(0, 30.0), (8, 40.0)], groups=[1, 1, {"a": 2}, None],
        identity={"method": {"k": 1}, "task": {"mixing": "equal"}}, submission_missing={},
    )  # fmt: skip


@pytest.mark.promise(
    FAULT, "A table is made of the runs that can be read, and the others are named with what is wrong"
)
@pytest.mark.parametrize("name", ["result.json", "run.json", "metrics.jsonl", "predictions.jsonl"])
def test_run_folders(name: str, run_files: Path, tmp_path: Path, full: bool, figures: dict[str, Any]) -> None:
    from nlu_ppo.launching.display import last_metrics
    from nlu_ppo.tables.answers import read_answers
    from nlu_ppo.tables.collect import collect, read_curve, read_jsonl
    from nlu_ppo.tables.reproduce import _attempt
    from nlu_ppo.tables.summary import before_and_after
    from nlu_ppo.tracking.folder import RunFolder

    outputs = tmp_path / "outputs"
    folder = outputs.joinpath(*run_files.parts[-5:])
    shutil.copytree(run_files, folder)
    path = folder / name
    result = {**json.loads((folder / "result.json").read_text()), "likelihood_score": None}

    def check(data: bytes) -> bool:
        path.write_bytes(data)
        # What is shown on the way shows what it can.
        assert all(
            isinstance(value, float) for value in last_metrics(folder / "metrics.jsonl", since=0).values()
        )
        assert before_and_after(folder, result)
        assert _attempt(folder)
        refused = False
        study = collect(outputs, "demo")
        assert len(study.runs) + len(study.problems) == 1
        refused |= bool(study.problems)
        for run in study.runs:
            read_lines = len(list(read_jsonl(path))) if path.suffix == ".jsonl" else 0
            refused |= read_lines < len(data.strip().splitlines())  # a warning says so
            try:
                read_answers(run)
                read_curve(run, "select/score")
            except UserError as error:
                names_it(error, path)
                refused = True
        for read in (
            lambda f: f.read_json("result.json"),
            lambda f: f.read_json("run.json"),
            lambda f: f.read_metrics(),
        ):
            try:
                read(RunFolder(folder, "k"))
            except UserError as error:
                names_it(error, path)
                refused = True
        return refused

    hold_to([path.read_bytes()], check, FULL if full else 40, figures)


# -- configuration -------------------------------------------------------------------------------------------

OWN = """# Questions to a help desk.
defaults: [/schema/task@_here_, _self_]
name: desk
record:
  kind: classify
  instruction: "Read a question. Which department answers it?"
  template: "Question: {text}"
  labels: {billing: Billing, tech: Technology}
  metrics: [accuracy]
  columns: {text: question}
  files: {train: train.csv, validation: dev.csv}
"""


def own_task(path: Path) -> object:
    from nlu_ppo.tasks.own import build_task, read_task_file

    config = read_task_file(path)
    return build_task("own", config.record, "raw") if config.record is not None else None


def expected(path: Path) -> object:
    from nlu_ppo.tables.expected import load_expected

    return load_expected(path.stem, path.parent)


def printed(path: Path) -> object:
    from nlu_ppo.tables.printed import load

    return load(path.stem, path.parent)


def rationales(path: Path) -> object:
    from nlu_ppo.preference.pairs import file_pairs

    return file_pairs(path)


def submission_zip(path: Path) -> object:
    from nlu_ppo.tasks.submission_zip import _read_zip

    return _read_zip(path)


def checkpoint(path: Path) -> object:
    from nlu_ppo.storage import damage

    return damage(path.parent)


def text(path: Path) -> object:
    from nlu_ppo.tasks.texts import read_text

    return read_text(str(path)).content.encode()


def replies(path: Path) -> object:
    from nlu_ppo.replies import ReplyCache

    return [cache.get(key).text.lower() for cache in [ReplyCache(path)] for key in cache.keys()]  # noqa: SIM118


def choices(path: Path) -> object:
    from nlu_ppo.choices import read_groups

    return read_groups(path.parents[1])


def both(folder: str, *names: str) -> list[bytes]:
    return [(ROOT / folder / name).read_bytes() for name in names]


def zipped() -> list[bytes]:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("SST-2.tsv", "index\tprediction\n0\t1\n" * 20)
        archive.writestr("CB.jsonl", '{"idx": 0, "label": "neutral"}\n')
    return [stream.getvalue()]


PRINTED = "src/nlu_ppo/tables/printed"
PAIRS = [{"instruction": "I", "input": "x", "output": ["a", "b"], "history": []}] * 2
REPLY = {"key": "k", "reply": {"text": "t", "ended": True, "tokens_in": 1, "tokens_out": 2}}
OTHERS: dict[str, tuple[str, Callable[[Path], object], Callable[[], list[bytes]]]] = {
    "own task": ("conf/task/own.yaml", own_task, lambda: [OWN.encode()]),
    "expected table": ("table1.yaml", expected, lambda: both("sweeps/expected", "table1.yaml", "demo.yaml")),
    "printed table": ("a_table_1.yaml", printed, lambda: both(PRINTED, "a_table_1.yaml", "b_rllr.yaml")),
    "pairs": ("pairs.json", rationales, lambda: [json.dumps(PAIRS).encode()]),
    "submission": ("old.zip", submission_zip, zipped),
    "seal of a checkpoint": ("step-1/complete.json", checkpoint, lambda: [b'{"state.json": [2, "abc"]}']),
    "running text": ("text.txt", text, lambda: ["A text. Ein Text über ein Wort.\n".encode()]),
    "replies": ("replies.jsonl", replies, lambda: [json.dumps(REPLY).encode() + b"\n"]),
    "choices": ("conf/task/own.yaml", choices, lambda: [OWN.encode()]),
}  # fmt: skip


@pytest.mark.promise(
    FAULT, "Files of configuration, pairs, submissions and caches are read, or named with what is wrong"
)
@pytest.mark.parametrize("name", OTHERS)
def test_other_files(name: str, tmp_path: Path, full: bool, figures: dict[str, Any]) -> None:
    place, read, sources = OTHERS[name]
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)

    def check(data: bytes) -> bool:
        path.write_bytes(data)
        try:
            found = read(path)
        except UserError as error:
            names_it(error, path)
            return True
        return isinstance(found, str) or data != sources()[0]

    hold_to(sources(), check, FULL if full else 40, figures)
    assert not (Path.cwd() / "flag").exists()


@pytest.mark.promise(
    "A flipped bit in tokenised prompts", "It is noticed, and the prompts are tokenised again"
)
def test_kept_prompts(tmp_path: Path, full: bool, figures: dict[str, Any]) -> None:
    from nlu_ppo.prompt_cache import PromptCache
    from nlu_ppo.prompting import Prompt

    prompts = [Prompt(f"text {i}", (i, 2, 3), False) for i in range(30)]
    cache = PromptCache(tmp_path)
    assert list(cache.get("key", lambda: prompts)) == prompts
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()

    def check(data: bytes) -> bool:
        path.write_bytes(data)
        made: list[int] = []
        assert list(cache.get("key", lambda: made.append(1) or prompts)) == prompts
        assert len(made) == (data != whole)
        return bool(made)

    hold_to([whole], check, FULL if full else 40, figures)
