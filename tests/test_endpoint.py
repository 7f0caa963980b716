"""The client for OpenAI-compatible servers, against a server that fails as real ones do."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, completion, refusal

from nlu_ppo.config import EndpointConfig
from nlu_ppo.endpoint import Endpoint, Request, check_address, on_this_machine
from nlu_ppo.errors import ConfigError, EndpointError
from nlu_ppo.replies import Reply, ReplyCache, request_key

pytest.importorskip("openai", reason="the package openai is missing: pip install -e '.[api]' brings it")

SECRET = "sk-of-nobody-31415926"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def asking(count: int) -> list[Request]:
    return [Request(f"question {i}", 20) for i in range(count)]


def endpoint(path: Path, server: ChatServer, **settings: Any) -> Endpoint:
    config = EndpointConfig(model="m", base_url=server.url, timeout=5.0, **settings)
    return Endpoint(config, ReplyCache(path / "replies.jsonl"), "task.writer")


def echo(body: dict[str, Any], _: int):
    return completion(f"to {body['messages'][0]['content']}")


def test_each_request_is_sent_once_and_never_more_at_a_time_than_allowed(tmp_path: Path):
    together = threading.Barrier(3)

    def behave(body: dict[str, Any], number: int):
        together.wait(20)  # nobody gets an answer before three are under way
        return echo(body, number)

    with ChatServer(behave) as server:
        found = endpoint(tmp_path, server, at_once=3).ask(asking(9))
        assert found == [Reply(f"to question {i}", True, 100, 10) for i in range(9)]
        assert server.busiest == 3
        assert set(server.keys) == {f"Bearer {SECRET}"}
        sent = server.bodies[0]
        assert (sent["model"], sent["temperature"], sent["max_tokens"], sent["seed"]) == ("m", 1.0, 20, 0)
        # another process finds all of them, but for one whose line a kill has torn
        file = tmp_path / "replies.jsonl"
        file.write_bytes(file.read_bytes()[:-30])
        server.behave = echo
        again = endpoint(tmp_path, server)
        assert again.estimate(asking(9)).requests == 1
        assert again.ask(asking(9)) == found
        assert len(server.bodies) == 10
        assert endpoint(tmp_path, server).estimate(asking(9)).requests == 0  # the torn line hurts no other
        # another seed, temperature or model asks for something else
        assert endpoint(tmp_path, server).estimate([Request("question 0", 20, seed=1)]).requests == 1
        assert endpoint(tmp_path, server, temperature=0.5).estimate(asking(1)).requests == 1
    assert SECRET not in file.read_text()


def test_busy_and_broken_servers_are_asked_again(tmp_path: Path):
    failures = [refusal(429), refusal(500), refusal(503)]

    def behave(body: dict[str, Any], number: int):
        return failures[number] if number < 3 else echo(body, number)

    with ChatServer(behave) as server:
        assert endpoint(tmp_path, server, retries=3).ask(asking(1)) == [Reply("to question 0", True, 100, 10)]
        assert len(server.bodies) == 4


def test_what_fails_for_good_is_told_and_not_kept(tmp_path: Path):
    hanging = threading.Event()

    def behave(body: dict[str, Any], number: int):
        question = body["messages"][0]["content"]
        if question == "question 0":
            return refusal(429)
        if question == "question 1":
            hanging.wait(20)
        if question == "question 2":
            return 200, {}, b'{"choices": [{"mess'
        if question == "question 3":
            return 200, {}, b'{"choices": []}'
        if question == "question 4":
            return 200, {"content-type": "text/html"}, b"<html>welcome</html>"
        return completion("cut", "length") if question == "question 5" else echo(body, number)

    with ChatServer(behave) as server:
        client = endpoint(tmp_path, server, retries=1)
        client._client = client._client.with_options(timeout=0.2)
        found = client.ask(asking(7))
        hanging.set()
        assert found[0] == "status 429 after 2 attempts"
        assert str(found[1]).startswith("silence for")
        assert all(isinstance(what, str) and "what came back is no" in what for what in found[2:5])
        assert found[5:] == [Reply("cut", False, 100, 10), Reply("to question 6", True, 100, 10)]
        server.behave = echo
        assert endpoint(tmp_path, server).estimate(asking(7)).requests == 5
        assert all(isinstance(reply, Reply) for reply in endpoint(tmp_path, server).ask(asking(7)))


def test_a_server_that_refuses_ends_the_job_and_the_key_is_hidden(tmp_path: Path):
    def behave(body: dict[str, Any], number: int):
        return echo(body, number) if number < 2 else refusal(401, f"wrong key {SECRET}")

    with ChatServer(behave) as server:
        with pytest.raises(
            EndpointError, match=r"refuses a request for m \(401\): .*wrong key \*\*\*"
        ) as caught:
            endpoint(tmp_path, server, at_once=1).ask(asking(5))
        assert SECRET not in str(caught.value)
        assert len(server.bodies) == 3
        assert endpoint(tmp_path, server).estimate(asking(5)).requests == 3  # two were kept


def test_a_server_that_is_gone_ends_the_job(tmp_path: Path):
    with ChatServer(lambda *_: refusal(500)) as server:
        with pytest.raises(EndpointError, match="10 requests in a row failed, the last one with: status 500"):
            endpoint(tmp_path, server, retries=0, at_once=1).ask(asking(30))
        assert len(server.bodies) == 10


def test_newer_models_have_another_name_for_the_limit(tmp_path: Path):
    def behave(body: dict[str, Any], number: int):
        if "max_tokens" in body:
            return refusal(400, "'max_tokens' is not supported: use 'max_completion_tokens'")
        return completion(str(body["max_completion_tokens"]))

    with ChatServer(behave) as server:
        found = endpoint(tmp_path, server, at_once=1).ask(asking(3))
        assert [reply.text for reply in found if isinstance(reply, Reply)] == ["20"] * 3
        assert len(server.bodies) == 4


@pytest.mark.parametrize("status", [400, 422])
def test_servers_without_seeds_are_asked_without(tmp_path: Path, status: int):
    def behave(body: dict[str, Any], number: int):
        return refusal(status, "extra field: seed") if "seed" in body else echo(body, number)

    with ChatServer(behave) as server:
        found = endpoint(tmp_path, server, at_once=1).ask(asking(3))
        assert [reply.text for reply in found if isinstance(reply, Reply)] == [
            f"to question {i}" for i in range(3)
        ]
        assert len(server.bodies) == 4


def test_the_same_question_is_sent_once_and_turns_in_front_make_another(tmp_path: Path):
    first = Request("question", 20)
    others = [Request("question", 20, before=(("system", text),), about=text) for text in ("a", "b", "a")]
    with ChatServer(echo) as server:
        found = endpoint(tmp_path, server, at_once=1).ask([first, *others, first])
        texts = [reply.text for reply in found if isinstance(reply, Reply)]
        assert texts == ["to question", "to a", "to b", "to a", "to question"]
        assert [body["messages"] for body in server.bodies] == [
            [{"role": "user", "content": "question"}] if text is None
            else [{"role": "system", "content": text}, {"role": "user", "content": "question"}]
            for text in (None, "a", "b")
        ]  # fmt: skip
        # what is said in front costs as well: 8 bytes and 1 are 2 and 0 tokens, and 16 for each turn
        assert endpoint(tmp_path / "b", server).estimate(others).tokens_in == 2 * (2 + 16 + 0 + 16)
    # kept under the same hash as before questions had turns in front of them
    assert json.loads((tmp_path / "replies.jsonl").read_text().splitlines()[0])["key"] == request_key(
        {"model": "m", "prompt": "question", "temperature": 1.0, "max_tokens": 20, "seed": 0}
    )


# -- cost ----------------------------------------------------------------------------------------------------


def test_the_cost_is_told_before_and_capped_by_hand(tmp_path: Path):
    with ChatServer(echo) as server:
        asked = [Request("x" * 300, 50), Request("y" * 300, 50), Request("x" * 300, 50)]  # one of them twice
        # 300 bytes are 100 tokens, and 16 for the template: 2 * 116 in at $10, 2 * 50 out at $30 per million
        client = endpoint(tmp_path, server, price_in=10.0, price_out=30.0, max_cost=0.005)
        estimate = client.estimate(asked)
        assert (estimate.requests, estimate.tokens_in, estimate.tokens_out) == (2, 232, 100)
        assert estimate.dollars == pytest.approx((2320 + 3000) / 1e6)
        assert str(estimate) == "2 requests, about 232 tokens in and at most 100 out: at most $0.01"
        with pytest.raises(ConfigError, match=r"more than task.writer.max_cost=0.005: nothing was sent"):
            client.check_cost(estimate)
        assert server.bodies == []
        # whoever doesn't ask first is stopped where the next request might pass the cap; the first one has cost
        # 100 tokens in and 10 out, $0.0013, and may cost up to $0.00266
        tight = endpoint(tmp_path, server, price_in=10.0, price_out=30.0, max_cost=0.0039, at_once=1)
        with pytest.raises(EndpointError, match=r"max_cost=0.0039 is used up"):
            tight.ask(asked[:2])
        assert len(server.bodies) == 1
        tight = endpoint(tmp_path / "b", server, price_in=10.0, price_out=30.0, max_cost=0.004, at_once=1)
        assert len(tight.ask(asked[:2])) == 2


def test_prices_and_key_are_wanted_of_servers_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = ReplyCache(tmp_path / "replies.jsonl")
    with pytest.raises(ConfigError, match=r"task.writer.price_in: say what a million tokens cost"):
        Endpoint(EndpointConfig(model="m"), cache, "task.writer")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match=r"api.openai.com/v1 wants a key: .* OPENAI_API_KEY"):
        Endpoint(EndpointConfig(model="m", price_in=1.0, price_out=1.0), cache, "task.writer")
    Endpoint(EndpointConfig(model="m", base_url="http://localhost:1/v1"), cache, "task.writer")
    with pytest.raises(ConfigError, match=r"task.writer.model: name the model"):
        Endpoint(EndpointConfig(), cache, "task.writer")


def test_addresses():
    assert on_this_machine("http://127.0.0.1:8000/v1")
    assert on_this_machine("http://[::1]:8000")
    assert not on_this_machine("https://localhost.example.org/v1")
    check_address(None, "k")
    with pytest.raises(ConfigError, match="an address such as"):
        check_address("localhost:8000", "k")
    with pytest.raises(ConfigError, match="holds a name or a password") as caught:
        check_address(f"https://me:{SECRET}@host/v1", "k")
    assert SECRET not in str(caught.value)
