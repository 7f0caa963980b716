"""Compiled layers: the same losses and gradients, and a warning in place of a failure."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from models import random_policy
from test_shared_prefix import CASES, difference, loss_and_gradients

from nlu_ppo.inference import reading
from nlu_ppo.inference.decoder import generate
from nlu_ppo.models import compiling
from nlu_ppo.models.compiling import compile_layers


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    compiling._compiled.clear()
    compiling._failed.clear()
    yield
    compiling._failed.clear()


def one_layer() -> Any:
    """A policy with one layer that matters: each is traced anew, which takes seconds."""
    policy = random_policy("llama")
    policy.trunk.layers = policy.trunk.layers[2:]
    policy.trunk.layers[0].self_attn.layer_idx = 0
    policy.trunk.config.num_hidden_layers = 1
    policy.add_value_head()
    return policy


@pytest.mark.thorough
def test_compiled_layers_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a tree, and for padded rows of other lengths; behind a cache they run as they are."""
    monkeypatch.setattr(reading, "WORTH", 1.0)
    policy = one_layer()
    assert reading.reads_trees(policy)
    cases = [("ragged", True), ("ragged", False), ("three levels", False)]
    expected = [loss_and_gradients(policy, *CASES[case], share) for case, share in cases]
    completions = generate(policy, CASES["ragged"][0], 4)
    compile_layers(policy.model)
    for (case, share), (loss, gradients) in zip(cases, expected, strict=True):
        found, compiled = loss_and_gradients(policy, *CASES[case], share)
        assert found == pytest.approx(loss, rel=1e-4)
        assert difference(compiled, gradients) < 1e-3
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # it was compiled
    assert not compiling._failed
    assert generate(policy, CASES["ragged"][0], 4) == completions


def test_without_a_compiler_layers_run_as_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A backend that fails, as inductor does without a C++ compiler or Triton."""

    def broken(*_: object) -> None:
        raise RuntimeError("Failed to find C++ compiler.")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    policy = random_policy("llama")
    policy.add_value_head()
    expected = loss_and_gradients(policy, *CASES["ragged"], False)
    compile_layers(policy.model)
    (line,) = [
        r.message for r in caplog.records if r.levelno == logging.WARNING and "model.compile" in r.message
    ]
    assert "Failed to find C++ compiler" in line
    found = loss_and_gradients(policy, *CASES["ragged"], False)
    assert found[0] == expected[0]
    assert difference(found[1], expected[1]) == 0


def test_layers_that_turn_out_not_to_compile_run_as_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no kernel for this operator")

    policy = one_layer()
    expected = loss_and_gradients(policy, *CASES["ragged"], False)
    monkeypatch.setattr(compiling, "_fault", lambda device: None)  # the small function was fine
    monkeypatch.setattr(compiling, "BACKEND", broken)
    compile_layers(policy.model)
    found = loss_and_gradients(policy, *CASES["ragged"], False)
    assert found[0] == expected[0]
    assert difference(found[1], expected[1]) == 0
    (line,) = [
        r.message for r in caplog.records if r.levelno == logging.WARNING and "runs as it is" in r.message
    ]
    assert "no kernel for this operator" in line
