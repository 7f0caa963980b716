"""A contender's process: loads the workload, builds the model, then does one step per line that it is sent.

Contenders import this from their own environments: nothing here but the standard library, torch and what
transformers and PEFT have offered for years. Replies are JSON lines on what was standard output; whatever a
library prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.workload import PAD, Workload

SAMPLE_SECONDS = 0.002


@dataclass
class Outcome:
    """What a step did, so that a contender that does less work is found out.

    Attributes:
        response_tokens: length of every completion.
        phases: seconds by name, as far as the contender can tell them apart.
        figures: what else the contender says of the step.
        scores: log-probability of every label of every prompt, for `eval`.
    """

    response_tokens: list[int] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    scores: list[list[float]] = field(default_factory=list)


Step = Callable[[], Outcome]


def serve(make_step: Callable[[Workload, Any, Any], Step]) -> None:
    """Reads the workload named on the command line, and answers lines until standard input ends.

    What a library takes for itself is not the method's: contenders import theirs before they call this, so that
    it is part of the memory from which the peak is counted.

    Args:
        make_step: workload, model and tokenizer to the function that does one step.
    """
    replies = _claim_stdout()
    workload = Workload.read(sys.argv[1])
    torch.set_num_threads(workload.threads)
    torch.manual_seed(workload.seed)
    model, tokenizer = build_model(workload), build_tokenizer(workload)
    on_gpu = torch.device(workload.device).type == "cuda"
    release_memory()
    baseline = torch.cuda.memory_allocated() if on_gpu else _resident_bytes()
    step = make_step(workload, model, tokenizer)
    _reply(replies, {"ready": True, "versions": versions()})
    for line in sys.stdin:
        watched = Watch() if line.strip() == "watch" else None
        with PeakDeviceMemory() if on_gpu else PeakMemory() as memory:
            start, busy = time.perf_counter(), time.process_time()
            outcome = step()
            settle()
            seconds, busy = time.perf_counter() - start, time.process_time() - busy
        # processor seconds tell a reader of the file which steps something else disturbed
        reply = {
            "seconds": seconds,
            "cpu_seconds": busy,
            "memory_bytes": memory.peak - baseline,
            **asdict(outcome),
        }
        if watched:
            reply |= watched.finish(workload)
        _reply(replies, reply)


def _claim_stdout() -> Any:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def _reply(replies: Any, values: dict[str, Any]) -> None:
    replies.write(json.dumps(values) + "\n")
    replies.flush()


def versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "transformers", "peft", "trl", "lm_eval"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


# -- model ----------------------------------------------------------------------------------------------------


def build_base(workload: Workload) -> Any:
    """The model with weights drawn from the workload's seed: the same numbers in every environment (of a device).

    It is built where it stays and in its own data type, so that the largest needs no second place.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = workload.shape
    config = AutoConfig.for_model(
        shape.architecture,
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads or shape.heads,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    with torch.device(workload.device), _default_dtype(workload.dtype):
        model: Any = AutoModelForCausalLM.from_config(config)
    assert model.config._attn_implementation == "sdpa", "contenders should attend by the same kernel"
    draw_weights(model, workload.seed)
    return model.eval()


@contextlib.contextmanager
def _default_dtype(name: str) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def draw_weights(module: Any, seed: int) -> None:
    """Normal with deviation 0.02; norms stay 1."""
    generator = torch.Generator(next(module.parameters()).device).manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(module.named_parameters()):
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.02, generator=generator)


def build_model(workload: Workload) -> Any:
    """The model of a case: with an adapter for PPO, bare for evaluation."""
    base = build_base(workload)
    if workload.kind == "eval":
        return base.requires_grad_(False)
    from peft import LoraConfig, get_peft_model

    lora = workload.lora
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, config)


def build_tokenizer(workload: Workload) -> Any:
    """One word per id. The end of sequence is a token that the model can't draw: completions have full length."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, **{f"w{i}": i for i in range(1, workload.shape.vocabulary)}}
    words["<end>"] = workload.shape.vocabulary
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )


# -- what a step does, and what it takes ----------------------------------------------------------------------


class Watch:
    """Counts the tokens that enter the trunk and the optimizer's steps, and notes which prompts were seen.

    Hooks cost a little, so that a watched step is never a timed one.
    """

    def __init__(self) -> None:
        self.tokens = self.optimizer_steps = 0
        self.rows: set[tuple[int, ...]] = set()
        self._handles = [
            register_module_forward_pre_hook(self._on_module),
            register_optimizer_step_post_hook(self._on_optimizer_step),
        ]

    def _on_module(self, module: Any, inputs: tuple[Any, ...]) -> None:
        if not isinstance(module, torch.nn.Embedding):  # a critic's trunk has one, too
            return
        ids = inputs[0]
        self.tokens += ids.numel()
        if ids.shape[-1] > 1:
            self.rows |= {tuple(t for t in row if t != PAD) for row in ids.tolist()}

    def _on_optimizer_step(self, *_: Any) -> None:
        self.optimizer_steps += 1

    def finish(self, workload: Workload) -> dict[str, Any]:
        for handle in self._handles:
            handle.remove()
        whole = [row for row in workload.prompts if any(seen[: len(row)] == row for seen in self.rows)]
        return {
            "trunk_tokens": self.tokens,
            "optimizer_steps": self.optimizer_steps,
            "whole_prompts": len(whole),
        }


class PeakMemory:
    """The most memory that the process held while the block ran, by a thread that looks every few ms."""

    def __enter__(self) -> PeakMemory:
        release_memory()
        self.peak = _resident_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, _resident_bytes())

    def __exit__(self, *_: object) -> None:
        self.peak = max(self.peak, _resident_bytes())
        self._done.set()
        self._thread.join()


class PeakDeviceMemory:
    """The most that CUDA's allocator had given out while the block ran."""

    peak = 0

    def __enter__(self) -> PeakDeviceMemory:
        release_memory()
        torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *_: object) -> None:
        settle()
        self.peak = torch.cuda.max_memory_allocated()


def _resident_bytes() -> int:
    """Where the system doesn't tell the present size, the largest so far."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def release_memory() -> None:
    """Gives freed memory back to the system, so that one step's garbage is not the next one's peak."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL("libc.so.6").malloc_trim(0)


def settle() -> None:
    """Waits for what a GPU still has to do: launching its work takes no time, and doing it does."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@contextlib.contextmanager
def timed(phases: dict[str, float], name: str) -> Iterator[None]:
    settle()
    start = time.perf_counter()
    try:
        yield
    finally:
        settle()
        phases[name] = phases.get(name, 0.0) + time.perf_counter() - start
