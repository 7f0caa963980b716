"""A table as Markdown, LaTeX and HTML: read back by other programs, and with names that are markup."""

from __future__ import annotations

import base64
import html.parser
import itertools
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from run_folders import write_lines, write_run

from nlu_ppo.tables import build_table, collect, to_latex, to_markdown
from nlu_ppo.tables.__main__ import main
from nlu_ppo.tables.confusion import confusion_matrices
from nlu_ppo.tables.expected import Expected
from nlu_ppo.tables.latex import latex_text
from nlu_ppo.tables.page import to_html
from nlu_ppo.tables.plots import learning_curves, printed_bars, score_bars, to_svg
from nlu_ppo.tables.printed import load
from nlu_ppo.tables.render import markdown_text
from nlu_ppo.tables.sections import MISSING, sections

ODD = '<b>&"x"</b> |a_b| $x^2$ {y} %1 #2 ~ \\n `c` *d* [e](f) é 中 --'

GOLDEN = """\
# demo

## Scores

| task | method | score | 95% interval | seeds | unparsable % | by likelihood | majority | vs zero_shot | vs sft |
| :--- | :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| rte | majority | 55.0 | - | - | - | - | 55.0 | - | - |
| rte | zero_shot | 0.0 | 0.0 to 10.0 | n=1 | 5.0 | 2.0 | 55.0 | - | - |
| rte | sft | 100.0 ± 0.0 | 90.0 to 100.0 | n=2/3 | 5.0 | 102.0 | 55.0 | +100.0\\*\\*\\* (p\\<0.001) | - |
| rte | ppo | 50.0 | 40.0 to 60.0 | n=1 | 5.0 | 52.0 | 55.0 | +50.0\\*\\* (p=0.004) | -50.0\\*\\* (p=0.004) |
"""


@pytest.fixture
def study(tmp_path):
    """Zero-shot always wrong, SFT always right, PPO every other time, on twenty examples."""
    write_run(tmp_path, "zero_shot", correct=[0] * 20)
    write_run(tmp_path, "sft", 0, correct=[1] * 20, curve=[(0, 50.0), (64, 70.0)])
    write_run(tmp_path, "sft", 1, correct=[1] * 20, curve=[(0, 50.0), (64, 80.0)])
    write_run(tmp_path, "sft", 2, status="failed", error=f"ValueError: {ODD}")
    write_run(tmp_path, "ppo", correct=[0, 1] * 10)
    return collect(tmp_path, "demo")


def html_of(study, expected=None) -> str:
    table = build_table(study, expected=expected)
    pictures = {
        "bars": score_bars(study, table.rows),
        "curves": learning_curves(study, table.rows),
        "printed": printed_bars(study, table.rows, table.lines),
    }
    return to_html(study, table, {name: figure for name, figure in pictures.items() if figure})


class Page(html.parser.HTMLParser):
    """Checks nesting while it reads, and keeps tables, addresses and names of elements."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.addresses: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        self.addresses += [
            value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")
        ]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data
        if "style" not in self.open:
            self.text += data


def test_golden(study):
    assert to_markdown(build_table(study)).split("\n## Cost")[0] == GOLDEN


def test_marks_by_hand(study):
    # Twenty differing examples of one sign, and ten, twice: of the two equal ones the larger factor counts.
    found = sorted(comparison.corrected for comparison in build_table(study).comparisons.values())
    assert found == pytest.approx([3 * 2 / 2**20, 2 * 2 / 2**10, 2 * 2 / 2**10])


class TestMarkdown:
    READER = MarkdownIt("commonmark").enable("table")

    def cells(self, text: str) -> list[str]:
        """What a reader sees in the cells of the page's tables."""
        tokens = self.READER.parse(text)
        return [
            "".join(child.content for child in token.children)
            for before, token in itertools.pairwise(tokens)
            if before.type in ("td_open", "th_open")
        ]

    @given(st.lists(st.text(), min_size=1, max_size=4))
    @example([ODD])
    @example(["&amp;", "*a*", "a_b_c", "_a_", "\\|", "1. x", "- x"])
    def test_any_name_reads_as_it_is(self, names):
        line = "| " + " | ".join(map(markdown_text, names)) + " |"
        ruler = "| " + " | ".join(":---" for _ in names) + " |"
        # a reader drops NUL, and a line of the table has no line breaks
        wanted = [" ".join(name.replace("\0", "\ufffd").split()) for name in names]
        assert self.cells(f"{line}\n{ruler}\n") == wanted

    def test_all_cells_come_out(self, study):
        table = build_table(study)
        wanted = [t for s in sections(table) for t in ([h for h, _ in s.columns], *s.rows)]
        assert self.cells(to_markdown(table)) == [text for row in wanted for text in row]


class TestLatex:
    @given(st.text())
    @example(ODD)
    def test_no_special_letter_is_left(self, text):
        written = latex_text(text)
        assert written.count("{") - written.count(r"\{") == written.count("}") - written.count(r"\}")
        bare = re.sub(r"\\(text\w+\{\}|[{}$&#%_])|\$\\pm\$|\{.\}", "", written)
        assert not set(bare) & set("\\{}$&#%_^~<>|\"'`")
        assert all(letter.isascii() or "À" <= letter <= "ÿ" for letter in written)

    def test_rows_and_columns(self, study):
        table = build_table(study)
        first = to_latex(table).split(r"\begin{tabular}")[1].split(r"\end{tabular}")[0]
        assert first.startswith("{llrrrrrrrr}")
        lines = [line for line in first.splitlines() if line.endswith(r"\\")]
        assert len(lines) == 1 + 4
        assert {line.count(" & ") for line in lines} == {9}
        assert r"rte & zero\_shot & 0.0 & 0.0 to 10.0" in first
        assert r"$-$50.0{*}{*} (p=0.004)" in first

    @pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex isn't installed")
    def test_compiles(self, tmp_path, study):
        write_run(tmp_path, lora=ODD)
        write_run(tmp_path, lora="".join(map(chr, range(32, 256))))
        (tmp_path / "table.tex").write_text(to_latex(build_table(collect(tmp_path, "demo"))))
        (tmp_path / "paper.tex").write_text(
            "\\documentclass[twocolumn]{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs,textcomp,graphicx}\n"
            "\\begin{document}\\input{table}\\end{document}\n"
        )
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
            cwd=tmp_path, capture_output=True, text=True, errors="replace",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:]
        assert (tmp_path / "paper.pdf").stat().st_size > 0


