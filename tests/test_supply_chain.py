"""Pins, hashes and reasons of what this package needs."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from composing import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import audit_offline
from dependencies import PAGE, direct, pinned, project

LOCK, PINS = ROOT / "requirements.lock", ROOT / "constraints.txt"
WITHOUT = ("torch", "triton", "psycopg2-binary")  # and what CUDA needs: the Makefile says why


replaced = pytest.mark.promise(
    "a package on the index replaced by another", "pip refuses what doesn't have the lock's hash"
)


@replaced
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


@replaced
def test_pip_refuses_another_file(tmp_path: Path) -> None:
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    lock = tmp_path / "lock.txt"

    def write(text: str) -> str:
        with zipfile.ZipFile(wheel, "w") as file:
            file.writestr("thing.py", text)
            file.writestr(
                "thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n"
            )
            file.writestr(
                "thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            file.writestr("thing-1.0.dist-info/RECORD", "")
        return hashlib.sha256(wheel.read_bytes()).hexdigest()

    def install() -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--no-index",
            "--find-links",
            str(tmp_path),
            "--no-deps",
        ]
        command += [
            "--require-hashes",
            "--target",
            str(tmp_path / "there"),
            "--no-cache-dir",
            "-r",
            str(lock),
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    lock.write_text(f"thing==1.0 --hash=sha256:{write('right = True')}\n")
    write("right = False")
    refused = install()
    assert refused.returncode != 0
    assert "DO NOT MATCH THE HASHES" in refused.stderr
    assert not (tmp_path / "there").exists()
    write("right = True")
    lock.write_text(f"thing==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    assert install().returncode == 0
    assert (tmp_path / "there" / "thing.py").read_text() == "right = True"


@pytest.mark.parametrize(
    ("affected", "version", "hit"),
    [
        ({"versions": ["1.0", "1.1"]}, "1.1", True),
        ({"versions": ["1.0", "1.1"]}, "1.2", False),
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.10"}]}]}, "1.9", True),
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.10"}]}]}, "1.10", False),
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "1.5"}]}]}, "1.4", False),
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "1.5"}]}]}, "2.0", True),
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "1"}, {"last_affected": "2"}]}]}, "2", True),
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "1"}, {"last_affected": "2"}]}]}, "2.1", False),
        (
            {"ranges": [{"type": "ECOSYSTEM", "events": [
                {"introduced": "1"}, {"fixed": "2"}, {"introduced": "3"}, {"fixed": "4"}]}]},
            "3.5",
            True,
        ),
        ({"ranges": [{"type": "GIT", "events": [{"introduced": "0"}]}]}, "1", False),
    ],
)  # fmt: skip
def test_which_versions_an_advisory_covers(affected: dict[str, Any], version: str, hit: bool) -> None:
    assert audit_offline.covers(affected, version) is hit


def test_an_audit_from_the_disk_names_the_pin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "vulns" / "torch").mkdir(parents=True)
    told = "{id: PYSEC-1, modified: 2024-01-02, details: A hole, affected: [{ranges: [%s]}]%s}"
    events = "{type: ECOSYSTEM, events: [{introduced: '0'}]}"
    (tmp_path / "vulns" / "torch" / "PYSEC-2.yaml").write_text(told % (events, ", withdrawn: 2024-01-03"))
    assert audit_offline.main(tmp_path) == 0
    (tmp_path / "vulns" / "torch" / "PYSEC-1.yaml").write_text(told % (events, ""))
    assert audit_offline.main(tmp_path) == 1
    version = pinned(PINS)["torch"][0]
    assert f"torch {version}: PYSEC-1: A hole\n" in capsys.readouterr().out
