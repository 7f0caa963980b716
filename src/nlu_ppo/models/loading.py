"""From the model and lora groups to a Policy."""

from __future__ import annotations

import importlib.util
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nlu_ppo import ranks
from nlu_ppo.config import LoraConfig, ModelConfig
from nlu_ppo.errors import ModelError
from nlu_ppo.models.compiling import compile_layers
from nlu_ppo.models.files import reading, source, unfit_targets
from nlu_ppo.models.lean import make_lean
from nlu_ppo.models.locate import ADAPTER, adapter_fingerprint, fingerprint, resolve_path
from nlu_ppo.models.policy import Policy
from nlu_ppo.models.quantizing import keep_differentiable, quantization_of
from nlu_ppo.models.sharding import Shards
from nlu_ppo.models.sharing import BASE
from nlu_ppo.storage import written_whole

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device of this process: of several on one machine (`ranks`) each has a GPU of its own."""
    chosen = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    if chosen.type == "cuda" and chosen.index is None and ranks.world() > 1:
        return torch.device("cuda", ranks.local_rank())
    return chosen


def load_policy(
    model: ModelConfig, lora: LoraConfig | None, seed: int, device: str = "auto", start: Path | None = None
) -> Policy:
    """Loads base weights and tokenizer, and adds a fresh adapter.

    Runs of one process that don't train the base weights share them, and only the first reads them.

    Args:
        lora: `None` for methods that train nothing; `lora.enabled=False` makes all weights trainable.
        seed: of the adapter's first weights.
        start: what a run with the same `model` and `lora` has saved, to go on from: the adapter's first weights, or
            with full fine-tuning the whole model.

    Raises:
        ModelError: the model can't be found or read, or the adapter doesn't fit it.
    """
    where, torch_device = resolve_path(model.path), choose_device(device)
    trains_base = lora is not None and not lora.enabled
    if model.shard and trains_base:
        raise ModelError("model.shard=true spreads frozen weights, and lora=none trains all: take an adapter")
    ranks.before_exchanges(None)  # or the weights of a run before this one would stay
    tokenizer = _load_tokenizer(model, where)
    if torch_device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(torch_device)  # each run of a process reports its own peak
    if model.shard:
        BASE.release()
        base = _load_base(model, where, torch.device("cpu"), dtype=_dtype(model, torch_device))
    elif trains_base or model.quantization:
        BASE.release()  # bitsandbytes keeps parts of its weights beside the parameters, where sharing doesn't look
        base = _load_base(model, where, torch_device, whole=start if trains_base else None)
    else:
        weights = fingerprint(model.path, model.revision), adapter_fingerprint(model.adapter)
        settings = _dtype(model, torch_device), model.attention, model.trust_remote_code, str(torch_device)
        base = BASE.get((*weights, *settings), lambda: _load_base(model, where, torch_device))
    if model.compile:
        compile_layers(base)
    context = _context_length(base.config, model)
    if trains_base:
        return Policy(base.requires_grad_(True), tokenizer, context)
    adapted: Any = base
    if lora is not None:
        torch.manual_seed(seed)
        adapted = _add_lora(base, lora)
        if start is not None:
            _fill_adapter(adapted.eval(), start)  # a new adapter's dropout is on
    shards = _shard(adapted, base, torch_device) if model.shard else None
    return Policy(
        adapted, tokenizer, context, pretrained=lora is not None and start is not None, shards=shards
    )


def _shard(model: Any, base: Any, device: torch.device) -> Shards:
    """Spreads the layers of `base` over the processes, and puts the rest of the model on the device.

    Raises:
        ModelError: the layers aren't where they usually are.
    """
    trunk = getattr(base, str(base.base_model_prefix))
    layers = getattr(trunk, "layers", None) or getattr(trunk, "h", None)
    if not layers:
        raise ModelError(f"model.shard=true doesn't know where the layers of {type(base).__name__} are")
    make_lean(model)  # while all weights are whole, since it tries them
    shards = Shards(layers, device)
    model.to(device)
    return shards


def load_parts(model: ModelConfig, device: str = "auto", start: Path | None = None) -> tuple[Any, Any, int]:
    """A base model of the caller's own, frozen, its tokenizer, and its context length in tokens.

    Args:
        start: what a run with the same `model` has saved: an adapter is merged, a whole model taken in its place.

    Raises:
        ModelError: the model can't be found or read, or the adapter doesn't fit it.
    """
    where, whole = resolve_path(model.path), start
    if start is not None and (start / "adapter_config.json").is_file():
        whole = None
    tokenizer, base = _load_tokenizer(model, where), _load_base(model, where, choose_device(device), whole)
    if start is not None and whole is None:
        base = load_adapter(base, start).merge_and_unload().eval().requires_grad_(False)
    return base, tokenizer, _context_length(base.config, model)


def _fill_adapter(model: PeftModel, folder: Path) -> None:
    """Puts saved weights into an adapter of the same shape.

    Raises:
        ModelError: it has another shape.
    """
    saved = load_file(folder / "adapter_model.safetensors")
    mine = get_peft_model_state_dict(model)
    if {n: t.shape for n, t in saved.items()} != {n: t.shape for n, t in mine.items()}:
        raise ModelError(f"{folder}: this adapter has another shape than the run's (lora=...)")
    set_peft_model_state_dict(model, saved)


def _load_tokenizer(model: ModelConfig, where: str) -> Any:
    with reading(model):
        return AutoTokenizer.from_pretrained(where, **source(model))


def _load_base(
    model: ModelConfig,
    where: str,
    device: torch.device,
    whole: Path | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """The base model with its first adapter merged, on the device, frozen; or a `whole` model that a run saved."""
    base: Any
    quantization = quantization_of(model, device)
    quantized = {"quantization_config": quantization, "device_map": {"": device}} if quantization else {}
    with reading(model):
        base = AutoModelForCausalLM.from_pretrained(
            whole or where,
            dtype=dtype or _dtype(model, device),
            attn_implementation=model.attention,
            use_safetensors=True,
            **source(model),
            **quantized,
        )
    if base.config.get_text_config() is not base.config:
        raise ModelError(
            f"model.path={model.path}: {type(base).__name__} reads more than text, and this package can't train its "
            f"language model alone: take a size or a conversion of it that is a language model only"
        )
    if quantization is not None:
        keep_differentiable(base)
        return base.eval().requires_grad_(False)  # it is on the device, and can't be moved
    if model.adapter and whole is None:
        # Merged, so that a method that starts from it has it in its reference as well.
        base = load_adapter(base, Path(model.adapter)).merge_and_unload()
    return base.to(device).eval().requires_grad_(False)


def _dtype(model: ModelConfig, device: torch.device) -> torch.dtype:
    if model.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[model.dtype]


def _context_length(config: Any, model: ModelConfig) -> int:
    for name in ("max_position_embeddings", "max_seq_len", "n_positions", "seq_length"):
        known = getattr(config, name, None)
        if known:
            if model.context_length and model.context_length > known:
                raise ModelError(
                    f"model.context_length={model.context_length} is more than the model's {known} ({name})"
                )
            return model.context_length or int(known)
    if not model.context_length:
        raise ModelError("the model's config names no context length: set model.context_length")
    return model.context_length


def _add_lora(base: Any, lora: LoraConfig) -> PeftModel:
    targets: Any = "all-linear" if lora.targets == ["all-linear"] else lora.targets
    config = PeftLoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type] # PEFT divides it, so that a float is as good
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules=targets,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(base, config)
    except ValueError as error:
        raise unfit_targets(lora, base, error) from error


def save_adapter(policy: Policy, folder: Path) -> None:
    """Writes the adapter (or, with full fine-tuning, the whole model) and the tokenizer as safetensors.

    Raises:
        DiskError: there is no room; an older folder of that name stays.
    """
    with written_whole(folder) as place:
        policy.model.save_pretrained(place, safe_serialization=True)
        policy.tokenizer.save_pretrained(place)


def load_trained(model: ModelConfig, folder: Path, device: str = "auto") -> Policy:
    """A policy as `save_adapter` left it in `folder`: the adapter on its base, or all weights.

    The adapter isn't merged, so that the policy computes what it did in its run.

    Raises:
        ModelError: the base can't be found or read, or the adapter doesn't fit it.
    """
    if not (folder / ADAPTER).is_file():
        return load_policy(replace(model, path=str(folder), revision=None, adapter=None), None, 0, device)
    base = load_policy(model, None, 0, device)
    adapted = load_adapter(base.model, folder).eval().requires_grad_(False)
    return Policy(adapted, base.tokenizer, base.context_length)


def load_adapter(base: Any, folder: Path) -> PeftModel:
    """Puts a saved adapter on a base model.

    Raises:
        ModelError: it is an adapter of another model, or in a file that can run code.
    """
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"{folder}: there is no adapter_model.safetensors, and adapters are read from nothing else, since other "
            f"files can run code. Load it once with PEFT, and save it with save_pretrained"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # PEFT only warns of tensors that the file lacks; we compare below
            model = PeftModel.from_pretrained(base, str(folder))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise _wrong_adapter(folder, base, lines[min(1, len(lines) - 1)]) from error
    saved = load_file(folder / "adapter_model.safetensors").keys()
    odd = sorted(saved ^ get_peft_model_state_dict(model).keys())
    if odd:
        raise _wrong_adapter(folder, base, f"{odd[0]} is in one of them only")
    return model


def _wrong_adapter(folder: Path, base: Any, detail: str) -> ModelError:
    name = f"{base.config.name_or_path} ({type(base).__name__})"
    return ModelError(
        f"model.adapter={folder}: this adapter was trained on another model than {name}: {detail}"
    )


def peak_memory_bytes(device: torch.device) -> int:
    """Peak of the CUDA allocator, or of the process on CPU (which knows no reset)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if importlib.util.find_spec("resource") is None:  # not on Windows
        return 0
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if os.uname().sysname == "Darwin" else usage * 1024
