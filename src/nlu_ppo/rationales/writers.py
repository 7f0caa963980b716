"""Who writes analyses: the run's own base model, or a model behind an OpenAI-compatible server."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from nlu_ppo.config import Config, WriterConfig
from nlu_ppo.endpoint import Endpoint, Request
from nlu_ppo.models.locate import adapter_fingerprint, fingerprint
from nlu_ppo.rationales.asking import VERSION, AskingPrompter, case_part, task_part
from nlu_ppo.rationales.needs import Need
from nlu_ppo.replies import Reply, ReplyCache, request_key
from nlu_ppo.tasks.rationales import ENDPOINT, MODEL
from nlu_ppo.tasks.record import CLOSE_ANALYSIS

WHERE = "task.writer"
TAGS = 16  # tokens beside the analysis itself
AT_ONCE = 256  # analyses of the own model between two writes to disk


def writer_identity(config: Config) -> dict[str, Any]:
    """All that changes what is written: the writer, its weights or name, the wording, the sampling."""
    settings, source = config.task.writer, config.task.rationale
    found: dict[str, Any] = {
        "writer": source,
        "prompt": VERSION,
        "temperature": settings.temperature,
        "max_tokens": longest(config),
        "seed": settings.seed,
        "attempts": attempts(settings),
    }
    if source == ENDPOINT:
        return found | {"model": settings.model}
    return found | {
        "weights": fingerprint(config.model.path, config.model.revision),
        "adapter": adapter_fingerprint(config.model.adapter),
        "layout": config.model.layout,
        "dtype": config.model.dtype,
    }


def longest(config: Config) -> int:
    """The longest reply in tokens."""
    return config.task.writer.max_tokens or config.task.rationale_tokens + TAGS


def attempts(settings: WriterConfig) -> int:
    """How often an analysis is asked for: a greedy model would say the same again."""
    return settings.attempts if settings.temperature > 0 else 1


Asked = tuple[Need, int]  # an analysis, and the number of the attempt


class Writer(Protocol):
    """Who is asked."""

    def kept(self, asked: Asked) -> Reply | None:
        """What was replied before."""

    def announce(self, asked: Sequence[Asked]) -> str:
        """What asking costs. Raises ConfigError where that is too much, or where nobody can be asked."""

    def write(self, asked: Sequence[Asked], progress: str) -> dict[str, int]:
        """Asks, and keeps the replies; returns how often it got none, by reason."""


def get_writer(config: Config, folder: Path) -> Writer:
    """The writer that `task.rationale` names; `folder` keeps its replies."""
    own = _ModelWriter if config.task.rationale == MODEL else _EndpointWriter
    return own(config, ReplyCache(folder / "replies.jsonl"))


class _EndpointWriter:
    def __init__(self, config: Config, cache: ReplyCache) -> None:
        self._config = config
        self._cache = cache
        # built where something has to be asked: what is kept can be read without key, package or server
        self._endpoint: Endpoint | None = None

    def kept(self, asked: Asked) -> Reply | None:
        return self._cache.get(Endpoint.key_of(self._config.task.writer, self._request(asked)))

    def announce(self, asked: Sequence[Asked]) -> str:
        endpoint = self._server()
        estimate = endpoint.estimate([self._request(a) for a in asked])
        endpoint.check_cost(estimate)
        settings = self._config.task.writer
        again = (
            ""
            if attempts(settings) == 1
            else f"; what is asked again adds to it, up to ${settings.max_cost:g} in all"
        )
        return f"{settings.model} at {endpoint.address}: {estimate}{again}"

    def write(self, asked: Sequence[Asked], progress: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for outcome in self._server().ask([self._request(a) for a in asked], progress):
            if isinstance(outcome, str):
                found[outcome] = found.get(outcome, 0) + 1
        return found

    def _server(self) -> Endpoint:
        if self._endpoint is None:
            self._endpoint = Endpoint(self._config.task.writer, self._cache, WHERE)
        return self._endpoint

    def _request(self, asked: Asked) -> Request:
        need, attempt = asked
        prompt = f"{task_part(need.task)}\n\n{case_part(need.task, need.example, need.label)}"
        return Request(prompt, longest(self._config), self._config.task.writer.seed + attempt)


class _ModelWriter:
    """The base model of the run, its `model.adapter` merged, without the run's own adapter."""

    def __init__(self, config: Config, cache: ReplyCache) -> None:
        self._config, self._cache = config, cache
        self._identity = {k: v for k, v in writer_identity(config).items() if k != "attempts"}
        self._policy: Any = None

    def kept(self, asked: Asked) -> Reply | None:
        return self._cache.get(self._key(asked))

    def announce(self, asked: Sequence[Asked]) -> str:
        model, out = self._config.model.name, len(asked) * longest(self._config)
        sent = sum(len(ids) for _, ids in self._prompts(asked))
        return f"{model}, on this machine: {len(asked):,} analyses, {sent:,} tokens in and at most {out:,} out: $0.00"

    def write(self, asked: Sequence[Asked], progress: str) -> dict[str, int]:
        import torch

        from nlu_ppo.inference.decoder import generate

        policy, settings = self._loaded(), self._config.task.writer
        eos = policy.tokenizer.eos_token_id
        for start in range(0, len(asked), AT_ONCE):
            some = self._prompts(asked[start : start + AT_ONCE])
            keys = [self._key(a) for a, _ in some]
            drawn = torch.Generator(policy.device).manual_seed(_number(keys))
            rows = generate(
                policy,
                [ids for _, ids in some],
                longest(self._config),
                temperature=settings.temperature,
                generator=drawn,
                batch_size=self._config.eval.batch_size,
                progress=f"{progress} {start + len(some):,}/{len(asked):,}",
            )
            self._cache.add((key, _reply(policy, row, eos)) for key, row in zip(keys, rows, strict=True))
        return {}

    def _prompts(self, asked: Sequence[Asked]) -> list[tuple[Asked, tuple[int, ...]]]:
        """Questions as tokens, task by task and label by label; long texts are cut as those of all prompts are."""
        policy, found = self._loaded(), list[tuple[Asked, tuple[int, ...]]]()
        by_kind: dict[tuple[str, int], list[Asked]] = {}
        for one in asked:
            by_kind.setdefault((one[0].task.name, one[0].label), []).append(one)
        for (_, label), some in by_kind.items():
            prompter = AskingPrompter(some[0][0].task, policy.tokenizer, self._config.model.layout)
            prompter.label = label
            prompter.max_prompt_tokens = policy.room_for_prompts(longest(self._config))
            prompts = prompter.encode([need.example for need, _ in some])
            found += zip(some, [prompt.ids for prompt in prompts], strict=True)
        return found

    def _loaded(self) -> Any:
        if self._policy is None:
            from nlu_ppo.models.loading import load_policy
            from nlu_ppo.progress import quiet_libraries

            quiet_libraries()
            self._policy = load_policy(self._config.model, None, 0, self._config.device)
            self._policy.closing = CLOSE_ANALYSIS
        return self._policy

    def _key(self, asked: Asked) -> str:
        need, attempt = asked
        question = f"{task_part(need.task)}\n\n{case_part(need.task, need.example, need.label)}"
        return request_key({**self._identity, "question": question, "attempt": attempt})


def _reply(policy: Any, row: list[int], eos: int) -> Reply:
    text = policy.tokenizer.decode(row, skip_special_tokens=True)
    return Reply(text, row[-1] == eos or CLOSE_ANALYSIS in text, tokens_out=len(row))


def _number(keys: Sequence[str]) -> int:
    """A seed that follows from what is asked, so that the same questions get the same replies."""
    return int.from_bytes(hashlib.sha256("".join(keys).encode()).digest()[:7], "big")
