"""Perplexity against a token-by-token reference, where its texts come from, and runs that report it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import config_of, run_of
from models import byte_tokenizer, random_policy

from nlu_ppo.config import EvalConfig
from nlu_ppo.errors import ConfigError, DataError
from nlu_ppo.identity import run_key
from nlu_ppo.inference import perplexity
from nlu_ppo.inference.perplexity import Reading, Window, measure, prepare, windows
from nlu_ppo.models.policy import Policy
from nlu_ppo.run import execute
from nlu_ppo.tables.summary import before_and_after
from nlu_ppo.tasks.texts import read_text

# -- which tokens count --------------------------------------------------------------------------------------


def test_windows_written_down() -> None:
    assert windows(11, 4, 2) == [Window(0, 4, 1), Window(2, 6, 5), Window(4, 8, 7), Window(6, 10, 9)]
    assert windows(10, 4, 4) == [Window(0, 4, 1), Window(4, 8, 5), Window(8, 9, 9)]
    assert windows(5, 4, 1) == [Window(0, 4, 1)]
    assert windows(6, 4, 1) == [Window(0, 4, 1), Window(1, 5, 5)]
    assert windows(3, 100, 50) == [Window(0, 2, 1)]
    assert windows(2, 1, 1) == [Window(0, 1, 1)]
    assert windows(1, 4, 2) == windows(0, 4, 2) == []


@pytest.mark.parametrize("window", range(1, 8))
def test_every_token_after_the_first_counts_once_with_its_context(window: int) -> None:
    for stride in range(1, window + 1):
        for tokens in range(2, 40):
            plan = windows(tokens, window, stride)
            counted = [token for w in plan for token in range(w.first, w.end + 1)]
            assert counted == list(range(1, tokens))
            assert all(0 < w.end - w.start <= window for w in plan)
            for w in plan[1:]:
                assert w.first - w.start == window - stride + 1  # what the first of them sees


# -- the number ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy() -> Policy:
    return random_policy("llama", dtype=torch.float64, spread=0.3)


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return torch.randint(0, 200, (61,), generator=torch.Generator().manual_seed(0)).tolist()


def token_by_token(policy: Policy, ids: list[int], window: int, stride: int) -> float:
    """Each token alone, from the whole model, with the context that the documented rule gives it."""
    losses = []
    for token in range(1, len(ids)):
        # the first window that reaches the token: k * stride + window >= token
        start = max(0, math.ceil((token - window) / stride)) * stride
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([ids[start:token]]), use_cache=False).logits
        losses.append(-logits[0, -1].double().log_softmax(-1)[ids[token]].item())
    return math.exp(math.fsum(losses) / len(losses))


@pytest.mark.parametrize(
    ("window", "stride"),
    [
        (16, 8),
        (16, 16),
        (16, 1),
        (16, 5),
        (1, 1),
        (2, 1),
        (59, 30),
        (60, 30),
        (61, 30),
        (1000, 512),
        (20, 20),
    ],
)
def test_it_is_that_of_each_token_alone(policy: Policy, ids: list[int], window: int, stride: int) -> None:
    found = measure(policy, Reading("text", ids, window, stride), batch_size=3)
    assert found.value == pytest.approx(token_by_token(policy, ids, window, stride), rel=1e-5)
    assert (found.tokens, found.window, found.stride) == (60, window, stride)


def documented(policy: Policy, ids: list[int], max_length: int, stride: int) -> float:
    """The loop of the transformers documentation; for every stride below `max_length` it misses no token."""
    total, count, previous = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + max_length, len(ids))
        inputs = torch.tensor([ids[begin:end]])
        targets = inputs.clone()
        targets[:, : -(end - previous)] = -100
        with torch.no_grad():
            loss = policy.model(inputs, labels=targets, use_cache=False).loss.item()
        predicted = int((targets[:, 1:] != -100).sum())
        total, count, previous = total + loss * predicted, count + predicted, end
        if end == len(ids):
            break
    assert count == len(ids) - 1
    return math.exp(total / count)


@pytest.mark.parametrize(("window", "stride"), [(16, 8), (16, 16), (16, 3), (80, 40)])
def test_it_is_the_documented_scheme_with_one_token_more(
    policy: Policy, ids: list[int], window: int, stride: int
) -> None:
    found = measure(policy, Reading("text", ids, window, stride))
    assert found.value == pytest.approx(documented(policy, ids, window + 1, stride), rel=1e-5)


def test_batches_and_blocks_change_nothing_and_no_block_is_large(
    policy: Policy, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = Reading("text", ids, 16, 4)
    whole = measure(policy, reading, batch_size=64).value
    monkeypatch.setattr(perplexity, "_LOGITS", 5 * policy.head.weight.shape[0])
    original, seen = policy.logits, list[int]()

    def counting(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(len(hidden))
        return original(hidden)

    monkeypatch.setattr(policy, "logits", counting)
    assert measure(policy, reading, batch_size=1).value == pytest.approx(whole, rel=1e-9)
    assert max(seen) == 5
    assert sum(seen) == 60


def test_a_uniform_model_is_as_perplexed_as_it_has_tokens(ids: list[int]) -> None:
    policy = random_policy("qwen2", lora=False)
    with torch.no_grad():
        policy.head.weight.zero_()
    assert measure(policy, Reading("text", ids, 16, 8)).value == pytest.approx(
        policy.head.weight.shape[0], rel=1e-6
    )


# -- texts ---------------------------------------------------------------------------------------------------


def test_a_text_is_prepared_as_the_model_allows(tmp_path: Path) -> None:
    policy = random_policy()
    file = tmp_path / "my text.txt"
    file.write_text("\ufeffa line\n\nanother  one\n", encoding="utf-8")
    reading = prepare(
        policy, EvalConfig(perplexity=str(file), perplexity_window=4096, perplexity_stride=2048)
    )
    assert reading is not None
    assert (reading.name, reading.window, reading.stride) == ("my_text", 1024, 1024)
    assert byte_tokenizer().decode(reading.ids) == "a line\n\nanother  one\n"
    assert prepare(policy, EvalConfig()) is None


@pytest.mark.parametrize(("text", "count"), [("", 0), ("x", 1)])
def test_a_text_without_anything_to_predict_is_an_error(tmp_path: Path, text: str, count: int) -> None:
    (tmp_path / "short.txt").write_text(text)
    with pytest.raises(
        DataError, match=rf"eval\.perplexity=.*short\.txt: the text has {count} token.*longer text"
    ):
        prepare(random_policy(), EvalConfig(perplexity=str(tmp_path / "short.txt")))


def test_wrong_texts_are_named_while_the_run_is_composed(tmp_path: Path) -> None:
    for place, says in (("nowhere.txt", "no such file"), ("", r"no wikitext-2-raw-v1/test-\*\.parquet")):
        with pytest.raises(ConfigError, match=rf"eval\.perplexity={tmp_path}.*{says}.*wikitext"):
            run_of(tmp_path / "run", f"eval.perplexity={tmp_path / place}")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(DataError, match=r"latin\.txt: not UTF-8 .* byte 3"):
        read_text(str(tmp_path / "latin.txt"))


def test_tokens_between_windows_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text")
    far = ("eval.perplexity_window=8", "eval.perplexity_stride=9")
    with pytest.raises(ConfigError, match=r"perplexity_stride=9.*perplexity_window=8"):
        config_of(f"eval.perplexity={tmp_path / 'text.txt'}", *far)
    config_of(*far)  # without a text they have no effect


# As the hub has them: a row is a line, with its line break; empty rows have none.
ROWS = ["", " = A heading = \n", "", " Some words . \n", " <unk> more \n"]


def test_wikitext_from_a_copy_of_the_hubs_repository(tmp_path: Path) -> None:
    from datasets import Dataset

    (tmp_path / "wikitext-2-raw-v1").mkdir()
    file = tmp_path / "wikitext-2-raw-v1" / "test-00000-of-00001.parquet"
    Dataset.from_dict({"text": ROWS}).to_parquet(str(file))
    text = read_text(str(tmp_path))
    assert text.name == "wikitext"
    assert text.content == "\n\n = A heading = \n\n\n\n\n Some words . \n\n\n <unk> more \n"


def test_wikitext_is_asked_for_by_its_pinned_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: dict[str, Any] = {}

    def load_dataset(path: str, config: str, **options: Any) -> Any:
        asked.update(path=path, config=config, **options)
        return datasets.Dataset.from_dict({"text": ROWS})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert config_of("eval=wikitext").eval.perplexity == "wikitext"
    assert read_text("wikitext").content.count("\n\n") >= len(ROWS) - 1
    assert asked == {
        "path": "Salesforce/wikitext",
        "config": "wikitext-2-raw-v1",
        "split": "test",
        "revision": "b08601e04326c79dfdd32d625aee71d232d685c3",
    }
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no route"))
    )
    with pytest.raises(DataError, match=r"eval\.perplexity=wikitext: .*no route.*name a text file"):
        read_text("wikitext")


# -- the key -------------------------------------------------------------------------------------------------


def test_a_text_counts_by_name_and_contents(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "text.txt", tmp_path / "b" / "text.txt"
    for file in (first, second):
        file.parent.mkdir()
        file.write_text("some text")

    def key(*more: str) -> str:
        return run_key(config_of("method=zero_shot", *more))

    def read(file: Path, *more: str) -> str:
        return key(f"eval.perplexity={file}", *more)

    assert key() == key("eval.perplexity_window=8") == key("eval.perplexity_stride=9")
    assert read(first) == read(second) != key()
    assert read(first) != read(first, "eval.perplexity_window=2000")
    assert read(first) != read(first, "eval.perplexity_stride=8")
    assert key("eval=wikitext") not in (key(), read(first))
    second.write_text("another text")
    assert read(first) != read(second)


# -- runs ----------------------------------------------------------------------------------------------------


def test_runs_report_it_before_and_after_training(tmp_path: Path) -> None:
    """On the text that SFT trains on; the tiny model's weights before, and the trained ones after."""
    from nlu_ppo.tasks import read_split

    text = "\n".join(example.fields["text"] for example in list(read_split("toy_sentiment", "train"))[:20])
    (tmp_path / "reviews.txt").write_text(text)
    asked = (
        f"eval.perplexity={tmp_path / 'reviews.txt'}", "eval.perplexity_window=64", "eval.perplexity_stride=32",
        "model=tiny", "tracking=none", "task.limit.eval=4", "eval.bootstrap_samples=20", "eval.likelihood=false",
    )  # fmt: skip
    trained = ("method.max_steps=4", "method.keep=last", "method.loss_on=all", "task.limit.train=40")
    before = execute(run_of(tmp_path / "before", *asked, "method=zero_shot"))
    after = execute(run_of(tmp_path / "after", *asked, "method=sft", *trained))
    for name, result in (("before", before), ("after", after)):
        written = json.loads((tmp_path / name / "result.json").read_text())
        found = written["perplexity"]
        assert found["text"] == "reviews"
        assert (found["window"], found["stride"]) == (64, 32)
        assert written["metrics"]["perplexity/reviews"] == found["value"] == result["perplexity"]["value"]
        assert found["tokens"] > 200
        assert 1 < found["value"] < 1000
        assert written["seconds"].keys() == {"load", "fit", "evaluate", "perplexity"}
        assert "per token of reviews, windows of 64, stride 32" in before_and_after(tmp_path / name, result)
    assert after["perplexity"]["value"] != before["perplexity"]["value"]
    assert after["perplexity"]["tokens"] == before["perplexity"]["tokens"]
