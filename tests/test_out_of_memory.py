"""What doesn't fit into memory is done again in smaller parts, and ends as if it had been done in these from the
beginning. Errors are injected by the size of a forward pass; one test has a real allocation fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import run_of
from float64 import in_float64
from models import random_policy
from safetensors.torch import load_file
from transformers.models.llama.modeling_llama import LlamaModel

from nlu_ppo.config import PPOConfig
from nlu_ppo.errors import ModelError
from nlu_ppo.inference.decoder import draw, generate, random_numbers, score_answers
from nlu_ppo.models.policy import Policy
from nlu_ppo.models.room import NoRoomError, Room, advised, fitting, in_batches, is_out_of_memory
from nlu_ppo.ppo.rollout import Rollouts, _score, collect
from nlu_ppo.ppo.update import update
from nlu_ppo.prompting import Prompt
from nlu_ppo.run import execute

SAID = "CUDA out of memory. Tried to allocate 2.00 GiB."


@contextmanager
def memory_for(fits: Callable[[torch.Tensor], bool]) -> Iterator[list[tuple[int, ...]]]:
    """Forward passes of a Llama fail whose tokens, (rows, tokens), don't fit; gives the shapes of those that did."""
    forward, done = LlamaModel.forward, []

    def limited(self: Any, input_ids: Any = None, **kwargs: Any) -> Any:
        out = forward(self, input_ids=input_ids, **kwargs)  # as far as that: an error comes late
        if not fits(input_ids):
            raise torch.OutOfMemoryError(SAID)
        done.append(tuple(input_ids.shape))
        return out

    LlamaModel.forward = limited  # type: ignore[method-assign]
    try:
        yield done
    finally:
        LlamaModel.forward = forward  # type: ignore[method-assign]


