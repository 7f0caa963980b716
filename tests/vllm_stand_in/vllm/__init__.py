"""Stands in for vLLM where it can't be installed: the same calls, answered by transformers and PEFT from files.

So what the tests show is that base, adapter, prompts, stops and limits are handed over rightly. It says nothing of
vLLM's own arithmetic or speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import vllm.lora.request  # noqa: F401 - as the real one, it is there once vllm is imported


@dataclass
class SamplingParams:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int = 16
    stop: Sequence[str] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True


@dataclass
class Completion:
    token_ids: list[int]


@dataclass
class Output:
    outputs: list[Completion]


class LLM:
    def __init__(
        self, model: str, *, dtype: str, max_model_len: int, enable_lora: bool, max_lora_rank: int = 16,
        gpu_memory_utilization: float, **others: Any,
    ) -> None:  # fmt: skip
        assert 0 < gpu_memory_utilization <= 1
        self.others = others
        self.base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.lora, self.room, self.limit = enable_lora, max_lora_rank, max_model_len
        self.loaded: dict[int, Any] = {}

    def generate(
        self,
        prompts: Sequence[dict],
        settings: Sequence[SamplingParams],
        *,
        use_tqdm: bool,
        lora_request: Any,
    ) -> list[Output]:
        assert not use_tqdm or isinstance(use_tqdm, bool)
        model = self.base
        if lora_request is not None:
            assert self.lora
            if lora_request.lora_int_id not in self.loaded:  # an adapter's number stands for its weights
                fresh = AutoModelForCausalLM.from_pretrained(self.base.name_or_path, dtype=torch.float32)
                adapted = PeftModel.from_pretrained(fresh, lora_request.lora_path).eval()
                assert max(c.r for c in adapted.peft_config.values()) <= self.room
                self.loaded[lora_request.lora_int_id] = adapted
            model = self.loaded[lora_request.lora_int_id]
        return [
            Output([Completion(self._one(model, prompt["prompt_token_ids"], one))])
            for prompt, one in zip(prompts, settings, strict=True)
        ]

    @torch.inference_mode()
    def _one(self, model: Any, prompt: list[int], settings: SamplingParams) -> list[int]:
        assert settings.include_stop_str_in_output
        assert not settings.skip_special_tokens
        source = torch.Generator().manual_seed(settings.seed or 0)
        ids: list[int] = []
        while len(ids) < settings.max_tokens and len(prompt) + len(ids) < self.limit:
            logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, -1]
            if settings.temperature:
                drawn = torch.multinomial((logits / settings.temperature).softmax(-1), 1, generator=source)
            else:
                drawn = logits.argmax()
            ids.append(int(drawn))
            text = self.tokenizer.decode(ids)
            if ids[-1] == self.tokenizer.eos_token_id or any(stop in text for stop in settings.stop):
                break
        return ids
