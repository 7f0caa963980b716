"""Coverage-guided fuzzing of the answer parser and the readers of raw files, with atheris (pip install -e '.[fuzz]').

    python tests/fuzz_with_atheris.py answers 100000        # target, executions
    python tests/fuzz_with_atheris.py sst2 20000

A target is `answers`, or a task with raw files. What breaks the promise ends the process with a traceback, and atheris
writes the input that did it beside it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["nlu_ppo.tasks"]):
    from nlu_ppo.tasks import TASKS, get_task, parse_answer, read_split

from nlu_ppo.errors import UserError

FILES = {
    "sst2": "glue/SST-2/dev.tsv", "stsb": "glue/STS-B/dev.tsv", "multirc": "superglue/MultiRC/val.jsonl",
    "record": "superglue/ReCoRD/val.jsonl", "wsc": "superglue/WSC/val.jsonl", "squad": "squad/dev-v1.1.json",
    "financial_phrasebank": "transfer/financial_phrasebank.csv",
}  # fmt: skip


def answers(data: bytes) -> None:
    """Any text gives a legal label or none, whatever stands behind the closing tag."""
    provider = atheris.FuzzedDataProvider(data)
    task = TASKS[provider.PickValueInList(sorted(TASKS))]
    candidates = [provider.ConsumeUnicode(10), provider.ConsumeUnicode(10)]
    text = provider.ConsumeUnicode(len(data))
    found = parse_answer(task, text, candidates)
    assert found is None or isinstance(found, (int, float, str))
    assert parse_answer(task, f"{text}</Judgement>{text}", candidates) == parse_answer(
        task, f"{text}</Judgement>", candidates
    )
    if found is not None and task.labels:
        assert found in range(len(task.labels))


def reader(name: str, folder: Path) -> object:
    """A file of any bytes gives examples, or an error of ours that names it."""
    path = folder / FILES[name]
    path.parent.mkdir(parents=True)
    split = get_task(name).eval_splits[0]

    def check(data: bytes) -> None:
        path.write_bytes(data)
        try:
            for example in read_split(name, split, "raw", folder):
                assert all(isinstance(text, str) for text in example.fields.values())
        except UserError as error:
            assert path.name in str(error)  # noqa: PT017

    return check


if __name__ == "__main__":
    target, runs, *corpus = sys.argv[1:]
    with tempfile.TemporaryDirectory() as place:
        check = answers if target == "answers" else reader(target, Path(place))
        words = [
            sys.argv[0],
            f"-runs={runs}",
            "-max_len=4000",
            "-rss_limit_mb=4000",
            "-seed=1",
            *corpus,
        ]
        atheris.Setup(words, check)
        atheris.Fuzz()
