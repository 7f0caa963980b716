"""A model behind a server in the place where a run has its policy: it answers, and does nothing else.

`outputs/replies/<model>-<hash>/` keeps every reply, so that nothing is asked for twice. Needs no torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nlu_ppo.config import Config, EndpointConfig, ModelConfig
from nlu_ppo.endpoint import Endpoint, Estimate, Request, dollars
from nlu_ppo.errors import EndpointError
from nlu_ppo.messages import MessagePrompter, completion_in
from nlu_ppo.prompting import Prompt
from nlu_ppo.replies import Reply, ReplyCache, alone
from nlu_ppo.tasks.record import Example, Task

FOLDER = "replies"
WHERE = "model.endpoint"

# What is asked in one go: prompts of a task, examples, the longest reply in tokens.
Questions = tuple[MessagePrompter, Sequence[Example], int]


def served_name(model: ModelConfig) -> str:
    """The model's name, as the server knows it."""
    return model.endpoint.model or model.name


class RemoteModel:
    """A language model behind an OpenAI-compatible server.

    Answers are greedy unless `eval.decoding=sample`, and of greedy ones all seeds share one.
    """

    def __init__(self, config: Config) -> None:
        reading, name = config.eval, served_name(config.model)
        sampled = reading.decoding == "sample"
        server = dataclasses.asdict(config.model.endpoint) | {"model": name}
        self._settings = EndpointConfig(**server, temperature=reading.temperature if sampled else 0.0)
        self._seed = config.seed if sampled else 0
        self._layout = config.model.layout
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        self._folder = Path(config.outputs) / FOLDER / f"{re.sub('[^A-Za-z0-9.]+', '-', name)[:60]}-{digest}"
        self._endpoint: Endpoint | None = None  # what is kept can be read without key, package or server
        self._replies: dict[str, Reply] = {}
        self._sent = 0

    def prompter(self, task: Task, analysis_tokens: int = 0) -> MessagePrompter:
        return MessagePrompter(task, self._layout, analysis_tokens=analysis_tokens)

    # -- cost ---------------------------------------------------------------------------------------------

    def announce(self, questions: Iterable[Questions]) -> None:
        """Says what all questions of a run cost at most.

        Raises:
            ConfigError: more than `model.endpoint.max_cost`, or nobody can be asked. Nothing was sent.
        """
        new: dict[str, Request] = {}
        kept, caches = 0, dict[Path, ReplyCache]()
        for prompter, examples, limit in questions:
            path = self._file(prompter)
            cache = caches.setdefault(path, ReplyCache(path))
            for request in self._requests(prompter, examples, limit):
                key = Endpoint.key_of(self._settings, request)
                if cache.get(key) is None:
                    new[key] = request
                else:
                    kept += 1
        already = f"; {kept:,} answers are kept from before" if kept else ""
        if not new:
            print(f"{self._settings.model}: nothing to ask{already}", flush=True)
            return
        server = self._server(ReplyCache(self._folder / "none"))
        estimate: Estimate = server.estimate(list(new.values()))
        server.check_cost(estimate)
        print(f"{self._settings.model} at {server.address}: {estimate}{already}", flush=True)

    def account(self) -> dict[str, Any]:
        """What the answers so far have cost. `None` for what the server or the configuration doesn't tell.

        `replies` counts different ones; tokens and `dollars` are those of all of them, whenever they were paid for,
        at the prices of now; `asked` and `dollars_now` are what this start has asked for and spent (what failed at its
        most). `unfinished` counts replies that the limit on tokens ended, or a filter of the server's.
        """
        replies = self._replies.values()
        told = all(reply.tokens_in + reply.tokens_out for reply in replies)
        sent, received = (sum(r.tokens_in for r in replies), sum(r.tokens_out for r in replies))
        return {
            "model": self._settings.model,
            "replies": len(replies),
            "unfinished": sum(not reply.ended for reply in replies),
            "tokens_in": sent if told else None,
            "tokens_out": received if told else None,
            "dollars": dollars(self._settings, sent, received) if told else None,
            "asked": self._sent,
            "dollars_now": self._endpoint.spent if self._endpoint else 0.0,
        }

    # -- answers ------------------------------------------------------------------------------------------

    def answer(
        self, prompter: MessagePrompter, examples: Sequence[Example], limit: int, progress: str | None = None
    ) -> tuple[list[Prompt], list[str]]:
        """What was asked of every example, and the answer as it stands behind the opening tag.

        Raises:
            EndpointError: a request was refused, or has no reply after all attempts. What came back is kept.
        """
        requests = self._requests(prompter, examples, limit)
        replies = self._ask(requests, self._file(prompter), progress)
        keys = [Endpoint.key_of(self._settings, request) for request in requests]
        self._replies.update(zip(keys, replies, strict=True))
        cut = sum(not reply.ended for reply in replies)
        if cut:
            print(
                f"{prompter.task.name}: {cut} of {len(replies)} replies are unfinished: cut at {limit} tokens, or "
                f"filtered by the server. A model that thinks before it answers needs more (eval.max_new_tokens)"
            )
        return prompter.prepare(examples), [completion_in(reply.text) for reply in replies]

    def _ask(self, requests: Sequence[Request], path: Path, progress: str | None) -> list[Reply]:
        found = self._kept(requests, ReplyCache(path))
        if None not in found:
            return [reply for reply in found if reply is not None]
        with alone(path.with_suffix(".lock"), f"waiting for another process, which asks the same: {path}"):
            cache = ReplyCache(path)
            lacking = {Endpoint.key_of(self._settings, r) for r in requests} - cache.keys()
            outcomes: Sequence[Reply | str] = self._server(cache).ask(requests, progress)
            self._sent += len(lacking)
        replies, failed = [], []
        for request, outcome in zip(requests, outcomes, strict=True):
            if isinstance(outcome, Reply):
                replies.append(outcome)
            else:
                failed.append((request.about, outcome))
        if failed:
            about, why = failed[0]
            raise EndpointError(
                f"{len(failed)} of {len(requests)} requests have no reply, first that for {about}: {why}. What came "
                f"back is kept: the same command asks for the others"
            )
        return replies

    def _kept(self, requests: Sequence[Request], cache: ReplyCache) -> list[Reply | None]:
        return [cache.get(Endpoint.key_of(self._settings, request)) for request in requests]

    def _server(self, cache: ReplyCache) -> Endpoint:
        """One for the whole run, since the cap on cost is the run's."""
        if self._endpoint is None:
            self._endpoint = Endpoint(self._settings, cache, WHERE)
        self._endpoint.cache = cache
        return self._endpoint

    def _requests(self, prompter: MessagePrompter, examples: Sequence[Example], limit: int) -> list[Request]:
        before = prompter.before
        return [
            Request(
                prompter.turn(example),
                limit,
                self._seed,
                before,
                f"example {example.id} of {prompter.task.name}",
            )
            for example in examples
        ]

    def _file(self, prompter: MessagePrompter) -> Path:
        """Where replies are kept: the same file for the same question, and seldom one that two runs want at a time."""
        parts = [self._settings.temperature, self._seed, prompter.before]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]
        return self._folder / f"{re.sub('[^A-Za-z0-9.]+', '-', prompter.task.name)}-{digest}.jsonl"
