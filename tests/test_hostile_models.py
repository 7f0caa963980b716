"""Model files that hold code: nothing of it runs, wherever they are planted, and the error says what to do."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import run_of
from safetensors.torch import load_file

from nlu_ppo.errors import ModelError
from nlu_ppo.run import execute
from nlu_ppo.storage import SEAL, seal

FAULT = "A model file that holds code"
SMALL = ("task=toy_sentiment", "task.limit.train=16", "task.limit.eval=4", "eval.bootstrap_samples=10",
         "eval.likelihood=false", "tracking=none")  # fmt: skip


class Bomb:
    """Makes a flag when it is unpickled."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.flag),)


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    """A folder that is there as soon as planted code has run; the bomb itself is shown to work."""
    flag = tmp_path / "flag"
    pickle.loads(pickle.dumps(Bomb(flag)))
    assert flag.is_dir()
    flag.rmdir()
    return flag


def plant(path: Path, flag: Path, zipped: bool) -> None:
    if zipped:
        torch.save({"weight": Bomb(flag)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(flag)))


@pytest.mark.promise(FAULT, "Weights in a pickle are refused with advice, and nothing in them runs")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("words", [("method=zero_shot",), ("method=sft", "model.kind=encoder")])
def test_pickled_weights(
    model_dir: Path, tmp_path: Path, flag: Path, zipped: bool, words: tuple[str, ...]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_dir, folder)
    (folder / "model.safetensors").unlink()
    plant(folder / "pytorch_model.bin", flag, zipped)
    with pytest.raises(ModelError, match="safetensors"):
        execute(run_of(tmp_path / "run", *SMALL, "model=local", f"model.path={folder}", *words))
    assert not flag.exists()


@pytest.mark.promise(FAULT, "An adapter in a pickle is refused, and nothing in it runs")
@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_adapter(model_dir: Path, tmp_path: Path, flag: Path, zipped: bool) -> None:
    first = run_of(tmp_path / "first", *SMALL, "model=local", f"model.path={model_dir}", "method=sft",
                   "method.max_steps=1", "method.batch_size=4")  # fmt: skip
    execute(first)
    adapter = tmp_path / "adapter"
    shutil.copytree(first.folder / "adapter", adapter)
    (adapter / "adapter_model.safetensors").unlink()
    plant(adapter / "adapter_model.bin", flag, zipped)
    with pytest.raises(ModelError, match="adapter"):
        execute(run_of(tmp_path / "run", *SMALL, "model=local", f"model.path={model_dir}", "method=zero_shot",
                       f"model.adapter={adapter}"))  # fmt: skip
    assert not flag.exists()


@pytest.mark.promise(FAULT, "A checkpoint in which one was planted, seal and all, runs nothing of it")
@pytest.mark.parametrize("method", ["sft", "ppo"])
def test_planted_checkpoints(
    model_dir: Path, tmp_path: Path, flag: Path, method: str, figures: dict[str, Any]
) -> None:
    more = ("method.batch_size=4",) if method == "sft" else ("method.batch_size=4", "method.minibatch_size=4")
    words = (*SMALL, "model=local", f"model.path={model_dir}", f"method={method}", "method.max_steps=4",
             "method.checkpoint_every=2", "method.select_every=2", *more)  # fmt: skip
    run = run_of(tmp_path / "run", *words)
    execute(run)
    checkpoints = sorted(path for path in (run.folder / "checkpoints").iterdir() if path.is_dir())
    kept = checkpoints[0]
    for other in checkpoints[1:]:
        shutil.rmtree(other)
    planted = 0
    names = [
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "pytorch_model.bin",
        "adapter_model.bin",
    ]
    for name in names:
        copy = tmp_path / "copy"
        shutil.copytree(run.folder, copy)
        place = copy / "checkpoints" / kept.name
        plant(place / name, flag, zipped=True)
        (place / SEAL).unlink()
        seal(place)
        (copy / "result.json").unlink()
        with contextlib.suppress(pickle.UnpicklingError):  # PyTorch's own refusal
            execute(run_of(copy, *words))
        assert not flag.exists(), name
        planted += 1
        shutil.rmtree(copy)
    figures["planted"] = planted
    assert load_file(run.folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.promise(FAULT, "Code of a model's own folder runs only with model.trust_remote_code=true")
def test_code_in_a_model_folder(model_dir: Path, tmp_path: Path, flag: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "planted",
        "auto_map": {"AutoConfig": "planted.C", "AutoModelForCausalLM": "planted.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "planted.py").write_text(f"import os\nos.mkdir({str(flag)!r})\n")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"auto_map": {"AutoTokenizer": ["planted.T", None]}, "tokenizer_class": "T"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    for kind in ("decoder", "encoder"):
        words = ("method=sft", f"model.kind={kind}", "model=local", f"model.path={folder}")
        with pytest.raises(ModelError, match="trust_remote_code"):
            execute(run_of(tmp_path / kind, *SMALL, *words))
        assert not flag.exists()
