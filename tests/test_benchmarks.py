"""The benchmark harness at toy shapes: its counts are torch's, and its output has what is promised."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from benchmarks import __main__ as command
from benchmarks import contenders as parties
from benchmarks import report
from benchmarks.flops import Model, Work, common_length, needed, needed_for_labels, plain, tree
from benchmarks.profile import group_of, profile_step
from benchmarks.results import Results, ratios, why_missing
from benchmarks.session import Session, agreement
from benchmarks.worker import PeakMemory, build_base, build_model
from benchmarks.workload import Lora, Shape, Workload, built_in, random_prompts, shrunk

# wide enough that matrix products outweigh the rows of attention that a dense kernel computes in vain
SHAPE = Shape(hidden=64, layers=3, heads=2, intermediate=96, vocabulary=101, positions=256)


def counted(action: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


def tiny_model(lora: Lora | None, shape: Shape = SHAPE) -> Any:
    workload = Workload("x", "", kind="ppo" if lora else "eval", shape=shape, lora=lora or Lora())
    model = build_model(workload) if lora else build_base(workload)
    model.get_base_model().set_attn_implementation("eager") if lora else model.set_attn_implementation(
        "eager"
    )
    return model.get_base_model() if lora else model


def dense(work: Work, queries_times_keys: int) -> Work:
    """The same work with attention as an eager kernel does it: every query on every key."""
    return replace(work, pairs=queries_times_keys)


@pytest.mark.parametrize(
    "lora", [None, Lora(r=4), Lora(r=4, targets=("q_proj", "v_proj", "o_proj", "up_proj"))]
)
def test_a_plain_forward_and_backward_are_counted_as_torch_counts_them(lora: Lora | None) -> None:
    model, rows = tiny_model(lora), [[1] * 12] * 5
    ids = torch.tensor(rows)
    work = dense(plain(rows, heads=5 * 12), 5 * 12 * 12)
    costs = Model(SHAPE, lora)
    assert counted(lambda: model(input_ids=ids)) == pytest.approx(costs.forward(work), rel=0.02)
    if lora:
        both = counted(lambda: model(input_ids=ids).logits.sum().backward())
        assert both == pytest.approx(costs.forward(work) + costs.backward(work), rel=0.03)


def test_a_shared_prefix_and_a_few_positions_of_logits_are_counted_as_torch_counts_them() -> None:
    lora, prefix, own, count = Lora(r=4), 24, 7, 6
    shape = replace(SHAPE, layers=8)  # autograd spares the prefix most of the last layer, and we don't
    model = tiny_model(lora, shape)
    rows = random_prompts([prefix + own] * count, prefix, SHAPE.vocabulary, seed=0)
    heads = count * 2

    def shared_step() -> None:
        cache = DynamicCache()
        model.model(input_ids=torch.tensor([rows[0][:prefix]]), past_key_values=cache, use_cache=True)
        grown = DynamicCache()
        for i, layer in enumerate(list(cache.layers)):
            grown.update(layer.keys.expand(count, -1, -1, -1), layer.values.expand(count, -1, -1, -1), i)
        ids = torch.tensor([row[prefix:] for row in rows])
        hidden = model.model(input_ids=ids, past_key_values=grown, use_cache=True).last_hidden_state
        model.lm_head(hidden[:, -2:]).sum().backward()

    work = tree(rows, heads)
    assert work.tokens == prefix + count * own
    work = dense(work, prefix * prefix + count * own * (prefix + own))
    costs = Model(shape, lora)
    assert counted(shared_step) == pytest.approx(costs.forward(work) + costs.backward(work), rel=0.03)


def test_trees_by_hand() -> None:
    rows = [(1, 2, 3), (1, 2, 4, 5), (1, 2, 3), (9,)]
    assert plain(rows, 7) == Work(3 + 4 + 3 + 1, 6 + 10 + 6 + 1, 7)
    # 1, 2, 3, 4, 5, 9 with the depths 1, 2, 3, 3, 4, 1
    assert tree(rows, 0) == Work(6, 14, 0)
    assert tree(rows[:3], 0, skip=2) == Work(3, 10, 0)
    assert common_length(rows[:3]) == 2
    assert common_length(rows) == 0


def test_the_floor_of_the_reference_is_that_of_the_measured_facts() -> None:
    """GFLOP a sample, worked out before by hand: rollout 2.6, update 23.0 + 1.6, all 29.8; without sharing 71.6."""
    step, rows = needed(built_in()["reference"]), needed(built_in()["reference"], share=False)
    assert step.total / 16e9 == pytest.approx(29.8, rel=0.03)
    assert rows.total / 16e9 == pytest.approx(71.6, rel=0.03)
    assert step.rollout / 16e9 == pytest.approx(2.8, rel=0.05)


def test_label_floor_by_hand() -> None:
    shape = replace(SHAPE, layers=1)
    prompts, labels = ((1, 2, 3), (1, 2, 4, 5)), ((6, 7, 8), (6, 9, 8))
    workload = Workload("x", "", kind="eval", shape=shape, prompts=prompts, labels=labels)
    # behind each prompt the inner nodes 6, 6 7, 6 9; logits there and at the prompt's end
    work = Work(5 + 2 * 3, (1 + 2 + 3 + 3 + 4) + (4 + 5 + 5) + (5 + 6 + 6), 2 * 4)
    assert needed_for_labels(workload) == Model(shape, None).forward(work)


def test_cases_are_what_they_say() -> None:
    cases = built_in()
    assert common_length(cases["reference"].prompts) == 90
    assert {len(row) for row in cases["prompt_256_common_180"].prompts} == {256}
    assert common_length(cases["no_common"].prompts) == 0
    lengths = [len(row) for row in cases["ragged"].prompts]
    assert sum(lengths) == 16 * 128
    assert (min(lengths), max(lengths)) == (100, 156)
    assert cases["reference"].optimizer_steps == 8


def test_a_workload_survives_its_file(tmp_path: Path) -> None:
    for workload in built_in().values():
        small = shrunk(workload)
        small.write(tmp_path / "workload.json")
        assert Workload.read(tmp_path / "workload.json") == small


def test_agreement_leaves_ties_out() -> None:
    ours = [[-1.0, -2.0], [-1.0, -1.00001], [-3.0, -2.0]]
    theirs = [[-1.0, -2.0], [-1.00001, -1.0], [-2.0, -3.0]]
    assert agreement(ours, theirs) == {"examples": 3, "decided": 2, "same": 1, "largest_difference": 1.0}


def test_peak_memory_sees_what_was_freed_again() -> None:
    with PeakMemory() as memory:
        before = memory.peak
        block = torch.ones(30_000_000)
        block.add_(1)
        del block
    assert memory.peak - before > 100_000_000


def step_of(seconds: float, memory: int) -> dict[str, Any]:
    phases = {"rollout": seconds / 4, "reference": seconds / 4, "update": seconds / 2}
    return {"seconds": seconds, "memory_bytes": memory, "phases": phases}


def test_ratios_pair_within_a_round() -> None:
    session = Session("reference", "", 16)
    session.rounds = [
        {"ours": step_of(1.0, 10), "trl_1_12": step_of(4.0, 50)},
        {"ours": step_of(2.0, 10), "trl_1_12": step_of(9.0, 50)},
        {"ours": step_of(1.0, 10)},
    ]
    session.missing = {"lm_eval": "not installed"}
    assert ratios([session], "trl_1_12", "ours") == [4.0, 4.5]
    assert ratios([session], "ours", "trl_1_12", "memory_bytes") == [0.2, 0.2]
    assert why_missing([session], "lm_eval") == "not installed"
    assert why_missing([session], "trl_0_11") == "not run"
    results = Results({}, [session])
    assert report.summary(results) == {
        "vs_trl_1_12": 4.25,
        "vs_trl_0_11": None,
        "memory_vs_trl_1_12": 0.2,
        "eval_vs_lm_eval": None,
    }


def test_the_quick_run_says_what_is_missing_and_ends_with_one_line_of_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parties, "ENVIRONMENTS", tmp_path / "none")
    file = tmp_path / "quick.json"
    assert command.main(["--quick", "--tiny", "--rounds", "2", "--file", str(file)]) == 0
    out = capsys.readouterr().out
    last = json.loads(out.strip().splitlines()[-1])
    assert last == dict.fromkeys(("vs_trl_1_12", "vs_trl_0_11", "memory_vs_trl_1_12", "eval_vs_lm_eval"))
    assert "| TRL 1.12, own critic | not installed: make bench-peers |" in out
    assert "| lm-evaluation-harness, hf | not installed: make bench-peers |" in out
    reference, labels = Results.read(file).sessions
    assert [len(r) for r in reference.rounds] == [1, 1]
    assert reference.watched["ours"]["optimizer_steps"] == 8
    assert set(reference.rounds[0]["ours"]["phases"]) == {"rollout", "reference", "update"}
    assert labels.rounds[0]["ours"]["seconds"] > 0


def test_another_machines_file_is_not_added_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "other.json"
    Results({"processor": "another"}).write(file)
    assert command.main(["--tiny", "--case", "reference", "--file", str(file)]) == 2
    assert "another machine" in capsys.readouterr().err


def test_an_unknown_case_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--case", "multirc", "--file", str(tmp_path / "x.json")]) == 2
    assert "--data-dir" in capsys.readouterr().err


def test_a_step_with_less_work_is_no_comparison() -> None:
    workload, peer = shrunk(built_in()["reference"]), parties.contenders("ppo")["trl_1_12"]
    good = {"optimizer_steps": 8, "response_tokens": [6] * 16, "whole_prompts": 16}
    assert peer.fault(workload, good) is None
    assert "4 optimizer steps" in str(peer.fault(workload, {**good, "optimizer_steps": 4}))
    assert "tokens" in str(peer.fault(workload, {**good, "response_tokens": [6] * 15 + [5]}))
    assert "15 of the 16" in str(peer.fault(workload, {**good, "whole_prompts": 15}))


def test_the_profile_groups_a_real_step() -> None:
    threads = torch.get_num_threads()
    totals, operators = profile_step("reference", tiny=True)
    assert torch.get_num_threads() == threads  # a second one slows all that follows, and rounds otherwise
    assert {"matmul", "attention", "elementwise", "copies", "optimizer"} <= set(totals)
    assert operators
    assert group_of("aten::addmm") == group_of("aten::bmm") == "matmul"
    assert group_of("aten::_scaled_dot_product_flash_attention_for_cpu_backward") == "attention"
    assert group_of("aten::index_select") == "copies"
    assert group_of("aten::mul_") == "elementwise"


@pytest.mark.skipif(sys.platform == "win32", reason="paths of the environments differ")
def test_every_peer_has_exact_pins() -> None:
    for peer in {c.peer for kind in ("ppo", "eval") for c in parties.contenders(kind).values()} - {None}:
        lines = (parties.PEERS / "requirements" / f"{peer}.txt").read_text(encoding="utf-8").split()
        assert lines
        assert all(line.count("==") == 1 for line in lines)


def test_the_committed_page_is_that_of_the_committed_results() -> None:
    expected = report.page(Results.read(report.SHOWN))
    assert report.PAGE.read_text(encoding="utf-8") == expected, (
        "run `make docs` and commit docs/performance.md"
    )
