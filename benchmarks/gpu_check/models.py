"""What is measured: models of well-known shapes with random weights, and prompts of usual lengths."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.gpu_check.runner import SkippedError
from benchmarks.worker import build_base, build_model
from benchmarks.workload import Lora, Shape, Workload, random_prompts
from nlu_ppo.models.policy import Policy

# config.json of meta-llama/Llama-2-7b-hf and of Qwen/Qwen2.5-1.5B; positions are more than prompts need
LLAMA_7B = Shape(hidden=4096, layers=32, heads=32, intermediate=11008, vocabulary=32_000, positions=4096)
QWEN_1_5B = Shape(
    hidden=1536, layers=28, heads=12, key_heads=2, intermediate=8960, vocabulary=151_936, positions=4096,
    architecture="qwen2", tied=True,
)  # fmt: skip
ATTENTION = Lora(r=16, alpha=32, targets=("q_proj", "k_proj", "v_proj", "o_proj"))
BYTES = 256


@dataclass(frozen=True)
class Named:
    """A shape and what to call it."""

    name: str
    shape: Shape


@dataclass(frozen=True)
class Sizes:
    """How large everything is: for a GPU, or as small as it gets.

    Attributes:
        main, large: the two models of the speed parts.
        wide: a model of the large one's width and few layers, for what is compared in float32.
        matrix: rows of a square matrix product; `copied` bytes of a copy.
        batch, large_batch: rows of a PPO step.
        short, long: tokens of a prompt; `common` of them are the same in all.
        examples: of an evaluation, in batches of `eval_batch`.
        rounds: of a measurement, at most.
    """

    main: Named
    large: Named
    wide: Named
    matrix: int
    copied: int
    batch: int = 16
    large_batch: int = 64
    short: int = 128
    long: int = 256
    common: int = 90
    examples: int = 256
    eval_batch: int = 64
    rounds: int = 5


GPU = Sizes(
    main=Named("Qwen2.5-1.5B shape", QWEN_1_5B),
    large=Named("Llama-2-7B shape", LLAMA_7B),
    wide=Named("Llama-2-7B shape, 4 layers", replace(LLAMA_7B, layers=4)),
    matrix=8192,
    copied=4 << 30,
)

_TOY = Shape(hidden=64, layers=2, heads=4, intermediate=96, vocabulary=600, positions=512)
_TOY_QWEN = replace(_TOY, key_heads=2, architecture="qwen2", tied=True)
SMALL = Sizes(
    main=Named("toy Qwen2", _TOY_QWEN),
    large=Named("toy Llama", _TOY),
    wide=Named("toy Llama", _TOY),
    matrix=256,
    copied=1 << 22,
    batch=3,
    large_batch=4,
    short=40,
    long=48,
    common=25,
    examples=4,
    eval_batch=2,
    rounds=1,
)


@dataclass(frozen=True)
class Bench:
    """Where and how large. `device` is torch's name of it."""

    device: str
    sizes: Sizes

    @property
    def on_gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"

    def workload(
        self, model: Named, length: int, batch: int, dtype: str = "bfloat16", kind: str = "ppo"
    ) -> Workload:
        """Paper A's settings of PPO: 4 epochs, rank 16, minibatches as large as the batch; 6 response tokens."""
        prompts = random_prompts([length] * batch, self.sizes.common, model.shape.vocabulary, seed=0)
        return Workload(
            f"batch {batch}, {length} tokens",
            f"{self.sizes.common} tokens common",
            kind=kind,
            shape=model.shape,
            lora=ATTENTION,
            prompts=prompts,
            batch_size=batch,
            minibatch_size=batch,
            epochs=4,
            device=self.device,
            dtype=dtype,
        )

    def build(self, workload: Workload) -> Any:
        """The model of a workload on its device, frozen but for its adapter.

        Raises:
            SkippedError: the card can't hold it.
        """
        self.check_room(workload)
        if workload.kind == "eval":
            return build_base(workload).requires_grad_(False).eval()
        return build_model(workload).eval()

    def check_room(self, workload: Workload) -> None:
        """
        Raises:
            SkippedError: the card has less free memory than the weights and a little work beside them need.
        """
        if self.on_gpu:
            free, _ = torch.cuda.mem_get_info()
            too_small(weight_bytes(workload), free)


def weight_bytes(workload: Workload) -> int:
    """Of a model's weights: layers, embedding and head."""
    s = workload.shape
    keys = s.hidden // s.heads * (s.key_heads or s.heads)
    layer = 2 * s.hidden * s.hidden + 2 * s.hidden * keys + 3 * s.hidden * s.intermediate
    ends = s.vocabulary * s.hidden * (1 if s.tied else 2)
    return (s.layers * layer + ends) * torch.finfo(getattr(torch, workload.dtype)).bits // 8


def too_small(weights: int, free: int) -> None:
    """
    Raises:
        SkippedError: `free` bytes can't hold `weights` bytes, and a quarter of that and 2 GB for the work.
    """
    needed = weights * 5 // 4 + (2 << 30)
    if free < needed:
        raise SkippedError(f"card too small: {needed / 1e9:.0f} GB are needed, {free / 1e9:.0f} GB are free")


def byte_tokenizer(vocabulary: int) -> Any:
    """One token per byte. Other tokens that a model draws decode to nothing; the end lies beyond its vocabulary,
    so that completions have full length."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab={**tokens, "<pad>": BYTES, "<end>": vocabulary}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", clean_up_tokenization_spaces=False
    )


def policy_of(model: Any, workload: Workload, value_head: bool = True) -> Policy:
    """A policy around a model. Adapter and value head are random, so that all of them have a gradient."""
    policy = Policy(model, byte_tokenizer(workload.shape.vocabulary), workload.shape.positions)
    generator = torch.Generator(policy.device).manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.trainable():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.02, generator=generator)
        if value_head:
            policy.add_value_head()
            assert policy.value_head is not None
            policy.value_head.linear.weight.normal_(0.0, 0.02, generator=generator)
    return policy
