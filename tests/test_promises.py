"""The table of docs/reliability.md: made of the record, whose tests are there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from promises import BEGIN, END, PAGE, RECORD, ROOT, Seen, record, table, write_page


def test_the_page_shows_the_record() -> None:
    shown = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()
    assert shown == table(json.loads(RECORD.read_text(encoding="utf-8")))


def test_every_promise_of_the_record_has_its_test() -> None:
    for seen in json.loads(RECORD.read_text(encoding="utf-8")).values():
        file, _, rest = seen["test"].partition("::")
        function = re.sub(r"\[.*", "", rest)
        assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), seen["test"]
        assert seen["outcome"] == "passed", seen["test"]


def test_the_target_is_a_command_that_pytest_takes() -> None:
    """Pytest knows this project's options from tests/conftest.py alone, which it finds by the places of its tests."""
    told = subprocess.run(["make", "-n", "test-faults"], cwd=ROOT, capture_output=True, text=True, check=True)
    command = re.search(r"-m pytest (.*?);", told.stdout.replace("\\\n", " "), re.DOTALL)
    assert command, told.stdout
    words = [sys.executable, "-m", "pytest", *shlex.split(command[1])]
    shown = subprocess.run([*words, "--markers"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "--full" in words
    assert any(word.startswith("--record=") for word in words)


def test_tests_of_one_promise_share_a_row_and_add_up(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    record(
        file, [Seen("a kill", "it goes on", "tests/t.py::k[0]", "passed", 1.26, {"trials": 25})], full=True
    )
    more = [
        Seen("a kill", "it goes on", "tests/t.py::k[1]", "failed", 2.0, {"trials": 25, "seconds": 0.5}),
        Seen("Another", "nothing", "tests/t.py::other", "passed", 0.1),
        Seen("a kill", "it goes on", "tests/t.py::k[0]", "skipped", 0.0),
    ]
    record(file, more, full=False)
    known = json.loads(file.read_text())
    kept = known["tests/t.py::k[0] (a kill)"]  # of an earlier run: now it was skipped
    assert kept["seconds"] == 1.3
    head, line, kill, other = table(known).splitlines()
    assert head.startswith("| Fault | Promise |")
    assert set(line) == {"|", "-"}
    assert kill.startswith("| A kill | It goes on | `t.py::k` | 1 of 2 passed; trials: 50; seconds: 0.5 (")
    assert kill.endswith("short) |")
    assert other.startswith("| Another | Nothing | `t.py::other` | passed (")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nbehind\n")
    write_page(page, known)
    assert page.read_text() == f"before\n{BEGIN}\n{table(known)}\n{END}\nbehind\n"
    page.write_text("no marks")
    with pytest.raises(SystemExit, match=r"page\.md: the marks"):
        write_page(page, known)
