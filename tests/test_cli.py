"""train.py from the shell: mistakes end in one message, a failing cell stops no other, --help helps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from composing import ROOT, config_of

from nlu_ppo.choices import read_groups
from nlu_ppo.cli import report
from nlu_ppo.errors import UserError
from nlu_ppo.progress import bar
from nlu_ppo.sweeper import expand

# A stand-in for train.py whose runs need no model: the same decorators, another body.
STUB = """
import sys
sys.path[:0] = [{root!r}, {source!r}]
import hydra
from nlu_ppo.cli import command_line, one_run
from nlu_ppo.composition import register_schemas, to_config
from nlu_ppo.errors import DataError

register_schemas()


@hydra.main(version_base="1.3", config_path={conf!r}, config_name="config")
@one_run
def main(tree):
    config = to_config(tree)
    if config.seed == 1:
        raise DataError("rows.tsv, line 3: no label")
    if config.seed == 2:
        raise ZeroDivisionError("a fault")
    if config.seed == 3:
        sys.exit(0)
    print(f"done: {{config.task.name}} {{config.seed}}")


command_line(main)
"""


def train(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python train.py ...` for a command line that is wrong, or asks for help, so that nothing is run."""
    command = [sys.executable, "train.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def stub(tmp_path: Path):
    script = tmp_path / "stub.py"
    script.write_text(
        STUB.format(root=str(ROOT), source=str(ROOT / "src"), conf=str(ROOT / "conf")), encoding="utf-8"
    )

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, script.name, "task=rte", "model=qwen2_5_1_5b_instruct", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)

    return call


# -- one run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["method.max_stpes=3"], ["method.max_stpes", "Did you mean method.max_steps?"]),
        (["task=cbb"], ["task=cbb", "Did you mean task=cb?", "cola, copa"]),
        (["task=rte", "seed=abc"], ["seed=abc", "a whole number"]),
        (["task=rte", "method.kl_coef=-1"], ["method.kl_coef=-1", "at least 0"]),
        (["task=rte", "task.name=rtee"], ["'rtee'", "Did you mean 'rte'?", "wnli, wsc"]),
        (["task=rte", "task.source=raw"], ["task.data_dir=DIR"]),
        (["task=ax", "method=sft"], ["task=ax", "no training split"]),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments, says):
    told = train(*arguments)
    assert told.returncode == 2
    assert told.stdout == ""
    assert told.stderr.startswith("error: ")
    assert len(told.stderr.splitlines()) == 1
    for words in says:
        assert words in told.stderr


def test_the_users_mistake_in_a_run_gives_one_line(stub):
    told = stub("seed=1")
    assert (told.returncode, told.stderr) == (2, "error: rows.tsv, line 3: no label\n")


def test_a_fault_of_the_program_keeps_its_traceback(stub):
    told = stub("seed=2")
    assert told.returncode == 1
    assert "Traceback" in told.stderr
    assert told.stderr.strip().endswith("ZeroDivisionError: a fault")
    assert "Error executing job" not in told.stderr


def test_a_run_that_leaves_early_is_no_success(stub):
    assert stub("seed=3").returncode == 1
    assert stub("seed=0").stdout == "done: rte 0\n"


# -- sweeps --------------------------------------------------------------------------------------------------


def test_no_failing_cell_stops_another(stub):
    told = stub("-m", "seed=0,1,2,3,-4,5", "method=zero_shot")
    assert told.returncode == 1
    assert "done: rte 0" in told.stdout
    assert "done: rte 5" in told.stdout
    summary = told.stderr[told.stderr.index("error: 4 of 6 cells failed") :]
    for line in (
        "seed=1\n      rows.tsv, line 3: no label",
        "seed=2\n      ZeroDivisionError: a fault",
        "seed=3\n      RuntimeError: the run called sys.exit(0)",
        "seed=-4\n      seed=-4 is out of range: it must be at least 0",
    ):
        assert line in summary
    assert "seed=5" not in summary
    assert "Error executing job" not in told.stderr


def test_a_failing_cell_is_told_when_it_fails(stub):
    told = stub("-m", "seed=0,1", "method=zero_shot")
    assert "seed=1 method=zero_shot: rows.tsv, line 3: no label" in told.stderr


def test_cells_that_can_not_run_are_told_before_the_others_run(stub):
    told = stub("-m", "task=rtee,cb", "method=zero_shot")
    assert told.returncode == 1
    before, _, _ = told.stdout.partition("done: cb 0")
    assert "task=rtee" in before
    assert "Did you mean task=rte?" in before
    assert "done: cb 0" in told.stdout


def test_a_sweep_without_failures_ends_well(stub):
    told = stub("-m", "seed=0,4", "method=zero_shot")
    assert told.returncode == 0
    assert told.stdout.count("done:") == 2


def test_the_last_word_on_a_key_counts(stub):
    told = stub("-m", "seed=0,4", "method=zero_shot", "seed=6")
    assert [line for line in told.stdout.splitlines() if line.startswith("done")] == ["done: rte 6"]


def test_a_mistyped_study_is_named():
    told = train("-m", "+sweeps=dmo")
    assert told.returncode == 2
    assert "Did you mean sweeps=demo?" in told.stderr


# -- help ----------------------------------------------------------------------------------------------------


def test_help_shows_the_groups_and_how_to_begin():
    told = train("--help")
    assert told.returncode == 0
    assert told.stderr == ""
    for group, choices in read_groups().items():
        if not group.startswith("hydra/"):
            assert f"{group}=" in told.stdout
            assert all(choice.name in told.stdout for choice in choices)
    assert "schema" not in told.stdout
    assert told.stdout.count("\n  python train.py") >= 3
    assert max(map(len, told.stdout.splitlines())) <= 110


def test_the_examples_of_the_help_are_legal():

    lines = [
        line.split() for line in train("--help").stdout.splitlines() if line.startswith("  python train.py")
    ]
    for line in lines:
        words = [word for word in line[2:] if "=" in word]
        for cell in expand(None, words):
            config_of(*cell)


def test_the_composed_configuration_can_be_printed():
    told = train("task=rte", "--cfg", "job")
    assert told.returncode == 0
    assert "name: rte" in told.stdout
    assert told.stderr == ""


def test_an_error_begins_a_line_of_its_own(capsys):
    """Wherever a progress bar stands."""
    bar(total=3, desc="sft").update()
    report(UserError("there is no room"))
    assert "error: there is no room" in capsys.readouterr().err.splitlines()
