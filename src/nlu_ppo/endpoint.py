"""A client for OpenAI-compatible servers: the price first, a cap on it, many requests at a time, each paid once.

Waiting and sending again is the `openai` package's own work. The key comes from OPENAI_API_KEY, and is written
nowhere.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from nlu_ppo.config import EndpointConfig, ServerConfig
from nlu_ppo.credentials import hidden
from nlu_ppo.errors import ConfigError, EndpointError
from nlu_ppo.inert import defused_for_any
from nlu_ppo.progress import bar
from nlu_ppo.replies import Reply, ReplyCache, request_key

KEY = "OPENAI_API_KEY"
IN_A_ROW = 10  # requests without an answer that make the server count as gone
BYTES_PER_TOKEN = 3  # English has more, so that an estimate is rather too high
OVERHEAD = 16  # tokens that a server's chat template adds to a turn
TOO_LONG = (
    " (if the prompt is too long: it can't be cut for a server, so show fewer demonstrations or ask a model with a "
    "longer context)"
)


@dataclass(frozen=True)
class Request:
    """A question; another `seed` asks for another answer to the same.

    Attributes:
        prompt: the user's turn that is answered.
        before: (role, text) of the turns in front of it.
        about: what the question is about, for messages.
    """

    prompt: str
    max_tokens: int
    seed: int = 0
    before: tuple[tuple[str, str], ...] = ()
    about: str = ""


@dataclass(frozen=True)
class Estimate:
    """What requests come to: tokens sent, tokens received at most, and dollars at most."""

    requests: int
    tokens_in: int
    tokens_out: int
    dollars: float

    def __str__(self) -> str:
        return (
            f"{self.requests:,} requests, about {self.tokens_in:,} tokens in and at most {self.tokens_out:,} out: "
            f"at most ${self.dollars:,.2f}"
        )


class Endpoint:
    """One model behind one server.

    Args:
        cache: where replies are looked up and kept; it may be changed for another between two questions.
        where: the keys under which the settings stand, for messages.

    Attributes:
        spent: dollars, those of requests under way at their most.

    Raises:
        ConfigError: no model is named, the package `openai` or the API key is missing, or prices are.
    """

    def __init__(self, config: EndpointConfig, cache: ReplyCache, where: str) -> None:
        if config.model is None:
            raise ConfigError(f"{where}.model: name the model, as the server knows it")
        try:
            import openai
        except ImportError as error:
            raise ConfigError(
                "asking a server needs the package openai: pip install -e '.[api]' brings it"
            ) from error
        for chatty in ("openai", "httpx", "httpx2"):  # a line per request
            logging.getLogger(chatty).setLevel(logging.WARNING)
        self._openai: Any = openai
        self._config, self._where, self.cache = config, where, cache
        address = address_of(config)
        self._secret = os.environ.get(KEY, "")
        local = on_this_machine(address)
        if not self._secret and not local:
            raise ConfigError(
                f"{address} wants a key: put it into the environment variable {KEY}, and nowhere else"
            )
        self._prices = [_price(config, name, local, where) for name in ("price_in", "price_out")]
        self._client: Any = openai.OpenAI(
            api_key=self._secret or "none",
            base_url=address,
            timeout=config.timeout,
            max_retries=config.retries,
        )
        self._limit_name, self._seeded = "max_tokens", True
        self._lock = threading.Lock()
        self.spent = 0.0
        self.address = address

    # -- cost ---------------------------------------------------------------------------------------------

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """What those of the requests cost at most that were never answered before."""
        new = {self._key(r): r for r in requests if self.cache.get(self._key(r)) is None}.values()
        tokens_in, tokens_out = sum(map(_tokens, new)), sum(r.max_tokens for r in new)
        return Estimate(len(new), tokens_in, tokens_out, self._dollars(tokens_in, tokens_out))

    def check_cost(self, estimate: Estimate) -> None:
        """Raises ConfigError for what would cost more than `max_cost`."""
        if estimate.dollars > self._config.max_cost:
            raise ConfigError(
                f"{estimate}, which is more than {self._where}.max_cost={self._config.max_cost:g}: nothing was sent. "
                f"Ask for less (task.limit.train, task.limit.eval), or raise {self._where}.max_cost"
            )

    def _dollars(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self._prices[0] + tokens_out * self._prices[1]) / 1e6

    def _reserve(self, request: Request) -> float:
        """Sets aside what a request costs at most; the answer tells the true sum."""
        most = self._dollars(_tokens(request), request.max_tokens)
        with self._lock:
            if self.spent + most > self._config.max_cost + 1e-9:
                raise EndpointError(
                    f"{self._where}.max_cost={self._config.max_cost:g} is used up. What came back is kept: raise it, "
                    f"and the same command goes on"
                )
            self.spent += most
        return most

    # -- asking -------------------------------------------------------------------------------------------

    def ask(self, requests: Sequence[Request], progress: str | None = None) -> list[Reply | str]:
        """Replies in the order of the requests; of one that failed for good, why (it isn't kept, so that the next
        start asks again). What is asked for twice is sent once.

        Raises:
            EndpointError: the server refuses, is gone, or the cap on cost is reached. What came back is kept.
        """
        keys = [self._key(request) for request in requests]
        found: dict[str, Reply | str | None] = {key: self.cache.get(key) for key in keys}
        first = dict(zip(reversed(keys), reversed(range(len(keys))), strict=True))
        missing = sorted(first[key] for key, reply in found.items() if reply is None)
        pool = ThreadPoolExecutor(self._config.at_once, thread_name_prefix="endpoint")
        shown = bar(total=len(missing), desc=progress, unit="req", disable=progress is None or not missing)
        try:
            for number, outcome in self._in_turn(pool, requests, missing):
                found[keys[number]] = outcome
                shown.update()
        finally:  # also on Ctrl-C: what is under way ends, nothing new begins
            pool.shutdown(wait=True, cancel_futures=True)
            shown.close()
        return [found[key] or "no answer" for key in keys]

    def _in_turn(
        self, pool: ThreadPoolExecutor, requests: Sequence[Request], missing: Sequence[int]
    ) -> Iterator[tuple[int, Reply | str]]:
        """Outcomes as they come in, never more requests under way than the pool has threads."""
        waiting, source, failed = dict[Future[Reply | str], int](), iter(missing), 0
        while True:
            for number in islice(source, self._config.at_once - len(waiting)):
                waiting[pool.submit(self._one, requests[number])] = number
            if not waiting:
                return
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                number, outcome = waiting.pop(future), future.result()
                failed = failed + 1 if isinstance(outcome, str) else 0
                if failed >= IN_A_ROW:
                    raise EndpointError(
                        f"{self.address}: {failed} requests in a row failed, the last one with: {outcome}. What came "
                        f"back before is kept: the same command goes on"
                    )
                yield number, outcome

    def _one(self, request: Request) -> Reply | str:
        openai, reserved = self._openai, self._reserve(request)
        cost = 0.0
        try:
            raw = self._send(request)
            reply = _read(raw)
            if isinstance(reply, Reply):
                self.cache.add([(self._key(request), reply)])
            usage = reply if isinstance(reply, Reply) and reply.tokens_out else None
            cost = self._dollars(usage.tokens_in, usage.tokens_out) if usage else reserved
            return reply
        except openai.APIStatusError as error:
            if error.status_code in (400, 401, 403, 404, 405, 413, 422):
                about = f", {request.about}" if request.about else ""
                hint = TOO_LONG if request.about and error.status_code in (400, 413) else ""
                raise EndpointError(
                    f"{self.address} refuses a request for {self._config.model}{about} ({error.status_code}): "
                    f"{self._hidden(error)}{hint}. What came back before is kept"
                ) from None
            return f"status {error.status_code} after {self._config.retries + 1} attempts"
        except openai.APITimeoutError:
            cost = reserved  # the server may have worked, and counted
            return f"silence for {self._config.timeout:g} s, {self._config.retries + 1} times"
        except openai.APIConnectionError as error:
            return f"no connection: {self._hidden(error.__cause__ or error)}"
        except (openai.APIError, ValueError) as error:
            cost = reserved
            return f"what came back is no reply: {self._hidden(error)}"
        finally:
            with self._lock:
                self.spent += cost - reserved

    def _send(self, request: Request) -> Any:
        """Sends what this server takes: what it refuses by name is sent otherwise, to it and from then on."""
        while True:
            limit_name, seeded = self._limit_name, self._seeded
            try:
                return self._create(request, limit_name, seeded)
            except (self._openai.BadRequestError, self._openai.UnprocessableEntityError) as error:
                # newer models of OpenAI's refuse the old name of the limit, and most other servers know only that one
                if limit_name == "max_tokens" and "max_completion_tokens" in str(error):
                    self._limit_name = "max_completion_tokens"
                elif seeded and re.search(r"\bseed\b", str(error)):  # not all servers have one
                    self._seeded = False
                else:
                    raise

    def _create(self, request: Request, limit_name: str, seeded: bool) -> Any:
        return self._client.chat.completions.create(
            model=self._config.model,
            messages=[
                {"role": role, "content": defused_for_any(text)}
                for role, text in (*request.before, ("user", request.prompt))
            ],
            temperature=self._config.temperature,
            **({"seed": request.seed} if seeded else {}),
            **{limit_name: request.max_tokens},
        )

    def _key(self, request: Request) -> str:
        return self.key_of(self._config, request)

    @staticmethod
    def key_of(config: EndpointConfig, request: Request) -> str:
        """What the reply is kept under. The server's address isn't part of it: a model that moves stays the same."""
        return request_key(
            {
                "model": config.model,
                "prompt": request.prompt,
                "temperature": config.temperature,
                "max_tokens": request.max_tokens,
                "seed": request.seed,
                **({"before": request.before} if request.before else {}),
            }
        )

    def _hidden(self, error: BaseException) -> str:
        """An error's text without the key, which servers may echo; at most 300 characters."""
        text = str(error).replace(self._secret, "***") if self._secret else str(error)
        return text[:300]


