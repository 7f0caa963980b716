"""NaN in loss, gradients, weights or a model's file, and rewards that fail: one clear error, and a good state kept.

Real runs of train.py in processes of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from attempts import COMMON, TRAINING, differences, step_of
from forked import Forge, Forked, forge
from safetensors.torch import load_file, save_file

from nlu_ppo.models.locate import TINY
from nlu_ppo.storage import damage

SETTINGS = ("task=toy_nli", "method.max_steps=5", "method.checkpoint_every=1", "method.select_every=0")
RUN = (*COMMON, *TRAINING, *SETTINGS)
METHODS = ("sft", "ppo", "grpo", "rloo", "reward_model")
in_suite = [
    pytest.param(name, marks=() if name in ("sft", "ppo") else pytest.mark.thorough) for name in METHODS
]


@pytest.fixture(scope="module")
def forked() -> Iterator[Forge]:
    with forge() as source:
        yield source


def start(
    forked: Forge, folder: Path, *arguments: str, before: str = "", common: Sequence[str] = RUN
) -> Forked:
    places = (f"hydra.run.dir={folder}", f"outputs={folder.parent}")
    return forked.start(folder.with_name(folder.name + ".log"), *common, *places, *arguments, before=before)


def good_checkpoints(folder: Path) -> list[int]:
    """Steps of the checkpoints, all of which are whole and hold finite numbers."""
    found = [p for p in (folder / "checkpoints").glob("*-*") if p.is_dir()]
    for checkpoint in found:
        assert damage(checkpoint) is None
        for file in checkpoint.glob("*.safetensors"):
            for name, tensor in load_file(file).items():
                assert tensor.is_floating_point() <= bool(torch.isfinite(tensor.float()).all()), (file, name)
    return sorted(map(step_of, found))


def check_failed(run: Forked, folder: Path, *words: str) -> str:
    """Exit code 2, one error with these words, no traceback, and result.json says the same; returns the error."""
    assert run.wait() == 2, run.said()[-3000:]
    (error,) = run.errors()
    assert "Traceback" not in run.said()
    for word in words:
        assert word in error, error
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "failed"
    assert result["error"].partition(": ")[2] == error.removeprefix("error: ")
    return error


# A fault of the machine: the loss of one backward pass is NaN, where a flag is there.
CHANCE = """
import os, torch
backward, count = torch.Tensor.backward, 0
def faulty(self, *args, **kwargs):
    global count
    count += 1
    return backward(self * float("nan") if count == {at} and os.path.exists({flag!r}) else self, *args, **kwargs)
torch.Tensor.backward = faulty
"""


@pytest.mark.promise(
    "NaN in the loss by chance",
    "the run ends with the step and what to do, no checkpoint holds it, and the same command ends as if undisturbed",
)
@pytest.mark.parametrize("method", in_suite)
def test_a_loss_that_is_nan_once(method: str, forked: Forge, tmp_path: Path, figures: dict[str, Any]) -> None:
    flag, at = tmp_path / "flag", {"ppo": 14, "grpo": 4, "rloo": 4}.get(method, 4)
    before = CHANCE.format(flag=str(flag), at=at)
    whole, folder, words = tmp_path / "whole", tmp_path / "run", (f"method={method}",)
    undisturbed = start(forked, whole, *words, before=before)
    assert undisturbed.wait() == 0, undisturbed.said()[-3000:]
    flag.touch()
    error = check_failed(
        start(forked, folder, *words, before=before), folder, "no longer finite", "learning_rate"
    )
    steps = good_checkpoints(folder)
    assert f"step {steps[-1] + 1}: " in error
    flag.unlink()
    again = start(forked, folder, *words)
    assert again.wait() == 0, again.said()[-3000:]
    assert differences(whole, folder) == []
    figures["checkpoints left"] = len(steps)


@pytest.mark.promise(
    "a learning rate that makes the weights run away",
    "the run fails with the step, and no checkpoint holds NaN",
)
@pytest.mark.parametrize("method", in_suite)
def test_a_learning_rate_that_is_far_too_high(method: str, forked: Forge, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = start(forked, folder, f"method={method}", "method.learning_rate=1e30")
    check_failed(run, folder, "step ", "lower method.learning_rate")
    good_checkpoints(folder)


@pytest.mark.promise(
    "a model's file with NaN among its weights", "the run fails and says so, in every method"
)
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(m, marks=() if m == "zero_shot" else pytest.mark.thorough)
        for m in ("zero_shot", *METHODS)
    ],
)
def test_a_model_that_holds_nan(method: str, forked: Forge, tmp_path: Path) -> None:
    model, folder = tmp_path / "model", tmp_path / "run"
    model.mkdir()
    for file in TINY.iterdir():
        if file.suffix == ".safetensors":
            tensors = load_file(file)
            name = next(n for n in tensors if n.endswith("mlp.down_proj.weight"))
            tensors[name][0, 0] = float("nan")
            save_file(tensors, model / file.name, metadata={"format": "pt"})
        elif file.is_file():
            (model / file.name).write_bytes(file.read_bytes())
    words = [f"method={method}", "model=local", f"model.path={model}", "model.learning_rate.sft=1e-3",
             "model.learning_rate.ppo=1e-3"]  # fmt: skip
    if method == "zero_shot":
        words = [f"method={method}", *words[1:3]]
    common = [w for w in RUN if not (method == "zero_shot" and w.startswith("method."))]
    run = start(forked, folder, *words, common=common)
    check_failed(run, folder, "its weights are damaged" if method == "zero_shot" else "")
    assert good_checkpoints(folder) == []


# -- rewards -------------------------------------------------------------------------------------------------------

REWARDS = """
import torch
paid = 0

def later(value):
    def reward(completion, answer, example, *, task, config):
        global paid
        paid += 1
        return value() if paid > 20 else float(answer == example.label)
    return reward

def fall():
    return {}["no such key"]

raises = later(fall)
nan, inf = later(lambda: float("nan")), later(lambda: -float("inf"))
text, nothing, several = later(lambda: "1.0"), later(lambda: None), later(lambda: [1.0, 2.0])
tensor, huge = later(lambda: torch.ones(2)), later(lambda: 10 ** 400)

def few(completion):
    return 1.0
"""
SAID = {
    "raises": "KeyError: 'no such key'", "nan": "gave nan", "inf": "gave -inf", "text": "gave '1.0'",
    "nothing": "gave None", "several": "gave [1.0, 2.0]", "tensor": "gave tensor([1., 1.])", "huge": "gave 1000",
    "few": "unexpected keyword argument 'task'",
}  # fmt: skip


@pytest.mark.promise(
    "a reward function that raises, or gives NaN, infinity or what is no number",
    "the run fails with function, example and what it gave, and keeps its good checkpoints",
)
@pytest.mark.parametrize(
    ("method", "name"),
    [
        pytest.param(
            m, n, marks=() if (m, n) in (("ppo", "raises"), ("grpo", "nan")) else pytest.mark.thorough
        )
        for m in ("ppo", "grpo")
        for n in SAID
    ],
)
def test_a_reward_function_that_fails(method: str, name: str, forked: Forge, tmp_path: Path) -> None:
    rewards, folder = tmp_path / "rewards.py", tmp_path / "run"
    rewards.write_text(REWARDS)
    run = start(forked, folder, f"method={method}", f"reward.name={rewards}:{name}", "method.batch_size=16")
    error = check_failed(run, folder, f"rewards.py:{name}", "example train-", SAID[name], "Mend the function")
    if name == "raises":
        assert f"{rewards}:13: KeyError" in error
    if method == "ppo" and name != "few":
        assert good_checkpoints(folder) == [1]
