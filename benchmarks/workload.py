"""What is measured, as data that every contender reads: model shape, prompts as token ids, PPO settings.

Only the standard library: contenders import this from environments of their own.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

PAD = 0  # the only special token; prompts never hold it


@dataclass(frozen=True)
class Shape:
    """A Llama, or another `architecture` of transformers with Llama's layers, with random weights.

    Attributes:
        key_heads: of keys and values, where they are fewer than those of queries.
        tied: the head is the embedding.
    """

    hidden: int = 512
    layers: int = 8
    heads: int = 8
    intermediate: int = 1376
    vocabulary: int = 32_000
    positions: int = 2048
    key_heads: int | None = None
    architecture: str = "llama"
    tied: bool = False


@dataclass(frozen=True)
class Lora:
    """Adapters, as PEFT takes them. Dropout is 0 everywhere: PPO switches it off."""

    r: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = ("q_proj", "v_proj")


ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Workload:
    """One case. `kind` is `ppo` (a step on one batch) or `eval` (scoring label words behind prompts).

    Attributes:
        prompts: token ids, one row per sample.
        labels: for `eval`, the legal answers as token ids, the same for every prompt.
        device, dtype: where the model is and what its weights are, as torch calls them.
    """

    name: str
    about: str
    kind: str = "ppo"
    shape: Shape = field(default_factory=Shape)
    lora: Lora = field(default_factory=Lora)
    prompts: tuple[tuple[int, ...], ...] = ()
    labels: tuple[tuple[int, ...], ...] = ()
    response_tokens: int = 6
    batch_size: int = 16
    minibatch_size: int = 8
    epochs: int = 4
    threads: int = 2
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def optimizer_steps(self) -> int:
        """Of one PPO step on one batch."""
        return self.epochs * (len(self.prompts) // self.minibatch_size)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> Workload:
        raw: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        raw["shape"] = Shape(**raw["shape"])
        raw["lora"] = Lora(**{**raw["lora"], "targets": tuple(raw["lora"]["targets"])})
        for name in ("prompts", "labels"):
            raw[name] = tuple(tuple(row) for row in raw[name])
        return cls(**raw)


def random_prompts(
    lengths: Sequence[int], common: int, vocabulary: int, seed: int
) -> tuple[tuple[int, ...], ...]:
    """Prompts of the given lengths whose first `common` tokens are the same, and no more than those."""
    draw = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(1, vocabulary) for _ in range(count)]

    prefix = tokens(common)
    forks = draw.sample(range(1, vocabulary), len(lengths))
    return tuple(
        (*prefix, fork, *tokens(length - common - 1)) for fork, length in zip(forks, lengths, strict=True)
    )


def _ppo(name: str, about: str, length: int = 128, common: int = 90, **changes: Any) -> Workload:
    made = replace(Workload(name, about), **changes)
    lengths = [length] * made.batch_size
    prompts = random_prompts(lengths, common, made.shape.vocabulary, made.seed)
    return replace(made, prompts=prompts)


def _ragged() -> Workload:
    """Own parts of 10 to 66 tokens, 38 in the mean, as in the reference."""
    made = Workload("ragged", "128-token prompts in the mean, 100 to 156, 90 common")
    spread = range(-28, 29)
    lengths = [128 + spread[round(i * 56 / (made.batch_size - 1))] for i in range(made.batch_size)]
    random.Random(made.seed).shuffle(lengths)
    return replace(made, prompts=random_prompts(lengths, 90, made.shape.vocabulary, made.seed))


def _eval(name: str, about: str, length: int, common: int, label_tokens: int, count: int = 32) -> Workload:
    made = Workload(name, about, kind="eval")
    draw = random.Random(made.seed + 1)
    ending = [draw.randrange(1, made.shape.vocabulary) for _ in range(label_tokens - 1)]
    firsts = draw.sample(range(1, made.shape.vocabulary), 2)
    lengths = [length + draw.randrange(-20, 21) for _ in range(count)]
    prompts = random_prompts(lengths, common, made.shape.vocabulary, made.seed)
    return replace(made, prompts=prompts, labels=tuple((first, *ending) for first in firsts))


def built_in() -> dict[str, Workload]:
    """Every case that needs no data file, by name."""
    cases = [
        _ppo("reference", "128-token prompts, 90 common; LoRA on q and v; vocabulary 32,000"),
        _ppo("all_linear", "LoRA on all linear layers", lora=Lora(targets=ALL_LINEAR)),
        _ppo("vocabulary_152k", "vocabulary 152,000", shape=Shape(vocabulary=152_000)),
        _ppo("prompt_256_common_90", "256-token prompts, 90 common", length=256),
        _ppo("prompt_256_common_180", "256-token prompts, 180 common", length=256, common=180),
        _ppo("no_common", "128-token prompts, nothing common", common=0),
        _ragged(),
        _eval("eval_5_shot", "5-shot, about 600 tokens, 510 common; two one-token labels", 600, 510, 1),
        _eval("eval_0_shot", "zero-shot, about 130 tokens, 45 common; two one-token labels", 130, 45, 1),
        _eval("eval_5_shot_tag", "as eval_5_shot, labels with a closing tag, 5 tokens", 600, 510, 5),
    ]
    return {case.name: case for case in cases}


DATA_CASE = "multirc"


def shrunk(workload: Workload) -> Workload:
    """The same case at a toy size, for tests and for trying the harness: numbers mean nothing."""
    vocabulary = 211
    keep = workload.prompts if workload.kind == "ppo" else workload.prompts[:6]
    return replace(
        workload,
        shape=Shape(hidden=32, layers=2, heads=2, intermediate=48, vocabulary=vocabulary),
        prompts=tuple(tuple(1 + t % (vocabulary - 1) for t in row) for row in keep),
        labels=tuple(
            (5 + i, *(1 + t % (vocabulary - 1) for t in row[1:])) for i, row in enumerate(workload.labels)
        ),
        batch_size=workload.batch_size if workload.kind == "ppo" else 4,
    )
