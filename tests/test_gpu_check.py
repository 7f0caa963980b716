"""`make gpu-check` at toy sizes on the CPU: every part runs, failures are told, nothing measured is lost."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import Model, needed, plain
from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check.ceilings import Ceilings, exact_float32, printed_rate
from benchmarks.gpu_check.correctness import compare_answers, gradient_difference, look
from benchmarks.gpu_check.models import GPU, SMALL, Bench, byte_tokenizer, policy_of, too_small, weight_bytes
from benchmarks.gpu_check.record import CUT, DONE, FAILED, SKIPPED, Report, Row, file_name
from benchmarks.gpu_check.runner import (
    Clock,
    OutOfTimeError,
    Part,
    SkippedError,
    rounds_of,
    run_parts,
    try_row,
)
from benchmarks.gpu_check.speed import step_figures
from benchmarks.worker import Outcome, build_base, build_model
from benchmarks.workload import Lora, Shape, Workload

PARTS = ["ceilings", "sharing", "precision", "compiled", "ppo-1.5b", "ppo-7b", "evaluation", "trl-1.12"]
BENCH = Bench("cpu", SMALL)


# -- the whole command ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    path = tmp_path_factory.mktemp("gpu") / "found.json"
    # compiling takes minutes on a CPU and is tested where layers are compiled: here all but that
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        status = command.main(["--small", "--file", str(path)])
    return status, json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)


def test_every_part_runs_and_is_recorded(trial: tuple[int, dict[str, Any]]) -> None:
    status, found = trial
    assert status == 0
    assert [part["name"] for part in found["parts"]] == PARTS
    assert found["ok"]
    assert found["complete"]
    assert found["schema"] == 1
    assert "TRIAL" in found["trial"]
    assert {"torch", "transformers", "peft"} <= found["versions"].keys()
    for part in found["parts"]:
        assert part.keys() == {"name", "kind", "allowance_s", "status", "reason", "seconds", "rows"}
        assert part["status"] in (DONE, SKIPPED), part
        assert part["rows"] or part["status"] == SKIPPED, part
        for row in part["rows"]:
            assert row.keys() == {"name", "model", "figures", "bounds", "note"}
            assert row["figures"], row
            assert all(value is not None for value in row["figures"].values()), row


def figures(found: dict[str, Any], part: str) -> dict[str, dict[str, float]]:
    (chosen,) = (p for p in found["parts"] if p["name"] == part)
    return {f"{row['name']}, {row['model']}": row["figures"] for row in chosen["rows"]}


def test_a_step_has_throughput_memory_and_mfu(trial: tuple[int, dict[str, Any]]) -> None:
    rows = figures(trial[1], "ppo-1.5b")
    assert len(rows) == 6
    rate = (
        figures(trial[1], "ceilings")["matrix product, bfloat16, 256 rows, -"]["tera_operations_per_s"] * 1e12
    )
    for step in rows.values():
        assert step["rollout_s"] + step["reference_s"] + step["update_s"] <= step["step_s"]  # one round
        assert step["peak_memory_bytes"] > 0
        by_hand = step["tera_operations"] * 1e12 / (step["step_s"] * rate)
        assert step["mfu_of_measured"] == pytest.approx(by_hand)
    one = rows["batch 3, 40 tokens, toy Qwen2"]
    assert one["samples_per_s"] == pytest.approx(3 / one["step_s"])
    assert one["tokens_per_s"] == pytest.approx(3 * 46 / one["step_s"])
    assert one["drawn_tokens_per_s"] == pytest.approx(3 * 6 / one["rollout_s"])


def test_the_comparison_of_gradients_sees_a_prefix_without_its_gradient(
    trial: tuple[int, dict[str, Any]],
) -> None:
    for model in ("toy Llama", "toy Qwen2"):
        rows = figures(trial[1], "sharing")
        assert rows[f"float32: shared prefix, plain rows, {model}"]["gradient_relative"] < 1e-5
        assert rows[f"control: prefix without its gradient, {model}"]["gradient_relative"] > 0.1


# -- parts that fail, are skipped, or take too long ----------------------------------------------------------


def report(path: Path) -> Report:
    return Report(path, "none (CPU)", "", {}, {})


def run(parts: list[Part], path: Path, budget: float = 60.0) -> tuple[int, dict[str, Any]]:
    said: list[str] = []
    status = run_parts(parts, report(path), budget, said.append)
    assert len(said) == len(parts)
    return status, json.loads(path.read_text(encoding="utf-8"))


def test_a_part_that_raises_is_recorded_the_rest_goes_on_and_the_command_fails(tmp_path: Path) -> None:
    def broken(clock: Clock, add: Any) -> None:
        add(Row("before", "m", {"x": 1.0}))
        raise ValueError("this went wrong\nand more")

    def fine(clock: Clock, add: Any) -> None:
        add(Row("after", "m", {"x": math.nan}))

    parts = [Part("a", "correctness", 9, broken), Part("b", "speed", 9, fine)]
    path = tmp_path / "x.json"
    assert command.main(["--file", str(path)], make=lambda bench: parts) == 1
    found = json.loads(path.read_text(encoding="utf-8"))
    first, second = found["parts"]
    assert (first["status"], second["status"]) == (FAILED, DONE)
    assert first["reason"].startswith("ValueError: this went wrong")
    assert first["rows"][0]["figures"] == {"x": 1.0}
    assert second["rows"][0]["figures"] == {"x": None}  # JSON has no NaN
    assert not found["ok"]
    assert found["complete"]


@pytest.mark.parametrize(
    ("value", "bounds", "status"),
    [(1e-5, (None, 1e-4), 0), (1e-3, (None, 1e-4), 1), (0.01, (0.05, None), 1), (math.nan, (None, 1e-4), 1)],
)
def test_a_figure_out_of_bounds_fails_its_part(
    tmp_path: Path, value: float, bounds: tuple[float | None, float | None], status: int
) -> None:
    part = Part("a", "correctness", 9, lambda clock, add: add(Row("r", "m", {"x": value}, {"x": bounds})))
    found_status, found = run([part], tmp_path / "x.json")
    assert found_status == status
    assert found["parts"][0]["status"] == (FAILED if status else DONE)


def test_what_cant_be_run_is_skipped_and_is_no_failure(tmp_path: Path) -> None:
    def skip(clock: Clock, add: Any) -> None:
        raise SkippedError("card too small")

    def no_memory(clock: Clock, add: Any) -> None:
        def measure() -> Row:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        try_row("large", "m", clock, add, measure)
        try_row("small", "m", clock, add, lambda: Row("small", "m", {"x": 1.0}))

    status, found = run([Part("a", "speed", 9, skip), Part("b", "speed", 9, no_memory)], tmp_path / "x.json")
    assert status == 0
    assert [p["status"] for p in found["parts"]] == [SKIPPED, DONE]
    assert found["parts"][0]["reason"] == "card too small"
    assert [row["note"] for row in found["parts"][1]["rows"]] == ["skipped: out of memory", ""]


def test_time_that_is_over_ends_speed_and_fails_correctness(tmp_path: Path) -> None:
    def late(clock: Clock, add: Any) -> None:
        add(Row("r", "m", {"x": 1.0}))
        raise OutOfTimeError

    parts = [Part("a", "speed", 9, late), Part("b", "correctness", 9, late)]
    status, found = run(parts, tmp_path / "x.json")
    assert status == 1
    assert [p["status"] for p in found["parts"]] == [CUT, FAILED]
    assert all(p["rows"] for p in found["parts"])
    status, found = run(parts, tmp_path / "y.json", budget=1.0)  # less than any part begins with
    assert status == 1
    assert [p["status"] for p in found["parts"]] == [SKIPPED, FAILED]


def test_a_part_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu_check.runner.GRACE", 0.1)
    status, found = run([Part("a", "speed", 0.1, lambda clock, add: time.sleep(60))], tmp_path / "x.json")
    assert status == 0
    assert found["parts"][0]["status"] == CUT


def test_the_file_is_written_after_every_row_and_part(tmp_path: Path) -> None:
    path, seen = tmp_path / "x.json", []

    def part(clock: Clock, add: Any) -> None:
        for i in range(2):
            add(Row(f"r{i}", "m", {"x": 1.0}))
            now = json.loads(path.read_text(encoding="utf-8"))
            seen.append(([len(p["rows"]) for p in now["parts"]], [p["status"] for p in now["parts"]]))
            assert not now["complete"]

    run([Part("a", "speed", 9, part), Part("b", "speed", 9, part)], path)
    assert [rows for rows, _ in seen] == [[1], [2], [2, 1], [2, 2]]
    assert seen[2][1][0] == DONE  # the first part was over in the file before the second began


def test_rounds_end_with_the_clock_but_one_is_made() -> None:
    calls: list[int] = []
    seconds, rounds, found = rounds_of(lambda: calls.append(1) or len(calls), Clock(0.0), most=5)
    assert (rounds, found, len(calls)) == (1, [2], 2)  # the first was to warm up
    assert seconds >= 0
    assert rounds_of(lambda: None, Clock(60.0), most=5)[1] == 5


def test_names_of_parts_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--part", "nonsense", "--file", str(tmp_path / "x.json")]) == 2
    assert "ppo-7b" in capsys.readouterr().err
    assert file_name("NVIDIA H200", "") == "gpu-nvidia-h200.json"
    assert file_name("none (CPU)", "trial") == "gpu-none-cpu-trial.json"
    assert sum(part.seconds for part in command.make_parts(BENCH)) <= command.BUDGET < 8 * 60


# -- arithmetic ------------------------------------------------------------------------------------------------


def test_mfu_by_hand() -> None:
    """One layer, hidden 4, heads 2 of which 1 for keys, MLP 8, vocabulary 10; one prompt of 3 tokens, 2 drawn."""
    shape = Shape(hidden=4, layers=1, heads=2, key_heads=1, intermediate=8, vocabulary=10)
    workload = Workload(
        "x", "", shape=shape, lora=Lora(r=1, targets=("q_proj",)), prompts=((1, 2, 3),),
        response_tokens=2, batch_size=1, minibatch_size=1, epochs=1, dtype="float32",
    )  # fmt: skip
    frozen = 4 * 4 + 4 * 2 + 4 * 2 + 4 * 4 + 3 * 4 * 8  # q, k, v, o and the MLP
    adapted = frozen + 1 * (4 + 4)
    first_inputs = 4 * (4 + 1) + 2 * (4 * 2)  # the products that read the embeddings
    rollout = (
        2 * adapted * 4 + 16 * (6 + 4) + 2 * 40 * 2
    )  # 3 prompt tokens and 1 drawn; 2 positions of logits
    reference = (
        2 * frozen * 2 + 16 * (3 + 4) + 2 * 40 * 2
    )  # behind the 2 tokens that a lone row shares with itself
    forward = 2 * adapted * 4 + 16 * 10 + 2 * 40 * 2
    backward = (2 * (frozen + 2 * 8) - 2 * first_inputs) * 4 + 32 * 10 + 2 * 40 * 2
    counted = needed(workload)
    assert counted.rollout == rollout
    assert counted.update == forward + backward
    assert counted.reference in (reference, 2 * frozen * 1 + 16 * 4 + 2 * 40 * 2)

    ceilings = Ceilings()
    ceilings.rates["float32"] = 1e6
    outcome = Outcome([2], {"rollout": 0.1, "reference": 0.1, "update": 0.2}, {"ppo/first_ratio_error": 0.0})
    found = step_figures(workload, counted, 0.5, [outcome], ceilings)
    assert found["mfu_of_measured"] == pytest.approx(counted.total / (0.5 * 1e6))
    assert found["update_mfu_of_measured"] == pytest.approx((forward + backward) / (0.2 * 1e6))
    assert found["tokens_per_s"] == pytest.approx((3 + 2) / 0.5)
    assert found["update_samples_per_s"] == pytest.approx(1 / 0.2)


def test_grouped_heads_are_counted_as_torch_counts_them() -> None:
    shape = Shape(
        hidden=64, layers=3, heads=4, key_heads=2, intermediate=96, vocabulary=101, architecture="qwen2"
    )
    model = build_base(Workload("x", "", kind="eval", shape=shape))
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.tensor([[1] * 12] * 5))
    work = replace(
        plain([[1] * 12] * 5, heads=5 * 12), pairs=5 * 12 * 12
    )  # an eager kernel computes all pairs
    assert counter.get_total_flops() == pytest.approx(Model(shape, None).forward(work), rel=0.01)


@pytest.mark.parametrize("model", [SMALL.main, SMALL.large])
def test_weights_are_as_many_as_counted(model: Any) -> None:
    workload = BENCH.workload(model, 40, 2, kind="eval")
    built = build_base(workload)
    big = sum(p.numel() for p in built.parameters() if p.ndim > 1)
    assert {p.dtype for p in built.parameters()} == {torch.bfloat16}
    assert weight_bytes(workload) == 2 * big


def test_the_shapes_are_of_the_size_in_their_names() -> None:
    seven, one = (weight_bytes(BENCH.workload(m, 128, 2)) / 2e9 for m in (GPU.large, GPU.main))
    assert seven == pytest.approx(6.74, abs=0.01)  # Llama-2-7B has 6.74e9 parameters
    assert one == pytest.approx(1.54, abs=0.01)  # Qwen2.5-1.5B has 1.54e9
    too_small(2 << 30, 5 << 30)
    with pytest.raises(SkippedError, match="card too small"):
        too_small(14 << 30, 16 << 30)


def test_printed_rates_go_by_the_cards_name() -> None:
    assert printed_rate("NVIDIA H200") == 989e12
    assert printed_rate("NVIDIA A100-SXM4-80GB") == 312e12
    assert printed_rate("NVIDIA GeForce RTX 4090") is None


# -- correctness ------------------------------------------------------------------------------------------------


def test_float32_is_exact_inside_and_as_before_outside() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with contextlib.suppress(KeyError), exact_float32():
            assert torch.get_float32_matmul_precision() == "highest"
            raise KeyError
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_comparison_sees_other_gradients_and_other_answers() -> None:
    workload = BENCH.workload(SMALL.large, 40, 2, dtype="float32")
    policy = policy_of(build_model(workload).eval(), workload)
    completions = [[5, 6, 7], [8, 9, 10]]
    one, again, other = (
        look(policy, workload.prompts, c, share=True)
        for c in (completions, completions, [[5, 6, 7], [8, 9, 11]])
    )
    assert any("lora_A" in name for name in one.gradients)
    assert any("value_head" in name for name in one.gradients)
    assert gradient_difference(again, one) == 0.0
    assert gradient_difference(other, one) > 0.01
    assert gradient_difference(replace(one, gradients={}), one) == math.inf
    # the second answer differs in a token that the model itself is far from choosing, or near to
    answers, others = [[5, 6], [8, 9]], [[5, 6], [8, 10]]
    far = compare_answers(policy, workload.prompts, answers, others, tie=0.0)
    assert far == {"answers": 2, "same": 1, "different_beyond_a_tie": 1}
    near = compare_answers(policy, workload.prompts, answers, others, tie=100.0)
    assert near == {"answers": 2, "same": 1, "different_beyond_a_tie": 0}


def test_the_tokenizer_has_a_token_for_every_byte_and_no_end_that_a_model_can_draw() -> None:
    tokenizer = byte_tokenizer(600)
    ids = tokenizer("Äpfel? ✓")["input_ids"]
    assert len(ids) == len("Äpfel? ✓".encode())
    assert tokenizer.decode(ids) == "Äpfel? ✓"
    assert tokenizer.eos_token_id == 600
    assert tokenizer.decode([300, *ids, 599]) == "Äpfel? ✓"


def test_the_engine_needs_nothing_of_the_experiment_frameworks() -> None:
    """On a machine with torch, transformers and PEFT only, the command and all that it calls can be imported."""
    absent = ["hydra", "omegaconf", "mlflow", "datasets", "trl", "sklearn", "pyarrow", "matplotlib"]
    script = f"""
import sys
import torch, transformers, peft, accelerate
import transformers.modeling_utils, transformers.generation, transformers.optimization, peft.tuners.lora
from transformers import LlamaForCausalLM, Qwen2ForCausalLM, PreTrainedTokenizerFast
for name in {absent}:
    sys.modules.setdefault(name, None)  # an import of it from here on fails
import benchmarks.gpu_check.__main__
"""
    root = Path(command.__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False,
        env={"PATH": "", "PYTHONPATH": f"{root / 'src'}:{root}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
