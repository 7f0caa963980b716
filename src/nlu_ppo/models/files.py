"""Reading a model's files, and what can be done where they can't be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from torch import nn

from nlu_ppo.config import LoraConfig, ModelConfig
from nlu_ppo.errors import ModelError


def source(model: ModelConfig) -> dict[str, Any]:
    """What every `from_pretrained` is told of a model."""
    # the word, not None: only of `main` does transformers look for a conversion to safetensors
    return {"revision": model.revision or "main", "trust_remote_code": model.trust_remote_code}


@contextmanager
def reading(model: ModelConfig) -> Iterator[None]:
    """Says of what goes wrong in here which model it is, and what to do.

    Raises:
        ModelError: the model can't be found or read, or its own code doesn't run.
    """
    where = f"model.path={model.path}"
    try:
        yield
    except (OSError, ValueError) as error:
        raise ModelError(f"{where}: {_advice(model, error) or error}") from error
    except Exception as error:
        if not model.trust_remote_code:
            if not isinstance(error, ImportError):
                raise
            what = (
                f"model.attention={model.attention}" if model.attention else where
            )  # whose package is missing
            hint = " (model.attention=null takes what transformers comes with)" if model.attention else ""
            raise ModelError(f"{what}: {error}{hint}") from error
        raise ModelError(
            f"{where}: the code that comes with the model (model.trust_remote_code=true) fails with "
            f"transformers {transformers.__version__}: {type(error).__name__}: {error}. Such code is often "
            f"written for an older transformers: take a model that transformers has a class for"
        ) from error


def _advice(model: ModelConfig, error: Exception) -> str | None:
    """A plain word on the commonest reasons."""
    told = str(error)
    if "trust_remote_code" in told:
        return (
            "transformers has no class for this model, and its repository brings code of its own. Nothing of it was "
            "run. Read it, and if you trust it, say model.trust_remote_code=true. It may not fit transformers "
            f"{transformers.__version__}, for which most such code was not written"
        )
    if "use_safetensors" in told or "no file named model.safetensors" in told:  # on the hub, in a directory
        at = f" at revision {model.revision}" if model.revision else ""
        return (
            f"there are no safetensors{at}, and weights are read from nothing else, since other files can run code. "
            f"Load it once with transformers, save it with save_pretrained, and say model.path=FOLDER"
        )
    return None


def unfit_targets(lora: LoraConfig, base: Any, error: Exception) -> ModelError:
    """The error of an adapter whose modules the base doesn't have."""
    linear = {name.rpartition(".")[2] for name, module in base.named_modules() if _adaptable(module)}
    return ModelError(
        f"lora.targets={lora.targets} don't fit {type(base).__name__} ({str(error).splitlines()[0]}). Its linear "
        f"layers are {', '.join(sorted(linear))}: name some of them with lora.targets=[...]"
    )


def _adaptable(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's linear layers
