"""Pins, hashes and reasons of what this package needs."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
from composing import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from dependencies import PAGE, direct, pinned, project

LOCK, PINS = ROOT / "requirements.lock", ROOT / "constraints.txt"
WITHOUT = ("torch", "triton", "psycopg2-binary")  # and what CUDA needs: the Makefile says why


@pytest.mark.promise(
    "a package on the index replaced by another", "pip refuses what doesn't have the lock's hash"
)
def test_every_package_of_the_lock_has_a_hash_and_the_pinned_version(figures: dict[str, Any]) -> None:
    entries = re.split(r"\n(?=[A-Za-z0-9])", LOCK.read_text(encoding="utf-8").strip())
    for entry in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
    locked, pins = pinned(LOCK), pinned(PINS)
    assert all(pins[name] == versions for name, versions in locked.items())
    missing = {name for name in pins.keys() - locked.keys() if not name.startswith(("nvidia-", "cuda-"))}
    assert missing == set(WITHOUT)
    assert "://" not in LOCK.read_text(encoding="utf-8")
    figures["packages"], figures["hashes"] = len(locked), LOCK.read_text(encoding="utf-8").count("--hash=")


def test_every_direct_dependency_has_a_reason_and_a_row() -> None:
    assert project()["tool"]["reasons"].keys() == direct().keys()
    told = PAGE.read_text(encoding="utf-8")
    for name in {*direct(), *pinned(PINS)}:
        assert f"\n| {name} | " in told, name