def _read(raw: Any) -> Reply | str:
    """A reply as the server gave it, or what is wrong with it."""
    try:
        choice, usage = raw.choices[0], raw.usage
        text = choice.message.content
        if text is not None and not isinstance(text, str):
            raise TypeError("its content is no text")
        counts = (usage.prompt_tokens or 0, usage.completion_tokens or 0) if usage else (0, 0)
        return Reply(text or "", choice.finish_reason == "stop", *map(int, counts))
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        return f"what came back is no chat completion: {str(error)[:120]}"


def _tokens(request: Request) -> int:
    texts = (request.prompt, *(text for _, text in request.before))
    return sum(len(text.encode()) // BYTES_PER_TOKEN for text in texts) + OVERHEAD * len(texts)


def _price(config: EndpointConfig, name: str, local: bool, where: str) -> float:
    price = getattr(config, name)
    if price is None and not local:
        raise ConfigError(
            f"{where}.{name}: say what a million tokens cost, in US dollars (0 if nothing), so that what a job costs "
            f"can be told before it starts"
        )
    return price or 0.0


def address_of(config: ServerConfig) -> str:
    """Where the server is."""
    return config.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"


def dollars(config: ServerConfig, tokens_in: int, tokens_out: int) -> float | None:
    """What tokens cost at the prices of the configuration; `None` where it has none."""
    local = on_this_machine(address_of(config))
    prices = [0.0 if price is None and local else price for price in (config.price_in, config.price_out)]
    if prices[0] is None or prices[1] is None:
        return None
    return (tokens_in * prices[0] + tokens_out * prices[1]) / 1e6


def on_this_machine(address: str) -> bool:
    """Whether a server's address is this machine's own: nobody sends a bill."""
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_address(address: str | None, key: str) -> None:
    """Raises ConfigError for an address that is none, or holds a password."""
    if address is None:
        return
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{key}={hidden(address)}: an address such as http://localhost:8000/v1 is wanted")
    if parts.query or parts.fragment:
        raise ConfigError(
            f"{key}: what follows ? or # in an address would be recorded: put the key into {KEY}"
        )
    if parts.username or parts.password:
        raise ConfigError(
            f"{key}: the address holds a name or a password, which would be recorded: put the key into {KEY}"
        )
