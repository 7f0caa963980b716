"""The committed page on configuration is the one that the code gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nlu_ppo.choices import Choice, read_groups
from nlu_ppo.mistakes import all_fields
from nlu_ppo.reference import PAGE, _choices_table, main, page


def test_the_committed_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs` and commit docs/configuration.md"


def test_every_key_and_every_choice_is_on_the_page():
    text = page()
    for key, _, _ in all_fields():
        assert f"| `{key}` |" in text
    for choices in read_groups().values():
        for choice in choices:
            assert f"`{choice.name}`" in text or f"### {choice.name}\n" in text


def test_no_key_is_listed_twice():
    keys = [
        line.split("|")[1] for line in page().split("## Studies")[0].splitlines() if line.startswith("| `")
    ]
    dotted = [key for key in keys if "." in key]
    assert len(dotted) == len(set(dotted))


def test_every_row_of_a_table_has_its_columns():
    width = None
    for line in page().splitlines():
        if not line.startswith("|"):
            width = None
            continue
        columns = line.replace("\\|", "").count("|")
        width = width or columns
        assert columns == width, line


def test_a_choice_shows_what_it_sets():
    choice = Choice("lora", "wide", "Much room.", {"name": "wide", "r": 64, "targets": None})
    assert "| `wide` | Much room. | `r=64`, `targets=null` |" in _choices_table([choice], None)


def test_main_writes_the_page(tmp_path, capsys):
    main(tmp_path / "docs" / "page.md")
    assert (tmp_path / "docs" / "page.md").read_text(encoding="utf-8") == page()
    assert "wrote" in capsys.readouterr().out


PROSE = [*sorted(PAGE.parent.glob("*.md")), *sorted(PAGE.parents[1].glob("*.md"))]


@pytest.mark.parametrize("file", PROSE, ids=lambda path: path.name)
def test_pages_name_only_what_exists(file: Path):
    text = file.read_text(encoding="utf-8")
    makefile = (PAGE.parents[1] / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^(?:    |`)?make ([a-z-]+)|`make ([a-z-]+)", text, re.MULTILINE):
        assert re.search(rf"^{''.join(target)}:", makefile, re.MULTILINE), target
    known = {key for key, _, _ in all_fields()}
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
