"""vLLM as the decoder of greedy and sampled completions (`model.decoder=vllm`), for large evaluations and rollouts.

It holds the base weights a second time, on the GPU, and takes the policy's adapter whenever that has changed. Only
drawing is its work: label likelihoods, and all log-probabilities and values that PPO learns from, are this package's
own, from the path that training takes.

Written for vLLM 0.33 (`LLM.generate` with token prompts, `LoRARequest`).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from nlu_ppo.config import LoraConfig, ModelConfig
from nlu_ppo.errors import ConfigError, ModelError
from nlu_ppo.inference.tree import Ids
from nlu_ppo.models.locate import resolve_path
from nlu_ppo.models.policy import Policy

log = logging.getLogger(__name__)

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for


class VllmDecoder:
    """One engine for one policy.

    Args:
        lora: the adapter's settings; `None` if the policy has none.

    Raises:
        ConfigError: vLLM isn't installed, or the adapter's rank is too high for it.
        ModelError: vLLM can't load it.
    """

    def __init__(self, policy: Policy, model: ModelConfig, lora: LoraConfig | None, seed: int) -> None:
        vllm = _vllm()
        self._vllm, self._policy = vllm, policy
        self._home = tempfile.TemporaryDirectory(prefix="nlu_ppo-adapters-")
        self._sent: tuple[tuple[int, int], ...] | None = None
        self._request: Any = None
        self._sendings = 0
        adapted = policy.has_adapter and lora is not None
        try:
            self._engine = vllm.LLM(
                model=resolve_path(model.path),
                revision=model.revision,
                trust_remote_code=model.trust_remote_code,
                dtype="auto" if model.dtype == "auto" else model.dtype,
                seed=seed,
                max_model_len=policy.context_length,
                gpu_memory_utilization=model.decoder_memory,
                enable_prefix_caching=True,
                enable_lora=adapted,
                **({"max_lora_rank": _room(lora.r)} if adapted and lora is not None else {}),
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise ModelError(
                f"vLLM can't load model.path={model.path}: {error} (model.decoder=own needs none)"
            ) from error

    def complete(
        self,
        prompts: Sequence[Ids],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        numbers: Tensor | None = None,
        progress: bool = False,
    ) -> list[list[int]]:
        """Completions as `decoder.generate` gives them: each ends with the closing tag, end-of-sequence, or the limit.

        Args:
            numbers: from `decoder.random_numbers`; the first of each row becomes the row's seed. `None` if greedy.
        """
        if not prompts:
            return []
        seeds = [None] * len(prompts) if numbers is None else [int(x * 2**31) for x in numbers[:, 0].tolist()]
        settings = [
            self._vllm.SamplingParams(
                temperature=temperature,
                top_k=top_k or 0,
                top_p=top_p or 1.0,
                seed=seed,
                max_tokens=max_new_tokens,
                stop=[self._policy.closing],
                include_stop_str_in_output=True,
                skip_special_tokens=False,
            )
            for seed in seeds
        ]
        outputs = self._engine.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            settings,
            use_tqdm=progress,
            lora_request=self._adapter(),
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    def _adapter(self) -> Any:
        """The policy's adapter as it is now, handed over again if it has changed since the last time."""
        if not self._policy.has_adapter:
            return None
        parameters = [p for n, p in self._policy.trainable() if not n.startswith("value_head.")]
        state = tuple((p.data_ptr(), p._version) for p in parameters)
        if state != self._sent or self._request is None:
            self._sendings += 1
            folder = Path(self._home.name) / str(self._sendings)
            self._policy.model.save_pretrained(folder, safe_serialization=True)
            request = self._vllm.lora.request.LoRARequest
            self._request, self._sent = (
                request(f"policy-{self._sendings}", self._sendings, str(folder)),
                state,
            )
        return self._request


def _room(rank: int) -> int:
    fitting = [room for room in RANKS if room >= rank]
    if not fitting:
        raise ConfigError(f"lora.r={rank} is more than vLLM takes ({RANKS[-1]}): take model.decoder=own")
    return fitting[0]


def _vllm() -> Any:
    try:
        import vllm
        import vllm.lora.request
    except ImportError as error:
        raise ConfigError(
            f"model.decoder=vllm needs the package vllm and a CUDA GPU ({error}): pip install -e '.[vllm]' brings it, "
            f"with versions of torch and transformers of its own choice; model.decoder=own needs none"
        ) from error
    return vllm
