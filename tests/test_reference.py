"""The committed generated pages are the ones that the code gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nlu_ppo.choices import Choice, read_groups
from nlu_ppo.config import ModelConfig, RewardModelConfig, SFTConfig, walk
from nlu_ppo.mistakes import all_fields
from nlu_ppo.models.page import page as models_page
from nlu_ppo.reference import DOCS, MODELS_PAGE, PAGE, TASKS_PAGE, _choices_table, main, page
from nlu_ppo.tasks import TASKS
from nlu_ppo.tasks.page import page as tasks_page


@pytest.mark.parametrize(
    ("file", "text"),
    [(PAGE, page()), (TASKS_PAGE, tasks_page()), (MODELS_PAGE, models_page())],
    ids=["config", "tasks", "models"],
)
def test_the_committed_pages_are_up_to_date(file, text):
    assert file.read_text(encoding="utf-8") == text, f"run `make docs` and commit {file.name}"


def test_every_task_is_on_its_page_with_what_its_record_says():
    text = tasks_page()
    for task in TASKS.values():
        section = text.partition(f"\n## {task.name}\n")[2].partition("\n## ")[0]
        assert task.instruction in section
        assert task.template in section
        assert all(f"`{word}`" in section for word in task.verbalizers)
        assert all(f"`{name}`" in section for name in task.metrics)
        assert task.hub is None or f"`{task.hub.path}`" in section
        (row,) = [line for line in text.splitlines() if line.startswith(f"| [`{task.name}`](#{task.name}) ")]
        for size in task.sizes.values():
            assert f"{size:,}" in row


def test_sizes_are_known_for_all_splits():
    for task in TASKS.values():
        if task.benchmark != "transfer":  # of some of those nobody has said it
            wanted = set(task.hub.splits) if task.hub else {"train", "validation", "test"}
            assert set(task.sizes) == wanted, task.name


def test_every_key_and_every_choice_is_on_the_page():
    text = page()
    for key, _, _ in all_fields():
        assert f"| `{key}` |" in text
    for choices in read_groups().values():
        for choice in choices:
            assert f"`{choice.name}`" in text or f"### {choice.name}\n" in text


def test_no_key_is_listed_twice():
    """In a section. Methods of different sections may have keys of the same name, and what they share is above."""
    for section in re.split("^#+ ", page().split("## Studies")[0], flags=re.MULTILINE):
        keys = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
        dotted = [key for key in keys if "." in key]
        assert len(dotted) == len(set(dotted)), section.partition("\n")[0]
    assert page().count("| `method.rollouts` |") == page().count("| `method.batch_size` |") == 1


@pytest.mark.parametrize("text", [page(), tasks_page(), models_page()], ids=["config", "tasks", "models"])
def test_every_row_of_a_table_has_its_columns(text):
    width = None
    for line in text.splitlines():
        if not line.startswith("|"):
            width = None
            continue
        columns = line.replace("\\|", "").count("|")
        width = width or columns
        assert columns == width, line


def test_a_choice_shows_what_it_sets():
    choice = Choice("lora", "wide", "Much room.", {"name": "wide", "r": 64, "targets": None})
    assert "| `wide` | Much room. | `r=64`, `targets=null` |" in _choices_table([choice], None)


def test_main_writes_the_pages(tmp_path, capsys):
    main(tmp_path / "docs")
    for file in (PAGE, TASKS_PAGE, MODELS_PAGE):
        assert (tmp_path / "docs" / file.name).read_bytes() == (DOCS / file.name).read_bytes()
    assert capsys.readouterr().out.count("wrote") == 3


NESTED = {  # settings of one thing within those of another
    "method.start.": SFTConfig,
    "reward.label_model.": RewardModelConfig,
    "reward.rationale_model.": RewardModelConfig,
    "reward.model.": ModelConfig,
}
PROSE = [*sorted(PAGE.parent.glob("*.md")), *sorted(PAGE.parents[1].glob("*.md"))]


@pytest.mark.parametrize("file", PROSE, ids=lambda path: path.name)
def test_pages_name_only_what_exists(file: Path):
    text = file.read_text(encoding="utf-8")
    makefile = (PAGE.parents[1] / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^(?:    |`)?make ([a-z-]+)|`make ([a-z-]+)", text, re.MULTILINE):
        assert re.search(rf"^{''.join(target)}:", makefile, re.MULTILINE), target
    known = {key for key, _, _ in all_fields()}
    for place, schema in NESTED.items():
        known |= {key for key, _, _ in walk(schema(), place)}
    groups = "|".join(sorted({key.partition(".")[0] for key in known if "." in key}))
    for key in re.findall(rf"`((?:{groups})\.[a-z_.]+)(?:=[^`]*)?`", text):
        assert key in known, key
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (file.parent / target).exists(), target


def test_the_metrics_on_the_page_are_logged():
    text = (PAGE.parent / "concepts.md").read_text(encoding="utf-8")
    source = "".join(file.read_text(encoding="utf-8") for file in (PAGE.parents[1] / "src").rglob("*.py"))
    names = re.findall(r"`((?:train|ppo|select)/[a-z0-9_]+)`", text)
    assert names
    for name in names:
        assert f'"{name}"' in source, name