def tokens(n: int, seed: int) -> list[int]:
    return torch.randint(0, 256, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


PROMPTS = [tokens(20, 1) + tokens(5 + i, 10 + i) for i in range(12)]


def config(**settings: Any) -> PPOConfig:
    return PPOConfig(
        name="ppo", learning_rate=1e-2, batch_size=12, minibatch_size=6, ppo_epochs=2, **settings
    )


def policy_and_rollouts(settings: PPOConfig) -> tuple[Policy, Rollouts]:
    policy = random_policy("llama", dtype=torch.float64)
    policy.add_value_head()
    prompts = [Prompt("", tuple(p), False) for p in PROMPTS]
    return policy, collect(
        policy, prompts, prompts, lambda text, _: (float(len(text) % 3), None, False), settings, 5, 0.1,
        torch.Generator().manual_seed(5),
    )  # fmt: skip


def updated(
    settings: PPOConfig, fits: Callable[[torch.Tensor], bool] = lambda ids: True
) -> tuple[dict, dict, Policy]:
    with in_float64():
        policy, rollouts = policy_and_rollouts(config(share_prefix=settings.share_prefix))
        optimizer = torch.optim.AdamW([p for _, p in policy.trainable()], lr=1e-2)
        with memory_for(fits):
            values = update(policy, optimizer, rollouts, settings, torch.Generator().manual_seed(3))
    return policy.state_dict(), values, policy


@pytest.mark.parametrize(
    ("large", "small", "fits"),
    [
        # rows, plain: 6 rows fail, 3 fit
        ({"micro_batch_size": 6, "share_prefix": False}, {"micro_batch_size": 3, "share_prefix": False}, "rows"),
        ({"micro_batch_size": None, "share_prefix": False}, {"micro_batch_size": 3, "share_prefix": False}, "rows"),
        # packed rows: 64 is more than a minibatch has, so that 6 are halved
        ({"micro_batch_size": 64}, {"micro_batch_size": 3}, "tokens"),
        ({"micro_batch_tokens": 160}, {"micro_batch_tokens": 80}, "tokens"),
    ],
)  # fmt: skip
def test_an_update_ends_as_with_the_smaller_size_from_the_beginning(
    large: dict, small: dict, fits: str
) -> None:
    limit = (lambda ids: len(ids) <= 3) if fits == "rows" else (lambda ids: ids.numel() <= 80)
    found, values, policy = updated(config(**large), limit)
    expected, expected_values, _ = updated(config(**small), limit)
    unlimited, _, _ = updated(config(**large))
    assert values == expected_values
    assert policy.room.found["the update"] == next(iter(small.values()))  # remembered for the rest
    for name in found:
        assert torch.equal(found[name], expected[name]), name
        assert torch.allclose(found[name], unlimited[name], rtol=1e-9, atol=1e-12), name
    assert any(
        not torch.equal(a, b) for a, b in zip(found.values(), random_state(), strict=True)
    )  # it did train


def random_state() -> list[torch.Tensor]:
    policy = random_policy("llama", dtype=torch.float64)
    policy.add_value_head()
    return list(policy.state_dict().values())


def test_an_update_fails_in_its_second_part(caplog: pytest.LogCaptureFixture) -> None:
    """What the first part of a minibatch has left in the gradient is dropped, and one line says what happens."""
    calls = 0

    def fits(ids: torch.Tensor) -> bool:
        nonlocal calls
        calls += 1
        return calls != 4  # the second of two parts in the second minibatch

    settings = config(micro_batch_size=3)
    found, values, policy = updated(settings, fits)
    unlimited, expected, _ = updated(settings)
    for name in found:
        assert torch.allclose(found[name], unlimited[name], rtol=1e-9, atol=1e-12), name
    assert values == pytest.approx(expected, rel=1e-9, abs=1e-12)
    (line,) = [r.message for r in caplog.records if "out of memory" in r.message]
    assert "in the update with 3 rows at a time; going on with 1" in line
    assert SAID in line
    assert policy.room.found == {"the update": 1}


def test_scoring_in_smaller_parts() -> None:
    with in_float64():
        policy, rollouts = policy_and_rollouts(config(micro_batch_size=12))
        rows = (policy, rollouts.prompts, rollouts.completions, config(micro_batch_size=12), True)
        with torch.no_grad():
            whole = _score(*rows)
            with memory_for(lambda ids: ids.numel() <= 70) as shapes:
                parts = _score(*rows)
    assert len(shapes) == 4
    assert policy.room.found["scoring"] == 3
    for name in ("logprobs", "values", "entropy", "mask"):
        assert torch.allclose(getattr(parts, name), getattr(whole, name), rtol=1e-12, atol=1e-12), name


out_of_memory = pytest.mark.promise(
    "out of memory",
    "what doesn't fit is done again in halves, to the end of a run with smaller sizes; where one row doesn't fit, one "
    "line says what to do",
)


@out_of_memory
def test_one_row_that_does_not_fit_is_a_clear_error() -> None:
    with pytest.raises(
        NoRoomError, match=r"one row at a time.*Tried to allocate.*gradient_checkpointing"
    ) as raised:
        updated(config(micro_batch_size=4), lambda ids: False)
    assert isinstance(raised.value, ModelError)  # a user's error: no traceback
    with pytest.raises(NoRoomError, match="with one row"):
        updated(config(micro_batch_tokens=500), lambda ids: False)


def test_decoding_in_smaller_batches_keeps_what_is_done() -> None:
    policy = random_policy("llama")
    answers = [[tokens(2, 50), tokens(3, 51)] for _ in PROMPTS]
    completions = generate(policy, PROMPTS, 6, batch_size=12)
    scores = score_answers(policy, PROMPTS, answers, batch_size=24)
    numbers = random_numbers(policy, len(PROMPTS), 6, torch.Generator().manual_seed(1))
    drawn = draw(policy, PROMPTS, 6, temperature=1.0, numbers=numbers)
    steps = 0

    def fits(ids: torch.Tensor) -> bool:
        nonlocal steps
        step = len(ids) > 1 and ids.shape[1] == 1  # of several rows, behind the prompts
        steps += step
        return ids.numel() <= 100 and not (step and steps == 3)

    with memory_for(fits):
        assert generate(policy, PROMPTS, 6, batch_size=None) == completions
        assert policy.room.found["decoding"] == 3  # 12 prompts are too long, 6 fail at their fourth token
        found = score_answers(policy, PROMPTS, answers, batch_size=24)
        again = draw(policy, PROMPTS, 6, temperature=1.0, numbers=numbers)
    for row, expected in zip(found, scores, strict=True):
        assert row == pytest.approx(expected, abs=1e-5)
    assert [(d.row, d.ids) for d in again] == [(d.row, d.ids) for d in drawn]  # whatever batch a row is in
    assert policy.room.found["drawing"] < 12
    assert policy.room.found["scoring answers"] < 12


def test_rows_that_are_done_are_not_done_again() -> None:
    room, seen = Room(), []

    def run(rows: list[int]) -> Iterator[int]:
        for row in rows:
            if len(rows) > 2 and row == 3:
                raise MemoryError
            seen.append(row)
            yield row

    shown: list[int] = []
    in_batches(room, "test", range(8), 4, run, int, shown.append)
    assert seen == list(range(8))
    assert shown == [3, 2, 2, 1]  # 3 of 4 were done before it failed, then two at a time
    assert room.found == {"test": 2}


def test_errors_of_another_kind_pass() -> None:
    def wrong(size: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        fitting(Room(), "test", 4, 4, wrong)
    with pytest.raises(RuntimeError, match="mat1"), advised():
        wrong(1)
    with pytest.raises(NoRoomError, match="smaller model"), advised():
        raise torch.OutOfMemoryError(SAID)


def test_a_real_allocation_that_fails_is_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60)
    assert is_out_of_memory(raised.value)


# -- whole runs ----------------------------------------------------------------------------------------------

SMALL = (
    "model=tiny", "task=toy_nli", "task.limit.train=32", "task.limit.eval=8", "task.selection=8", "tracking=none",
    "eval.bootstrap_samples=10", "eval.likelihood=false", "method.select_every=2", "method.batch_size=8",
    "method.max_steps=4",
)  # fmt: skip


def result_of(folder: Path, *overrides: str) -> tuple[dict[str, torch.Tensor], list[dict[str, float]], float]:
    result = execute(run_of(folder, *SMALL, *overrides))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds")
    return load_file(folder / "adapter" / "adapter_model.safetensors"), lines, result.get("score", 0.0)


def rows_to_train_on(most: int, since: int = 0) -> Callable[[torch.Tensor], bool]:
    """Room for so many rows outside of decoding; `since`: from that forward pass on."""
    count = 0

    def fits(ids: torch.Tensor) -> bool:
        nonlocal count
        if torch.is_inference_mode_enabled():
            return True
        count += 1
        return count <= since or len(ids) <= most

    return fits


@out_of_memory
@pytest.mark.parametrize(
    "method",
    [
        ("method=sft", "lora.dropout=0.3"),
        ("method=ppo", "method.minibatch_size=8", "method.share_prefix=false"),
        ("method=grpo", "method.rollouts=2", "method.kl_coef=0.1", "method.max_steps=2"),
        ("method=reward_model", "method.batch_size=4"),
    ],
    ids=lambda method: method[0],
)  # fmt: skip
def test_a_run_ends_as_with_the_smaller_size_from_the_beginning(
    tmp_path: Path, method: tuple[str, ...]
) -> None:
    most = 2 if method[0] != "method=reward_model" else 4  # chosen and rejected side by side
    with memory_for(rows_to_train_on(most)) as shapes:
        found = result_of(tmp_path / "found", *method, "method.micro_batch_size=null")
    assert max(rows for rows, width in shapes if width > 1) > 1
    expected = result_of(tmp_path / "small", *method, "method.micro_batch_size=2")
    assert found[2] == expected[2]
    for ours, theirs in zip(found[1], expected[1], strict=True):
        # a reward model's held-out pairs are read in smaller batches, too, which rounds otherwise
        scored = {name for name in ours if name.startswith("select/")}
        assert {n: ours[n] for n in ours.keys() - scored} == {n: theirs[n] for n in theirs.keys() - scored}
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    for name in expected[0]:
        assert torch.equal(found[0][name], expected[0][name]), name


def test_sft_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    """It fails in its third step, behind a checkpoint; what was on record before is there once."""
    settings = ("method=sft", "lora.dropout=0", "method.checkpoint_every=1")
    with memory_for(rows_to_train_on(4, since=2)) as shapes:
        found = result_of(tmp_path / "found", *settings, "method.micro_batch_size=8")
    assert [rows for rows, width in shapes if rows == 8 and width > 1].count(8) >= 2
    expected = result_of(tmp_path / "small", *settings, "method.micro_batch_size=8")
    assert [line["step"] for line in found[1]] == [line["step"] for line in expected[1]]
    for a, b in zip(found[1], expected[1], strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    for name in expected[0]:
        assert torch.allclose(found[0][name], expected[0][name], rtol=1e-3, atol=1e-5), name
    state = json.loads((tmp_path / "found" / "checkpoints" / "checkpoint-4" / "selected.json").read_text())
    assert state["room"] == {"training": 4}  # a run that goes on from here begins with it


# -- memory that really ends ---------------------------------------------------------------------------------

LIMITED = """
import json, resource, sys
from pathlib import Path
from composing import run_of
from nlu_ppo import run as runs
from nlu_ppo.run import execute

def limit(self):
    if sys.argv[2] != "0":
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + int(sys.argv[2]), -1))
    begin(self)

begin, runs.Recorder.begin_fit = runs.Recorder.begin_fit, limit
execute(run_of(Path(sys.argv[1]), *sys.argv[3:]))
"""


def limited(folder: Path, room: int, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), str(room), *SMALL, *overrides],
        cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.thorough
@out_of_memory
def test_a_run_whose_memory_really_ends(tmp_path: Path) -> None:
    """128 rows of the tiny model take about 1.2 GiB in SFT; with room for 700 MiB their allocation fails, and half of
    them go through. The result is that of a run with all the room it wants."""
    settings = (
        "method=sft", "method.batch_size=128", "task.limit.train=256", "method.max_steps=2", "task.selection=0",
        "lora.dropout=0", "method.micro_batch_size=null",
    )  # fmt: skip
    adapters = []
    for room in (700 * 2**20, 0):
        folder = tmp_path / str(room) / "run"
        done = limited(folder, room, *settings)
        assert done.returncode == 0, done.stderr[-2000:]
        assert ("out of memory in training with 128 rows at a time; going on with 64" in done.stderr) == bool(
            room
        )
        assert ("DefaultCPUAllocator: can't allocate memory" in done.stderr) == bool(room)
        adapters.append(load_file(folder / "adapter" / "adapter_model.safetensors"))
    for name in adapters[1]:
        assert torch.allclose(adapters[0][name], adapters[1][name], rtol=1e-3, atol=1e-6), name
