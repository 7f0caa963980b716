"""`python -m nlu_ppo.tasks`, the registry, and what every record must keep to."""

import subprocess
import sys
from string import Formatter

import pytest

from nlu_ppo.tasks import TASKS, Kind, default_source
from nlu_ppo.tasks.__main__ import main


def test_list_names_every_task(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == [*TASKS, "example_csv"]


@pytest.mark.parametrize("task", [name for name in TASKS if default_source(name) == "hub"])
def test_show_needs_no_data(task, capsys):
    assert main(["show", task]) == 0
    text = capsys.readouterr().out
    assert text.startswith(TASKS[task].instruction)
    assert "\n<Judgement>\n" in text


def test_show_real_example(shared, capsys):
    assert main(["show", "cola", "--data-dir", str(shared / "data"), "--row", "1"]) == 0
    assert "gold completion: Yes</Judgement>\nexample: validation-1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "colaa"], "Did you mean 'cola'"),
        (["show", "cola", "--data-dir", "/nowhere"], "/nowhere/glue/CoLA/dev.tsv"),
        (["show", "cola", "--layout", "chat"], "--model"),
    ],
)
def test_mistakes_end_with_2_and_no_traceback(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_records_are_complete(task):
    assert TASKS[task.name] is task
    slots = {name for _, name, _, _ in Formatter().parse(task.template) if name}
    assert slots
    assert "{" not in task.instruction
    assert task.metrics
    assert task.eval_splits
    if task.kind is Kind.CLASSIFY:
        assert len(task.labels) == len(task.verbalizers) >= 2
    for splits in filter(None, [task.hub and task.hub.splits, task.raw and task.raw.files]):
        assert set(task.eval_splits) <= set(splits)
        assert task.trainable == ("train" in splits)
    if task.hub and task.benchmark != "transfer":
        assert len(task.hub.revision) == 40
        assert set(task.raw.files) == set(task.hub.splits)
    if task.raw:
        assert set(task.raw.labels.values()) == set(range(len(task.labels)))
    if task.train_on:
        assert TASKS[task.train_on].trainable


def test_diagnostic_sets_ask_as_the_task_they_belong_to():
    for diagnostic, owner in (("ax", "mnli"), ("axb", "rte"), ("axg", "rte")):
        for attribute in ("instruction", "answer_format", "labels"):
            assert getattr(TASKS[diagnostic], attribute) == getattr(TASKS[owner], attribute)


def test_package_imports_without_torch():
    code = "import sys, nlu_ppo.tasks; sys.exit('torch' in sys.modules or 'datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
