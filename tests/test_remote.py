"""Models behind a server as rows of a table: what they are asked, how replies count, what is kept and what it costs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, ChatServer, completion, refusal, transformers_serve
from composing import config_of, run_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from nlu_ppo.config import Config
from nlu_ppo.errors import ConfigError, EndpointError
from nlu_ppo.identity import run_key
from nlu_ppo.messages import MessagePrompter, completion_in
from nlu_ppo.models.locate import TINY
from nlu_ppo.prompting import Prompter
from nlu_ppo.run import build_run, execute
from nlu_ppo.tables import build_table, collect
from nlu_ppo.tables.sections import sections
from nlu_ppo.tasks import get_task
from nlu_ppo.tasks.answers import parse_answer
from nlu_ppo.tasks.splits import load_tasks

pytest.importorskip("openai", reason="the package openai is missing: pip install -e '.[api]' brings it")

SECRET = "sk-of-nobody-27182818"
SENTIMENT = get_task("toy_sentiment")
SERVED = ("model=openai_compatible", "model.name=m")
SMALL = (*SERVED, "task=toy_sentiment", "task.limit.eval=12", "tracking=none", "eval.bootstrap_samples=10")
ZERO, FEW = "method=zero_shot", "method=few_shot"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def at(server: ChatServer) -> str:
    return f"model.endpoint.base_url={server.url}"


# -- prompts and replies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("<Judgement>Positive</Judgement>", "Positive"),
        ("Positive</Judgement>", "Positive"),
        ("Positive", "Positive"),
        (" **positive**.\n", "Positive"),
        ("<Judgement>positive", "Positive"),
        ("The answer is <Judgement>Positive</Judgement>, since it praises.", "Positive"),
        ("<think>\n<Judgement>Negative</Judgement>? no</think>\n<Judgement>Positive</Judgement>", "Positive"),
        ("<Judgement>Positive</Judgement><Judgement>Negative</Judgement>", "Positive"),
        ("Positive</Judgement>\n\nReview: bad\n<Judgement>Negative</Judgement>", "Positive"),
        ("The answer is Positive</Judgement>", None),
        ("The answer is Positive", None),
        ("<Judgement>Positive or Negative</Judgement>", None),
        ("<think>Positive", None),
        ("<judgement>Positive</judgement>", None),
        ("", None),
    ],
)
def test_replies_are_read_by_the_rule_for_all_answers(reply: str, answer: str | None):
    label = parse_answer(SENTIMENT, completion_in(reply))
    assert label == (None if answer is None else SENTIMENT.verbalizers.index(answer))


@pytest.mark.parametrize("analysis", [0, 40])
def test_the_text_is_that_of_local_models(analysis: int):
    (data,) = load_tasks(config_of("task=toy_sentiment").task)
    example, shown = data.train[5], data.train[:3]
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"
    )
    for demonstrations in ((), shown):
        local = Prompter(SENTIMENT, tokenizer, "chat", demonstrations, analysis_tokens=analysis)
        ours = MessagePrompter(SENTIMENT, "chat", analysis_tokens=analysis).with_demonstrations(
            demonstrations
        )
        turns = (*ours.before, ("user", ours.turn(example)), ("assistant", "<Judgement>"))
        assert "".join(f"[{role}]{text}" for role, text in turns) == local.render(example)
        local = Prompter(SENTIMENT, tokenizer, "plain", demonstrations, analysis_tokens=analysis)
        ours = MessagePrompter(SENTIMENT, "plain", analysis_tokens=analysis).with_demonstrations(
            demonstrations
        )
        assert (ours.before, ours.turn(example)) == ((), local.render(example))


# -- configuration -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "method=ppo needs a model's weights, .* use method=zero_shot or method=few_shot"),
        (["method=sft"], "method=sft needs a model's weights"),
        (["method=reward_model"], "method=reward_model needs a model's weights"),
        ([ZERO, "model.adapter=some/folder"], "model.adapter needs a model's weights"),
        ([ZERO, "eval=wikitext"], "eval.perplexity needs a model's weights"),
        ([ZERO, "task=toy_nli", "task.rationale=model"], "asks the run's own base model, .* behind a server"),
        ([ZERO, "model.name=meta/llama"], "model.name=llama model.endpoint.model=meta/llama"),
        ([ZERO, "model.endpoint.base_url=http://me:pw@host/v1"], "holds a name or a password"),
        ([ZERO, "model.endpoint.base_url=localhost:8000"], "an address such as"),
        (
            ["model=tiny", "reward=label_sensitive", "+model@reward.model=openai_compatible", "reward.model.name=m"],
            "reward.model=m is behind a server",
        ),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_told_before_anything_is_asked(overrides: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        build_run(config_of(*SERVED, *overrides), Path("unused"))


def test_the_name_of_a_model_is_wanted():
    with pytest.raises(ConfigError, match=r"no value given for model\.name"):
        config_of("model=openai_compatible", ZERO)


def test_keys_go_by_the_model_and_not_by_the_server():
    def key(*overrides: str) -> str:
        return run_key(config_of(*SERVED, ZERO, *overrides))

    plain = key()
    unseen = (
        *(
            "base_url=http://localhost:9/v1",
            "at_once=1",
            "timeout=3",
            "retries=0",
            "price_in=1",
            "price_out=1",
        ),
        *("max_cost=7", "model=m"),
    )
    assert {key(f"model.endpoint.{o}") for o in unseen} == {plain}
    assert key("model.name=mine", "model.endpoint.model=m") == plain
    assert {key(o) for o in ("eval.likelihood=false", "model.dtype=float16", "eval.temperature=2")} == {plain}
    seen = (
        "model.name=n",
        "model.layout=plain",
        "model.endpoint.at_once=1",
        "eval.decoding=sample",
        "eval.max_new_tokens=9",
        "seed=1",
        FEW,
    )
    assert len({plain, *(key(o) for o in seen)}) == 7
    assert run_key(config_of(ZERO)) == run_key(config_of(ZERO, "model.endpoint.model=x"))


# -- runs ----------------------------------------------------------------------------------------------------


def golds(config: Config) -> dict[str, str]:
    """What is asked to the right answer."""
    (data,) = load_tasks(config.task)
    asker = MessagePrompter(data.task)
    rows = [e for examples in data.evaluation.values() for e in examples]
    return {asker.turn(e): data.task.verbalize(e.label) for e in rows}  # type: ignore[arg-type]


def knowing(config: Config, wrong: int = 0) -> Any:
    """A server that knows the answers, but for the first few of the examples, to which it says what is none."""
    answers = golds(config)
    missed = list(answers)[:wrong]

    def behave(body: dict[str, Any], _: int) -> Answer:
        query = body["messages"][-1]["content"]
        return completion("I see" if query in missed else f"<Judgement>{answers[query]}</Judgement>")

    return behave


def test_a_row_of_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs = [("zero_shot", 0), ("zero_shot", 1), ("few_shot", 0)]
    with ChatServer(knowing(config_of(*SMALL, ZERO), wrong=3)) as server:
        prices = ("model.endpoint.price_in=10", "model.endpoint.price_out=100")
        words = (*SMALL, at(server), *prices, "study=s", f"outputs={tmp_path}")
        results = [
            execute(
                run_of(tmp_path / f"s/toy_sentiment/m/{m}/{seed}-0", *words, f"method={m}", f"seed={seed}")
            )
            for m, seed in runs
        ]
        told = capsys.readouterr().out
        assert f"m at {server.url}: 12 requests, about" in told
        assert "m: nothing to ask; 12 answers are kept from before" in told
        assert len(server.bodies) == 24  # both seeds share what is greedy
        bodies = server.bodies
        first = bodies[0]
        assert (first["temperature"], first["seed"], first["max_tokens"]) == (0, 0, 32)
        assert [turn["role"] for turn in first["messages"]] == ["system", "user"]
        shown = bodies[-1]["messages"]
        assert [turn["role"] for turn in shown] == ["system", *["user", "assistant"] * 5, "user"]
        assert all(re.fullmatch(r"<Judgement>\w+</Judgement>", turn["content"]) for turn in shown[2::2])
    for result in results:
        assert (result["score"], result["unparsable"], result["n"]) == (75.0, 3, 12)
        assert (result["likelihood_score"], result["lora"], result["reward"]) == (None, None, None)
        told_ = result["endpoint"]
        assert (told_["replies"], told_["unfinished"], told_["tokens_in"], told_["tokens_out"]) == (
            12,
            0,
            1200,
            120,
        )
        assert told_["dollars"] == pytest.approx((1200 * 10 + 120 * 100) / 1e6)
    assert [r["endpoint"]["asked"] for r in results] == [12, 0, 12]
    assert [r["endpoint"]["dollars_now"] for r in results] == pytest.approx([0.024, 0, 0.024])
    scores = next(s for s in sections(build_table(collect(tmp_path, "s"))) if s.title == "Scores")
    headers = [header for header, _ in scores.columns]
    rows = [dict(zip(headers, row, strict=True)) for row in scores.rows]
    (zero,) = [row for row in rows if row["method"] == "zero_shot"]
    assert (zero["by likelihood"], zero["seeds"]) == ("-", "n=2")
    assert zero["score"].startswith("75.0")


def test_samples_differ_by_seed(tmp_path: Path):
    with ChatServer(knowing(config_of(*SMALL, ZERO))) as server:
        words = (*SMALL, ZERO, at(server), "eval.decoding=sample", "eval.temperature=0.7")
        for seed in (3, 4):
            execute(run_of(tmp_path / f"{seed}", *words, f"seed={seed}"))
        sent = {(body["temperature"], body["seed"]) for body in server.bodies}
        assert sent == {(0.7, 3), (0.7, 4)}
        assert len(server.bodies) == 24


def test_all_sets_are_priced_first_and_the_files_for_the_benchmark_written(
    tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]
):
    data = shared / "data"
    words = (*SERVED, ZERO, "task=wnli", "task.source=raw", f"task.data_dir={data}", "task.limit.eval=4",
             "eval=submission", "eval.also=[rte]", "eval.source=raw", f"eval.data_dir={data}", "eval.limit=3",
             "tracking=none", "eval.bootstrap_samples=10")  # fmt: skip
    with ChatServer(lambda *_: completion("no idea", "length", sent=0, received=0)) as server:
        dear = ("model.endpoint.price_in=1e5", "model.endpoint.price_out=0")
        with pytest.raises(
            ConfigError, match=r"^11 requests, .*more than model.endpoint.max_cost=1: nothing was sent"
        ):
            execute(run_of(tmp_path / "dear", *words, at(server), *dear))
        assert server.bodies == []
        run = run_of(tmp_path / "run", *words, at(server))
        result = execute(run)
        assert len(server.bodies) == 11
    told = capsys.readouterr().out
    assert "wnli: 4 of 4 replies are unfinished: cut at 32 tokens" in told
    assert (
        result["metrics"]["submission/WNLI.tsv/rows"]
        == result["metrics"]["submission/WNLI.tsv/unparsable"]
        == 4
    )
    assert len((run.folder / "submission" / "WNLI.tsv").read_text().splitlines()) == 1 + 4
    assert result["metrics"]["rte/n"] == 3
    # a server that doesn't count tells no cost
    assert (result["endpoint"]["tokens_in"], result["endpoint"]["dollars"]) == (None, None)
    assert result["endpoint"]["unfinished"] == 11


# -- what fails ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (
            refusal(400, "maximum context length is 128 tokens"),
            r"refuses a request for m, example {name} of toy_sentiment \(400\): .*128 tokens.*can't be cut",
        ),
        (refusal(503), r"1 of 12 requests have no reply, first that for example {name} of .*status 503"),
        ((200, {}, b"<html>"), r"1 of 12 requests have no reply, first that for example {name} of .*no "),
    ],
)
def test_what_has_no_reply_ends_the_run_and_is_never_scored(tmp_path: Path, failure: Answer, message: str):
    config = config_of(*SMALL, ZERO)
    (data,) = load_tasks(config.task)
    (examples,) = data.evaluation.values()
    odd = MessagePrompter(data.task).turn(examples[6])
    well = knowing(config)

    def behave(body: dict[str, Any], number: int) -> Answer:
        return failure if body["messages"][-1]["content"] == odd else well(body, number)

    with ChatServer(behave) as server:
        words = (*SMALL, ZERO, at(server), "model.endpoint.retries=0", "model.endpoint.at_once=1")
        run = run_of(tmp_path / "run", *words)
        with pytest.raises(EndpointError, match=message.format(name=re.escape(examples[6].id))):
            execute(run)
        assert json.loads((run.folder / "result.json").read_text())["status"] == "failed"
        server.behave = well
        assert execute(run)["score"] == 100.0
        asked = Counter(body["messages"][-1]["content"] for body in server.bodies)
        assert asked == Counter(golds(config).keys()) + Counter([odd])


@pytest.mark.promise(
    "a run that asks an API, killed with -9",
    "what was answered is not asked and paid for again",
)
@pytest.mark.promise(
    "keys, tokens and passwords of the user", "a key that a server echoes in an error stands nowhere"
)
def test_a_killed_run_asks_nothing_twice_and_the_key_is_nowhere(outputs: Path):
    """With MLflow, and a server that echoes the key in an error. Killed while two requests are under way."""
    words = [
        *(w for w in SMALL if w != "tracking=none"),
        ZERO,
        "model.endpoint.at_once=2",
        "task.limit.eval=30",
    ]
    well, hold = knowing(config_of(*words)), threading.Event()

    def behave(body: dict[str, Any], number: int) -> Answer:
        if number >= 10:
            hold.wait(60)
        return well(body, number)

    with ChatServer(behave) as server:
        words.append(at(server))
        code = f"from composing import run_of; from nlu_ppo.run import execute; from pathlib import Path\nexecute(run_of(Path({str(outputs / 'run')!r}), *{words!r}))"  # noqa: E501
        child = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent)
        while len(server.bodies) < 12:
            assert child.poll() is None
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        hold.set()
        underway = Counter(body["messages"][-1]["content"] for body in server.bodies[10:])
        run = run_of(outputs / "run", *words)
        server.behave = lambda *_: refusal(401, f"your key is {SECRET}")
        with pytest.raises(EndpointError, match=r"your key is \*\*\*"):
            execute(run)
        refused = len(server.bodies)
        server.behave = well
        result = execute(run)
        assert (result["score"], result["n"], result["endpoint"]["replies"]) == (100.0, 30, 30)
        bodies = server.bodies[:12] + server.bodies[refused:]
        asked = Counter(body["messages"][-1]["content"] for body in bodies)
        assert asked == Counter(golds(run.config).keys()) + underway
        assert server.keys == [f"Bearer {SECRET}"] * len(server.keys)
    files = [path for path in outputs.rglob("*") if path.is_file()]
    assert {"mlflow.db", "result.json", "config.yaml"} <= {path.name for path in files}
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert (outputs / "mlflow.db").read_bytes().count(b"zero_shot") > 0


@pytest.mark.thorough
def test_a_real_server_gives_the_answers_that_the_same_model_gives_here(tmp_path: Path):
    """`transformers serve` of the shipped model, with a chat template that adds nothing to the plain prompt."""
    folder = tmp_path / "served"
    tokenizer, model = AutoTokenizer.from_pretrained(TINY), AutoModelForCausalLM.from_pretrained(TINY)
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    words = ("task=toy_sentiment", "task.limit.eval=20", "tracking=none", FEW, "eval.likelihood=false",
             "eval.bootstrap_samples=10")  # fmt: skip
    here = run_of(tmp_path / "here", *words, "model=tiny")
    execute(here)
    with transformers_serve(folder, tmp_path / "log") as address:
        there = run_of(tmp_path / "there", *words, *SERVED, f"model.endpoint.model={folder}", "model.layout=plain",
                       f"model.endpoint.base_url={address}")  # fmt: skip
        result = execute(there)
    assert result["endpoint"]["tokens_out"] > 40
    lines = [
        [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
        for run in (here, there)
    ]
    found = [[(x["id"], x["label"], x["completion"].partition("</")[0]) for x in run] for run in lines]
    assert found[0] == found[1]
    assert len({answer for _, _, answer in found[0]}) > 2
