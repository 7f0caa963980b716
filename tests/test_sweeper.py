"""The cells of a grid, against lists written out by hand."""

from __future__ import annotations

import pytest
from composing import config_of
from hydra.errors import HydraException

from nlu_ppo.errors import ConfigError
from nlu_ppo.mistakes import explain
from nlu_ppo.sweeper import expand

PAIRS = [{"task": "cola", "method.epochs": 3}, {"task": "rte", "method.epochs": 10}]


def test_a_product_of_the_study_and_the_command_line():
    assert expand({"task": "rte,cb", "method": "sft"}, ["seed=0,1", "+sweeps=x"]) == [
        ["task=rte", "method=sft", "seed=0", "+sweeps=x"],
        ["task=rte", "method=sft", "seed=1", "+sweeps=x"],
        ["task=cb", "method=sft", "seed=0", "+sweeps=x"],
        ["task=cb", "method=sft", "seed=1", "+sweeps=x"],
    ]


def test_cells_stand_for_themselves():
    assert expand(None, ["+sweeps=x"], PAIRS) == [
        ["task=cola", "method.epochs=3", "+sweeps=x"],
        ["task=rte", "method.epochs=10", "+sweeps=x"],
    ]


def test_every_cell_has_the_product_around_it():
    assert expand({"method": "sft,ppo"}, ["seed=0,1"], PAIRS) == [
        ["task=cola", "method.epochs=3", "method=sft", "seed=0"],
        ["task=cola", "method.epochs=3", "method=sft", "seed=1"],
        ["task=cola", "method.epochs=3", "method=ppo", "seed=0"],
        ["task=cola", "method.epochs=3", "method=ppo", "seed=1"],
        ["task=rte", "method.epochs=10", "method=sft", "seed=0"],
        ["task=rte", "method.epochs=10", "method=sft", "seed=1"],
        ["task=rte", "method.epochs=10", "method=ppo", "seed=0"],
        ["task=rte", "method.epochs=10", "method=ppo", "seed=1"],
    ]


def test_several_values_within_a_cell_make_several_cells_and_cells_may_differ_in_keys():
    cells = [{"method": "few_shot", "method.k": "1,5"}, {"method": "zero_shot"}]
    assert expand({"task": "rte"}, [], cells) == [
        ["method=few_shot", "method.k=1", "task=rte"],
        ["method=few_shot", "method.k=5", "task=rte"],
        ["method=zero_shot", "task=rte"],
    ]


def test_the_command_line_wins_over_cells_and_params_and_equal_cells_run_once():
    assert expand({"method": "sft,ppo"}, ["method=ppo", "method.epochs=1"], PAIRS) == [
        ["task=cola", "method.epochs=1", "method=ppo"],
        ["task=rte", "method.epochs=1", "method=ppo"],
    ]
    assert expand(None, ["task=cb,copa", "method.epochs=1"], PAIRS) == [
        ["task=cb", "method.epochs=1"],
        ["task=copa", "method.epochs=1"],
    ]


def test_values_of_yaml_are_written_as_the_command_line_has_them():
    cells = [{"lora.targets": ["q_proj", "v_proj"], "method.max_grad_norm": None, "eval.likelihood": False}]
    (cell,) = expand(None, [], cells)
    assert cell == ["lora.targets=[q_proj,v_proj]", "method.max_grad_norm=null", "eval.likelihood=false"]
    config = config_of(*cell)
    assert (config.lora.targets, config.method.max_grad_norm, config.eval.likelihood) == (
        ["q_proj", "v_proj"],
        None,
        False,
    )


@pytest.mark.parametrize(
    ("params", "cells", "says"),
    [
        ({"task": "rte"}, PAIRS, r"hydra\.sweeper\.cells\[0\] sets task, and so does hydra\.sweeper\.params"),
        (None, [], "a list of cells"),
        (None, {"task": "rte"}, "a list of cells"),
        (None, "task=rte", "a list of cells"),
        (None, [{"task": "rte"}, "task=cb"], r"cells\[1\]: 'task=cb' is no cell"),
        (None, [{}], r"cells\[0\]"),
        (None, [{"seed": "interval(0,1)"}], "no intervals"),
    ],
)
def test_malformed_cells_are_named(params, cells, says):
    with pytest.raises(ConfigError, match=says):
        expand(params, [], cells)


def test_an_unknown_key_in_a_cell_is_told_as_on_the_command_line():
    (cell,) = expand(None, [], [{"method.max_stpes": 3}])
    with pytest.raises(HydraException) as caught:
        config_of(*cell)
    assert "Did you mean method.max_steps?" in (explain(caught.value) or "")
