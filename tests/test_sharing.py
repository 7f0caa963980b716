"""Runs of one process share their base model: it is read once, stays as it is, and changes no result."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import ROOT, command, config_of, run_of
from torch import nn
from transformers import AutoModelForCausalLM

from nlu_ppo.models.loading import load_policy
from nlu_ppo.models.locate import TINY
from nlu_ppo.models.sharing import BASE, SharedBase
from nlu_ppo.run import execute

SHORT = (
    "task=toy_sentiment", "task.limit.train=48", "task.limit.eval=24", "task.selection=8", "method.max_steps=3",
    "eval.bootstrap_samples=20", "tracking=none", "device=cpu",
)  # fmt: skip
METHODS = ("sft", "ppo", "zero_shot")


def digest(model: nn.Module) -> str:
    """All tensors of a model, to the bit."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one whenever a base model is read."""
    BASE.release()  # what other tests left
    found: list[Any] = []
    read = AutoModelForCausalLM.from_pretrained

    def counted(*args: Any, **kwargs: Any) -> Any:
        found.append(read(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    return found


def outcome(folder: Path) -> dict[str, Any]:
    """All of a run folder that doesn't tell of time and place."""
    result = json.loads((folder / "result.json").read_text())
    steps = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in steps.read_text().splitlines()] if steps.exists() else []
    files = [folder / "predictions.jsonl", *sorted((folder / "adapter").glob("*.safetensors"))]
    return {
        "metrics": result["metrics"],
        "best": result["best"],
        "steps": [{k: v for k, v in line.items() if "seconds" not in k} for line in lines],
        **{file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
    }


@pytest.mark.slow
def test_runs_of_one_process_read_the_model_once_and_give_what_processes_of_their_own_give(
    tmp_path: Path, reads: list[Any]
) -> None:
    shared = tmp_path / "shared"
    untouched = digest(AutoModelForCausalLM.from_pretrained(TINY))
    reads.clear()
    for method in METHODS:
        execute(run_of(shared / method, *SHORT, f"method={method}"))
        assert [digest(model) for model in reads] == [untouched]

    alone = tmp_path / "alone"
    subprocess.run(
        command("-m", *SHORT, "hydra/launcher=local", "hydra.launcher.threads=1", "hydra.launcher.slots=1",
                "method=" + ",".join(METHODS), f"outputs={alone}", "study=s"),
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    for method in METHODS:
        (folder,) = alone.glob(f"s/*/*/{method}/*")
        assert outcome(folder) == outcome(shared / method), method


def test_a_run_that_trains_the_base_weights_has_its_own(reads: list[Any]) -> None:
    tiny, lora, full = (
        config_of("model=tiny").model,
        config_of("lora=paper").lora,
        config_of("lora=none").lora,
    )
    first = load_policy(tiny, lora, 0, "cpu")
    before = digest(reads[0])
    again = load_policy(tiny, None, 0, "cpu")
    assert len(reads) == 1
    assert again.head.weight is first.head.weight
    trained = load_policy(tiny, full, 0, "cpu")
    assert len(reads) == 2
    assert all(parameter.requires_grad for parameter in trained.base.parameters())
    with torch.no_grad():
        trained.head.weight.zero_()
    assert digest(reads[0]) == before
    after = load_policy(tiny, lora, 0, "cpu")
    assert len(reads) == 3
    assert digest(reads[2]) == before
    assert not after.head.weight.requires_grad


def test_what_one_puts_into_the_modules_is_gone_for_the_next() -> None:
    shared, plain = (
        SharedBase(),
        nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval().requires_grad_(False),
    )
    one = shared.get("a", lambda: plain)
    one[0].register_forward_hook(lambda *_: torch.zeros(1, 3))
    one[0].forward = None
    one[1].running_mean += 1  # no parameter: each has its own
    one.append(nn.ReLU())
    other = shared.get("a", lambda: pytest.fail("it was there already"))
    x = torch.randn(2, 3)
    assert torch.equal(other(x), plain(x))
    assert other[0].weight is plain[0].weight
    assert len(other) == 2


def test_weights_that_somebody_wrote_to_are_read_again() -> None:
    shared = SharedBase()
    made = [nn.Linear(2, 2, bias=False).requires_grad_(False) for _ in range(3)]
    left = iter(made)
    one = shared.get("a", lambda: next(left))
    with torch.no_grad():
        one.weight.add_(1)
    assert shared.get("a", lambda: next(left)).weight is made[1].weight
    assert shared.get("b", lambda: next(left)).weight is made[2].weight
