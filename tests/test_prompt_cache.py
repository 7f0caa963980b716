"""Large splits take no memory, and a second start tokenises nothing."""

from __future__ import annotations

import json
import threading
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from composing import run_of
from models import byte_tokenizer
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase

from nlu_ppo.errors import ModelError
from nlu_ppo.prompt_cache import BATCH, PromptCache, PromptTable, count_shortened, token_ids
from nlu_ppo.prompting import Prompt, Prompter
from nlu_ppo.run import CACHE, execute
from nlu_ppo.tasks import Example, get_task, spool
from nlu_ppo.tasks.record import CLOSE
from nlu_ppo.tasks.spool import Spool, hold, select

SST2 = get_task("sst2")


def examples(count: int, words: str = "a film") -> list[Example]:
    return [Example(f"train-{i}", {"sentence": f"{words} {i}"}, i % 2, idx=i) for i in range(count)]


def prompter(cache: PromptCache | None, **options: Any) -> Prompter:
    return Prompter(SST2, byte_tokenizer(), cache=cache, **options)


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All texts that any tokenizer is given, in order."""
    texts: list[str] = []
    original = PreTrainedTokenizerBase.__call__

    def call(self: Any, text: Any = None, *args: Any, **options: Any) -> Any:
        texts.extend([text] if isinstance(text, str) else text)
        return original(self, text, *args, **options)

    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", call)
    return texts


# -- examples ------------------------------------------------------------------------------------------------


def test_small_splits_are_lists_and_large_ones_lie_in_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(spool, "IN_MEMORY", 10)
    assert isinstance(hold(iter(examples(10))), list)
    held = hold(iter(examples(11)), tmp_path / "scratch")
    assert isinstance(held, Spool)
    assert list((tmp_path / "scratch").iterdir()) == []  # the file has no name


def test_a_spool_behaves_as_a_list(tmp_path: Path) -> None:
    whole = [
        *examples(5),
        Example("r-1-2", {"query": "é\u2028"}, ("a", "b"), (1, 2), ("a", "c"), {"passage": 1, "query": 2},
                "record", ("a",)),
        Example("s", {"sentence1": ""}, 3.8),
        Example("t", {}, None),
    ]  # fmt: skip
    held = Spool.write(iter(whole), tmp_path)
    assert list(held) == whole
    assert [held[i] for i in range(len(held))] == whole
    assert held[-1] == whole[-1]
    assert held[2:5] == whole[2:5]
    assert list(reversed(held)) == whole[::-1]
    assert held.index(whole[5]) == 5
    with pytest.raises(IndexError):
        held[len(whole)]
    for rows in ([], [7, 0, 3], range(2, 6)):
        assert list(select(held, rows)) == list(select(whole, rows)) == [whole[i] for i in rows]
    assert list(select(select(held, [7, 0, 3]), [2, 0])) == [whole[3], whole[7]]


def test_a_spool_takes_next_to_no_memory(tmp_path: Path) -> None:
    def stream() -> Iterator[Example]:
        for i in range(60_000):
            yield Example(f"train-{i}", {"sentence": f"the film {i} " * 9}, i % 2, idx=i)

    tracemalloc.start()
    try:
        held = Spool.write(stream(), tmp_path)
        assert len(held) == 60_000
        assert sum(example.label for example in held) == 30_000
        current, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert current < 2e6  # two numbers per example
    assert peak < 6e6


# -- prompts -------------------------------------------------------------------------------------------------


def test_a_second_look_tokenises_nothing(tmp_path: Path, tokenised: list[str]) -> None:
    cache, some = PromptCache(tmp_path), examples(BATCH + 5)
    first = prompter(cache).prepare(some)
    assert len(tokenised) == BATCH + 5
    again = prompter(PromptCache(tmp_path)).prepare(some)
    assert len(tokenised) == BATCH + 5
    plain = prompter(None).encode(some)
    assert list(first) == list(again) == plain
    assert isinstance(again, PromptTable)
    assert list(token_ids(again)) == token_ids(plain) == [prompt.ids for prompt in plain]
    assert (again[-1], again[3:5], token_ids(again)[-1]) == (plain[-1], plain[3:5], plain[-1].ids)
    with pytest.raises(IndexError):
        again[BATCH + 5]


def test_no_cache_gives_the_same_prompts() -> None:
    assert prompter(None).prepare(examples(7)) == prompter(None).encode(examples(7))
    assert prompter(None).prepare([]) == []


def test_shortened_prompts_are_kept_as_they_were_cut(tmp_path: Path, tokenised: list[str]) -> None:
    some = examples(3, "long " * 50) + examples(2)
    plain = prompter(None, max_prompt_tokens=300).encode(some)
    assert [prompt.shortened for prompt in plain] == [True] * 3 + [False] * 2
    first = prompter(PromptCache(tmp_path), max_prompt_tokens=300).prepare(some)
    tokenised.clear()
    again = prompter(PromptCache(tmp_path), max_prompt_tokens=300).prepare(some)
    assert (list(again), count_shortened(again), count_shortened(plain)) == (plain, 3, 3)
    assert list(first) == plain
    assert not tokenised


@pytest.mark.parametrize(
    "changed",
    [
        {"max_prompt_tokens": 200},
        {"demonstrations": examples(1)},
        {"layout": "chat"},
    ],
)
def test_what_changes_a_prompt_changes_its_file(
    tmp_path: Path, changed: dict[str, Any], tokenised: list[str]
) -> None:
    some, tokenizer = examples(4), byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    cache = PromptCache(tmp_path)
    Prompter(SST2, tokenizer, cache=cache).prepare(some)
    tokenised.clear()
    other = Prompter(SST2, tokenizer, **changed)
    expected = other.encode(some)
    tokenised.clear()
    other.cache = cache
    assert list(other.prepare(some)) == expected
    assert len(tokenised) >= 4


def test_another_tokenizer_has_files_of_its_own(tmp_path: Path) -> None:
    cache, some, other = PromptCache(tmp_path), examples(3), byte_tokenizer()
    other.add_tokens(["Review"])
    first = Prompter(SST2, byte_tokenizer(), cache=cache).prepare(some)
    second = Prompter(SST2, other, cache=cache).prepare(some)
    assert len(second[0].ids) < len(first[0].ids)
    assert len(list(tmp_path.iterdir())) == 2


def test_completions_are_kept_too(tmp_path: Path, tokenised: list[str]) -> None:
    texts = [f"New York {i}{CLOSE}" for i in range(30)]
    first = prompter(PromptCache(tmp_path))
    first.learn_completions(texts)
    assert tokenised
    tokenised.clear()
    second = prompter(PromptCache(tmp_path))
    second.learn_completions(iter(texts))
    found = [second.completion_ids(text) for text in texts]
    assert not tokenised
    assert found == [prompter(None).completion_ids(text) for text in texts]


def test_a_tokenizer_that_cant_be_told_apart_goes_without(tmp_path: Path) -> None:
    tokenizer = ByT5Tokenizer()  # written in Python
    found = Prompter(SST2, tokenizer, cache=PromptCache(tmp_path)).prepare(examples(2))
    assert found == Prompter(SST2, tokenizer).encode(examples(2))
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = list(prompter(PromptCache(tmp_path)).prepare(examples(5)))
    (file,) = tmp_path.iterdir()
    for damage in (b"", file.read_bytes()[:-20], b"something else entirely"):
        file.write_bytes(damage)
        assert list(prompter(PromptCache(tmp_path)).prepare(examples(5))) == expected
        assert "tokenising again" in caplog.text
        caplog.clear()
    assert list(tmp_path.iterdir()) == [file]


def test_what_fails_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="left empty"):
        prompter(PromptCache(tmp_path), max_prompt_tokens=20).prepare(examples(3))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cant_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    found = prompter(PromptCache(tmp_path / "file" / "prompts")).prepare(examples(3))
    assert found == prompter(None).encode(examples(3))
    assert "no tokenised prompts are kept" in caplog.text


def test_runs_at_the_same_time_share_one_file(tmp_path: Path) -> None:
    """Both find nothing, both write; whoever is last replaces a file by its equal."""
    both_began = threading.Barrier(2)
    found: list[Sequence[Prompt]] = []

    def run() -> None:
        def make() -> Iterator[Prompt]:
            both_began.wait(timeout=30)
            yield from (Prompt(f"text {i}", (i, i + 1)) for i in range(BATCH * 2))

        found.append(PromptCache(tmp_path).get("key", make))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [file.name for file in tmp_path.iterdir()] == ["key.arrow"]
    assert list(found[0]) == list(found[1])
    assert len(found[0]) == BATCH * 2


# -- runs ----------------------------------------------------------------------------------------------------


def put_qqp(folder: Path, rows: int) -> Path:
    head = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    (folder / "glue" / "QQP").mkdir(parents=True)
    for name, count in (("train", rows), ("dev", 12)):
        lines = [f"{i}\t{i}\t{i}\tWho is {i}?\tIs it {i}?\t{int(i % 3 == 0)}\n" for i in range(count)]
        (folder / "glue" / "QQP" / f"{name}.tsv").write_text(head + "".join(lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize("method", ["zero_shot", "few_shot", "sft", "ppo"])
def test_a_second_run_tokenises_nothing_and_ends_the_same(
    tmp_path: Path, model_dir: Path, method: str, tokenised: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = put_qqp(tmp_path / "data", 300)
    steps = ("method.max_steps=2", "method.learning_rate=1e-3") if method in ("sft", "ppo") else ()

    def start(name: str) -> dict[str, Any]:
        return execute(
            run_of(tmp_path / name, "task=qqp", "task.source=raw", f"task.data_dir={data}", "task.selection=8",
                   "model=local", f"model.path={model_dir}", f"method={method}", *steps, "tracking=none",
                   "eval.bootstrap_samples=20")
        )  # fmt: skip

    first = start("first")
    assert tokenised
    tokenised.clear()
    monkeypatch.setattr(spool, "IN_MEMORY", 50)  # and from a file, nothing else comes out
    second = start("second")
    assert tokenised == []
    assert (tmp_path / CACHE / "prompts").is_dir()
    assert second["metrics"] == first["metrics"]

    def lines(name: str, file: str) -> list[dict[str, Any]]:
        path = tmp_path / name / file
        read = [json.loads(line) for line in path.open(encoding="utf-8")] if path.exists() else []
        return [{key: value for key, value in line.items() if key != "seconds"} for line in read]

    for file in ("predictions.jsonl", "metrics.jsonl"):
        assert lines("first", file) == lines("second", file)


def test_ppo_tokenises_only_what_it_comes_to_see(
    tmp_path: Path, model_dir: Path, tokenised: list[str]
) -> None:
    data = put_qqp(tmp_path / "data", 300)
    execute(
        run_of(tmp_path / "run", "task=qqp", "task.source=raw", f"task.data_dir={data}", "task.selection=0",
               "model=local", f"model.path={model_dir}", "method=ppo", "method.max_steps=1",
               "method.batch_size=16", "method.learning_rate=1e-3", "tracking=none",
               "eval.bootstrap_samples=20")
    )  # fmt: skip
    prompts = {text for text in tokenised if text.endswith("<Judgement>")}
    assert len(prompts) == 16 + 12
