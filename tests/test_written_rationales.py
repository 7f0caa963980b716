"""Analyses that a model writes: what is asked, what counts, what is kept, and runs that learn from them."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_server import ChatServer, completion, refusal, transformers_serve
from composing import config_of, run_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from nlu_ppo.config import Config
from nlu_ppo.errors import ConfigError, DataError, EndpointError, UserError
from nlu_ppo.identity import reward_model_config, run_key, start_config
from nlu_ppo.rationales.__main__ import main
from nlu_ppo.rationales.asking import EMPTY, ENDLESS, OTHER, UNREADABLE, AskingPrompter, read_analysis
from nlu_ppo.rationales.needs import needs
from nlu_ppo.rationales.writing import folder_of, rationales_of
from nlu_ppo.replies import ReplyCache
from nlu_ppo.run import build_run, execute, provide_analyses
from nlu_ppo.tasks import get_task
from nlu_ppo.tasks.rationales import load_rationales
from nlu_ppo.tasks.splits import load_tasks

needs_openai = pytest.mark.skipif(
    importlib.util.find_spec("openai") is None,
    reason="the package openai is missing: pip install -e '.[api]' brings it",
)
NLI, RTE = get_task("toy_nli"), get_task("rte")
SMALL = ("task=toy_nli", "task.limit.train=12", "task.limit.eval=4", "task.selection=0", "tracking=none",
         "eval.bootstrap_samples=10", "eval.likelihood=false", "method.max_steps=1")  # fmt: skip
SERVED = ("task.rationale=endpoint", "task.writer.model=m")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


# -- what counts as an analysis ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ended", "wanted"),
    [
        ("<Analysis>it\n  rains</Analysis>", True, "it rains"),
        ("it rains</Analysis> and so on", False, "it rains"),
        ("it rains", True, "it rains"),
        ("Sure! <Analysis>it rains", True, "it rains"),
        ("<Judgement>Entailment</Judgement><Analysis>it rains</Analysis>", True, "it rains"),
        ("it rains and", False, ENDLESS),
        ("<Analysis> ... </Analysis>", True, EMPTY),
        ("", True, EMPTY),
        ("<Judgement>Neutral</Judgement><Analysis>it rains</Analysis>", True, OTHER),
        ("so the line is neutral", True, OTHER),
        ("it rains <Judgement>", True, UNREADABLE),
    ],
)
def test_what_comes_back_is_read(text: str, ended: bool, wanted: str):
    analysis, reason = read_analysis(NLI, NLI.verbalizers.index("Entailment"), text, ended)
    assert wanted == (reason if analysis is None else analysis)


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("there is no rain in it", True),
        ("No rain falls", True),
        ("No, it rains", False),
        ("No", False),
        ("it rains, so the answer is: No", False),
        ('one would say "no" here', False),
        ("yes, as it rains", True),
    ],
)
def test_words_of_everyday_use_name_an_answer_only_where_they_are_said_as_one(text: str, fine: bool):
    analysis, _ = read_analysis(RTE, RTE.verbalizers.index("Yes"), text, True)
    assert (analysis == text) == fine


# -- what a run needs ----------------------------------------------------------------------------------------


def wanted(config: Config) -> list[tuple[str, str, int]]:
    return [(n.split, n.example.id, n.label) for data in load_tasks(config.task) for n in needs(config, data)]


def test_runs_need_the_analyses_that_they_learn_from():
    small = (*SMALL, *SERVED, "task.writer.base_url=http://localhost:1/v1")
    config = config_of("method=ppo", "method.init=sft", "reward=mixed", *small)
    (data,) = load_tasks(config.task)
    train, (held_out,) = data.train, data.evaluation.values()
    assert wanted(config) == []
    start = start_config(config)
    assert start is not None
    assert wanted(start) == [("train", e.id, e.label) for e in train]
    labels = wanted(reward_model_config(config, "label_model"))
    assert {x for x in labels if x[0] == "train"} == {("train", e.id, n) for e in train for n in range(3)}
    assert len(labels) == 3 * (len(train) + len(held_out))
    analyses = wanted(reward_model_config(config, "rationale_model"))
    assert [x[1:] for x in analyses] == [(e.id, e.label) for e in (*train, *held_out)]
    drawn = config_of("method=ppo", "reward=label_sensitive", "reward.label_model.wrong_labels=one", *small)
    one = wanted(reward_model_config(drawn, "label_model"))
    assert len(one) == 2 * (len(train) + len(held_out))


# -- keys ----------------------------------------------------------------------------------------------------


def test_keys_go_by_writer_and_wording_not_by_server_or_cache(tmp_path: Path, model_dir: Path):
    def key(*overrides: str) -> str:
        return run_key(config_of("method=sft", "task=toy_nli", *overrides))

    plain = key(*SERVED)
    unseen = (
        "base_url=http://localhost:9/v1",
        "at_once=1",
        "timeout=3",
        "retries=0",
        "price_in=1",
        "max_cost=7",
    )
    assert {key(*SERVED, f"task.writer.{o}") for o in unseen} == {plain}
    assert key(*SERVED, f"outputs={tmp_path}") == plain
    seen = ("model=n", "temperature=0.5", "max_tokens=9", "seed=1", "attempts=1")
    keys = {key(*SERVED, f"task.writer.{o}") for o in seen}
    assert len(keys | {plain, key("task.rationale=model"), key("task.rationale=generated"), key()}) == 9
    assert key("task.rationale=generated", "task.writer.seed=4") == key("task.rationale=generated")
    assert key("task.writer.model=x") == key()
    # of a base model its weights count, and not the endpoint's name
    assert key("task.rationale=model", "task.writer.model=x") == key("task.rationale=model")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.rationale=endpoint"], r"needs task.writer.model"),
        ([*SERVED, "task.writer.base_url=http://me:pw@host/v1"], "holds a name or a password"),
        (["task.rationale=model", "task=stsb"], "needs a task with labels"),
        (["task.rationale=model", "model=bert_base"], "is an encoder"),
    ],
)
def test_settings_without_sense_are_told_before_anything_is_asked(overrides: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        build_run(config_of("method=sft", *overrides), Path("unused"))


# -- by an endpoint ------------------------------------------------------------------------------------------


def asked_for(body: dict[str, Any]) -> tuple[str, str]:
    """The text and the answer that a question is about."""
    prompt = body["messages"][0]["content"]
    found = re.search(r"\n\n(.*)\nAnswer: (.*)\n", prompt, re.DOTALL)
    assert found is not None
    return found[1], found[2]


def defend(body: dict[str, Any], _: int):
    text, answer = asked_for(body)
    return completion(f"<Analysis>defence {len(text)} of {answer}</Analysis>")


@needs_openai
def test_a_reward_model_learns_from_pairs_that_a_server_wrote(
    tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
):
    chosen = (
        *SMALL,
        *SERVED,
        "method=reward_model",
        "method.batch_size=4",
        "model=local",
        f"model.path={model_dir}",
    )

    def moody(body: dict[str, Any], number: int):
        """Half of what is said at first is no analysis; what is asked again is."""
        if body["seed"] == 0:
            odd = {
                0: completion(""),
                2: completion("and so on and", "length"),
                4: completion("Neutral. Contradiction."),
            }
            if number % 6 in odd:
                return odd[number % 6]
        return defend(body, number)

    with ChatServer(moody) as server:
        address = f"task.writer.base_url={server.url}"
        run = run_of(tmp_path / "one", *chosen, address)
        result = execute(run)
        told = capsys.readouterr().out
        assert f"analyses to be written by m at {server.url}: 48 requests, about" in told
        assert "48 of 48 are there" in told
        assert (result["status"], result["train_pairs"], result["n"]) == ("finished", 24, 8)
        lines = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
        for line in lines:
            for which in ("chosen", "rejected"):
                word, _, analysis = line[which].partition("</Judgement>")
                assert re.fullmatch(rf"<Analysis>defence \d+ of {word}</Analysis>", analysis)
        assert len(server.bodies) == 48 + 24
        # nothing is asked twice: not by the same run anew, and not by another one on the same examples
        provide_analyses(run_of(tmp_path / "two", *chosen, address, "seed=1", "study=other").config)
        assert len(server.bodies) == 72
        assert "analyses" not in capsys.readouterr().out

    # what is kept is a file in paper B's format, which says the same without a server
    file = folder_of(run.config) / "toy_nli.json"
    written, read = rationales_of(run.config, NLI), load_rationales(NLI, str(file))
    assert written is not None
    (data,) = load_tasks(run.config.task)
    pairs = [(e, label) for e in data.train for label in range(3)]
    assert [written(*pair) for pair in pairs] == [read(*pair) for pair in pairs]
    assert len(json.loads(file.read_text())) == 48


@needs_openai
def test_an_interrupted_job_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = [*SMALL, *SERVED, "method=sft", f"outputs={tmp_path}", "task.writer.at_once=1"]

    def fails(body: dict[str, Any], number: int):
        return defend(body, number) if number < 5 else refusal(403, "enough")

    with ChatServer(fails) as server:
        words.append(f"task.writer.base_url={server.url}")
        assert main(["--dry-run", *words]) == 0
        assert "12 requests" in capsys.readouterr().out
        assert main([*words, "task.writer.price_in=1e5", "task.writer.max_cost=1"]) == 2
        assert "nothing was sent" in capsys.readouterr().err
        assert server.bodies == []
        assert main(words) == 2
        assert "refuses a request" in capsys.readouterr().err
        assert len(server.bodies) == 6
        server.behave = defend
        assert main(words) == 0
        said = capsys.readouterr()
        assert "7 requests" in said.out
        assert len(server.bodies) == 6 + 7
        assert main(words) == 0
        assert len(server.bodies) == 13
        assert main([*SMALL, "method=zero_shot", *SERVED]) == 0
        assert "learns from no analysis" in capsys.readouterr().out


@needs_openai
def test_what_never_comes_is_counted_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def stubborn(body: dict[str, Any], number: int):
        return completion("") if asked_for(body)[1] == "Neutral" else defend(body, number)

    with ChatServer(stubborn) as server:
        words = ["method=sft", *SMALL, *SERVED, f"task.writer.base_url={server.url}", f"outputs={tmp_path}"]
        config = config_of(*words)
        (data,) = load_tasks(config.task)
        neutral = [e.id for e in data.train if NLI.verbalize(e.label) == "Neutral"]
        assert 0 < len(neutral) < 12
        with pytest.raises(
            DataError, match=rf"^{len(neutral)} of 12 analyses are lacking, .* \(empty\).*skip"
        ):
            provide_analyses(config)
        assert len(server.bodies) == 12 + 2 * len(neutral)  # three attempts each, and no more
        assert f"3 attempts: {len(neutral)} ({len(neutral)} empty)" in capsys.readouterr().out
        with pytest.raises(DataError, match="are lacking"):
            provide_analyses(config)
        assert len(server.bodies) == 12 + 2 * len(neutral)
        # a server in trouble is another thing than an answer that is none: it ends the job, whatever is skipped
        server.behave = lambda *_: refusal(500)
        with pytest.raises(
            EndpointError, match=r"requests without a reply: \d times status 500 after 1 attempts"
        ):
            provide_analyses(config_of(*words, "task.writer.attempts=4", "task.writer.retries=0",
                                       "task.on_bad_row=skip", "task.writer.at_once=2"))  # fmt: skip


@needs_openai
def test_of_runs_that_need_the_same_at_the_same_time_one_pays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    both = threading.Event()

    def slow(body: dict[str, Any], number: int):
        assert both.wait(20)  # nobody gets an answer before the other run waits for it
        return defend(body, number)

    with ChatServer(slow) as server, ThreadPoolExecutor(2) as pool:
        words = ["method=sft", *SMALL, *SERVED, f"task.writer.base_url={server.url}", f"outputs={tmp_path}"]
        configs = [config_of(*words, f"seed={seed}") for seed in (0, 1)]
        runs = [pool.submit(provide_analyses, config) for config in configs]
        told = ""
        while "waiting for another process" not in told:
            told += capsys.readouterr().out
            assert not any(run.done() for run in runs)
            time.sleep(0.02)
        both.set()
        assert len({run.result() for run in runs}) == 1
        assert len(server.bodies) == 12


@needs_openai
def test_a_real_server_writes(tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]):
    """`transformers serve` of a random model: most of what it says is nothing, and all of it is accounted for."""
    folder = tmp_path / "served"
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    model.generation_config.do_sample = True
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    with transformers_serve(folder, tmp_path / "log") as address:
        words = ["method=sft", *SMALL, "task.rationale=endpoint", f"task.writer.model={folder}",
                 f"task.writer.base_url={address}", f"outputs={tmp_path}", "task.writer.max_tokens=24",
                 "task.writer.attempts=2"]  # fmt: skip
        config = config_of(*words)
        with pytest.raises(DataError, match="of 12 analyses are lacking"):
            provide_analyses(config)
    told = capsys.readouterr().out
    there = int(re.search(r"analyses: (\d+) of 12 are there", told)[1])  # type: ignore[index]
    lacking = int(re.search(r"without one after 2 attempts: (\d+) ", told)[1])  # type: ignore[index]
    assert there + lacking == 12
    replies = [
        json.loads(line)["reply"] for line in (folder_of(config) / "replies.jsonl").read_text().splitlines()
    ]
    assert 12 + lacking <= len(replies) <= 24
    assert all(1 <= reply["tokens_out"] <= 24 and reply["tokens_in"] > 100 for reply in replies)
    assert all(reply["tokens_out"] == 24 for reply in replies if not reply["ended"])


# -- by the run's own base model -----------------------------------------------------------------------------


def test_the_base_model_writes_what_transformers_own_decoding_writes(tmp_path: Path, model_dir: Path):
    config = config_of("method=sft", *SMALL, "task.rationale=model", "model=local", f"model.path={model_dir}",
                       f"outputs={tmp_path}", "task.writer.temperature=0", "task.writer.max_tokens=9",
                       "task.limit.train=3")  # fmt: skip
    with pytest.raises(UserError, match="of 3 analyses are lacking"):
        provide_analyses(config)
    rows = [json.loads(line) for line in (folder_of(config) / "replies.jsonl").read_text().splitlines()]
    assert len(rows) == 3  # a greedy model is asked once
    tokenizer, model = (
        AutoTokenizer.from_pretrained(model_dir),
        AutoModelForCausalLM.from_pretrained(model_dir),
    )
    prompter = AskingPrompter(NLI, tokenizer)
    texts = set()
    for example in load_tasks(config.task)[0].train:
        prompter.label = int(example.label)  # type: ignore[arg-type]
        prompt = prompter.render(example)
        assert prompt.endswith(f"\nAnswer: {NLI.verbalize(example.label)}\nWrite nothing but the defence, as "
                               f"<Analysis>defence</Analysis>.\n<Analysis>")  # fmt: skip
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False
            )
        texts.add(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    assert {row["reply"]["text"] for row in rows} == texts


def test_sft_learns_what_the_base_model_wrote_and_leaves_out_what_it_did_not(tmp_path: Path, model_dir: Path):
    words = (*SMALL, "method=sft", "task.rationale=model", "model=local", f"model.path={model_dir}",
             "task.on_bad_row=skip", "task.limit.train=40", "task.writer.attempts=2")  # fmt: skip
    run = run_of(tmp_path / "one", *words)
    result = execute(run)
    file = folder_of(run.config) / "toy_nli.json"
    written = json.loads(file.read_text())
    assert 0 < len(written) < 40
    assert result["skipped_rows"] == {"train": 40 - len(written), "validation": 0}
    replies = (folder_of(run.config) / "replies.jsonl").read_bytes()
    provide_analyses(run_of(tmp_path / "two", *words, "seed=1").config)
    assert (folder_of(run.config) / "replies.jsonl").read_bytes() == replies
    # written anew elsewhere, they are the same
    elsewhere = run_of(tmp_path / "else" / "one", *words)
    provide_analyses(elsewhere.config)
    assert (folder_of(elsewhere.config) / "replies.jsonl").read_bytes() == replies


def test_what_is_being_written_just_now_is_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "replies.jsonl"
    path.write_text('{"key": "a", "reply": {"text": "x", "ended": true}}\n{"key": "b", "rep')
    assert ReplyCache(path).get("a") is not None
    assert caplog.text == ""
    path.write_text('nonsense\n{"key": "a", "reply": {"text": "x", "ended": true}}\n')
    assert ReplyCache(path).get("a") is not None
    assert "1 lines can't be read" in caplog.text


def test_composing_such_a_run_needs_neither_torch_nor_openai():
    code = (
        "import sys; from composing import run_of; from pathlib import Path\n"
        "run_of(Path('a'), 'method=ppo', 'method.init=sft', 'reward=mixed', 'task.rationale=endpoint',"
        " 'task.writer.model=m')\nassert not {'torch', 'openai'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