class TestPage:
    def test_needs_nothing_beside_itself(self, study):
        text = html_of(study, Expected(printed=(load("a_table_9"),)))
        page = Page(text)
        assert all(address.startswith("data:") for address in page.addresses)
        assert sum(address.startswith("data:image/svg+xml;base64,") for address in page.addresses) == 3
        assert not page.names & {"script", "iframe", "object", "form"}
        assert "@import" not in text
        assert "url(" not in text

    def test_pictures_are_drawings_without_addresses(self, study):
        for address in Page(html_of(study)).addresses:
            if "base64," not in address:
                continue
            drawn = base64.b64decode(address.partition("base64,")[2]).decode()
            root = ElementTree.fromstring(drawn)
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            links = [v for e in root.iter() for k, v in e.attrib.items() if k.endswith(("href", "src"))]
            assert links
            assert all(link.startswith("#") for link in links)
            assert "prefers-color-scheme" in drawn

    def test_the_same_page_every_time(self, study):
        assert html_of(study) == html_of(study)

    def test_tables_are_the_sections(self, study):
        table = build_table(study)
        page = Page(html_of(study))
        for section in sections(table):
            assert [[h for h, _ in section.columns], *map(list, section.rows)] in page.tables

    def test_odd_names_are_text(self, tmp_path):
        write_run(tmp_path, lora=ODD)
        write_run(tmp_path, lora="other")
        page = Page(html_of(collect(tmp_path, "demo")))
        assert any(ODD in row for table in page.tables for row in table)
        assert "b" not in page.names

    def test_failures_and_faults_are_told(self, tmp_path, study):
        folder = tmp_path / "expected"
        folder.mkdir()
        (folder / "demo.yaml").write_text(
            "printed: [a_table_1]\nreason: by hand\n"
            "cells: [{task: rte, model: tiny, method: ppo, value: 80, tolerance: 5}]\n"
        )
        assert main(["demo", "--outputs", str(tmp_path), "--expected", str(folder)]) == 1
        page = Page((tmp_path / "demo" / "tables" / "table.html").read_text(encoding="utf-8"))
        assert "rte, tiny, ppo: 50.0, expected 80.0 within 5.0: -30.0, drifted" in page.text
        assert "very probably an artefact of the labels" in " ".join(page.text.split())
        assert "ValueError: <b>" in page.text

    def test_a_picture_takes_the_page_s_colours(self, study):
        drawn = to_svg(score_bars(study, build_table(study).rows))
        assert "#000000" not in drawn
        assert "currentColor" in drawn


class TestConfusion:
    def matrices(self, folder: Path):
        study = collect(folder, "demo")
        return confusion_matrices(study, build_table(study))

    def write(self, outputs: Path, pairs, method="sft", seed=0, task="rte") -> None:
        folder = write_run(outputs, method, seed, task=task)
        lines = [
            {"id": f"validation-{i}", "label": said, "reference": gold, "correct": said == gold}
            for i, (gold, said) in enumerate(pairs)
        ]
        write_lines(folder / "predictions.jsonl", lines)

    def test_counts_by_hand(self, tmp_path):
        self.write(tmp_path, [(0, 0), (0, 0), (0, 1), (1, None)], seed=0)
        self.write(tmp_path, [(0, 0), (0, None), (0, 1), (1, 1)], seed=1)
        ((group,), without) = self.matrices(tmp_path)
        assert (group.title, group.classes, group.rounded, without) == ("rte", ("Yes", "No"), False, [])
        (matrix,) = group.matrices
        assert matrix.label == "sft"
        assert matrix.counts == ((3, 2, 1), (0, 1, 1))  # the last column: unparsable
        assert matrix.share(0, 0) == 0.5
        assert matrix.share(1, 2) == 0.5

    def test_numbers_are_rounded(self, tmp_path):
        self.write(tmp_path, [(0.4, 0.0), (4.5, 5.0), (2.25, None), (4.4, 3.6)], task="stsb")
        ((group,), _) = self.matrices(tmp_path)
        assert (group.classes, group.rounded) == (("0", "2", "4", "5"), True)
        assert group.matrices[0].counts == (
            (1, 0, 0, 0, 0),
            (0, 0, 0, 0, 1),
            (0, 0, 1, 0, 0),
            (0, 0, 0, 1, 0),
        )

    def test_texts_have_none(self, tmp_path):
        self.write(tmp_path, [(["Paris", "paris"], "Paris"), (["Rome"], None)], task="squad")
        assert self.matrices(tmp_path) == ([], ["squad"])

    def test_a_class_that_never_occurs(self, tmp_path):
        self.write(tmp_path, [(0, 0), (0, 1)])
        ((group,), _) = self.matrices(tmp_path)
        assert group.matrices[0].share(1, 0) is None
        page = Page(html_of(collect(tmp_path, "demo")))
        assert [
            ["", "Yes", "No", "unparsable"],
            ["Yes", "501", "501", "00"],
            ["No", *[MISSING] * 3],
        ] in page.tables
