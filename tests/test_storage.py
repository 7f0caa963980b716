"""Files on a full disk (/dev/full, which has room for nothing), and folders that know whether they are whole."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from nlu_ppo.errors import DiskError
from nlu_ppo.mistakes import explain
from nlu_ppo.prompt_cache import PromptCache
from nlu_ppo.prompting import Prompt
from nlu_ppo.storage import as_disk_error, damage, newest_whole, seal, write_atomic, writing
from nlu_ppo.tracking.folder import RunFolder

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


@needs_full
@pytest.mark.promise(
    "a full disk",
    "one line that names the file and the disk; files that were there stay whole",
)
def test_a_full_disk_leaves_the_old_file_and_is_named(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    write_atomic(file, "old")
    (tmp_path / "result.json.partial").symlink_to(FULL)
    with pytest.raises(
        DiskError, match=r"result\.json could not be written \(No space left.*the disk at /.* MB left"
    ):
        write_atomic(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]  # what it had begun to write takes no room


@needs_full
@pytest.mark.promise(
    "a full disk",
    "one line that names the file and the disk; files that were there stay whole",
)
def test_metrics_without_room_are_a_mistake_of_no_programmer(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "key")
    (tmp_path / "metrics.jsonl").symlink_to(FULL)
    with pytest.raises(DiskError) as error:
        folder.append_metrics({"step": 1})
    assert explain(error.value) == str(error.value)
    assert "metrics.jsonl" in str(error.value)


@pytest.mark.parametrize(
    ("number", "do"),
    [(errno.EROFS, "mounted for writing"), (errno.EACCES, "the permission"), (errno.EIO, "the disk fails"),
     (errno.ENOTDIR, "a file stands where"), (errno.EMFILE, "ulimit -n")],
)  # fmt: skip
def test_what_a_system_refuses_is_named_with_what_to_do(tmp_path: Path, number: int, do: str) -> None:
    for error in (
        OSError(number, "no", str(tmp_path / "file")),
        RuntimeError(f"could not write (os error {number})"),
    ):
        with pytest.raises(DiskError) as found, writing(tmp_path / "file"):
            raise error
        assert str(found.value).startswith(f"{tmp_path / 'file'}: {os.strerror(number)}; ")
        assert do in str(found.value)


def test_errors_that_say_something_else_stay_what_they_are(tmp_path: Path) -> None:
    assert as_disk_error(PermissionError(errno.EPERM, "no process of yours")) is None
    assert as_disk_error(FileNotFoundError(errno.ENOENT, "no"), tmp_path) is None
    assert as_disk_error(RuntimeError("No such checkpoint"), tmp_path) is None
    assert as_disk_error(OSError(errno.EDQUOT, "quota", str(tmp_path / "x")), None) is not None


@needs_full
def test_without_room_for_tokenised_prompts_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, mode: original(FULL if mode == "x+b" else self, mode.replace("x", "w"))
    )
    prompts = [Prompt("text " * 100, tuple(range(100)), False)] * 50
    with caplog.at_level(logging.WARNING):
        assert list(PromptCache(tmp_path).get("a" * 64, lambda: prompts)) == prompts
    assert "no tokenised prompts are kept" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_prompts_that_a_killed_run_left_half_written_go(tmp_path: Path) -> None:
    old, others = tmp_path / "aaaaaaaa-1.partial", tmp_path / "aaaaaaaa-2.partial"
    old.write_text("half")
    others.write_text("at work")
    os.utime(old, (0, 0))
    PromptCache(tmp_path).get("a" * 64, lambda: [Prompt("text", (1,), False)])
    assert not old.exists()
    assert others.exists()


@pytest.mark.promise(
    "metrics.jsonl torn by a kill",
    "the torn line is no line, and is written again",
)
def test_a_torn_last_line_of_metrics_is_no_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "key")
    folder.append_metrics({"step": 1, "text": "a\u2028b"})  # which splitlines() would take for two
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 2, "loss": 0.')
    assert folder.read_metrics() == [{"step": 1, "text": "a\u2028b"}]
    folder.truncate_metrics(1, scored=1)
    folder.append_metrics({"step": 2})
    assert [line["step"] for line in folder.read_metrics()] == [1, 2]


def sealed(folder: Path) -> Path:
    folder.mkdir()
    (folder / "a.bin").write_bytes(bytes(range(256)))
    (folder / "b.json").write_text("{}")
    seal(folder)
    return folder


def test_a_sealed_folder_knows_what_has_happened_to_it(tmp_path: Path) -> None:
    assert damage(sealed(tmp_path / "whole")) is None
    (sealed(tmp_path / "short") / "a.bin").write_bytes(bytes(range(255)))
    assert damage(tmp_path / "short") == "a.bin has 255 bytes in place of 256"
    (sealed(tmp_path / "changed") / "a.bin").write_bytes(bytes(reversed(range(256))))
    assert damage(tmp_path / "changed") == "the contents of a.bin have changed"
    (sealed(tmp_path / "missing") / "b.json").unlink()
    assert damage(tmp_path / "missing") == "b.json is missing"
    (sealed(tmp_path / "open") / "complete.json").unlink()
    assert damage(tmp_path / "open") == "it was not written to its end"
    (sealed(tmp_path / "torn") / "complete.json").write_text('{"a.bin": [25')
    assert str(damage(tmp_path / "torn")).startswith("it can't be read")


def test_the_newest_whole_folder_is_taken_and_damaged_ones_go(tmp_path: Path) -> None:
    folders = [sealed(tmp_path / name) for name in ("1", "2", "3")]
    (folders[2] / "a.bin").unlink()
    assert newest_whole(folders) == folders[1]
    assert not folders[2].exists()
    assert newest_whole([]) is None
