"""Files that survive a kill and a full disk: written whole or not at all, and known to be whole when read."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from nlu_ppo.errors import MALFORMED, DiskError

log = logging.getLogger(__name__)

SEAL = "complete.json"  # written last into a folder: its files by name, with size and SHA-256
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What else a system answers that is no fault of the program, and what there is to do.
REFUSALS = {
    errno.EROFS: "take another outputs=DIR, or have the disk mounted for writing",
    errno.EACCES: "this user needs the permission, or another outputs=DIR",
    errno.EPERM: "this user needs the permission, or another outputs=DIR",
    errno.ENOTDIR: "a file stands where a folder has to be: move it away, or take another outputs=DIR",
    errno.EIO: "the disk fails, or is gone: see to it",
    errno.ESTALE: "the disk fails, or is gone: see to it",
    errno.ENODEV: "the disk fails, or is gone: see to it",
    errno.ENOTCONN: "the disk fails, or is gone: see to it",
    errno.EMFILE: "this process has too many files open: raise the limit (ulimit -n)",
    errno.ENFILE: "the machine has too many files open: close some, or raise its limit",
}
# safetensors (Rust) keeps the number in its text, torch.save (C++) none: it only finds its file too short.
LIBRARIES_SAY = (*(f"os error {number})" for number in NO_ROOM), "PytorchStreamWriter", "unexpected pos")


# -- disks that don't do as they are asked --------------------------------------------------------------------


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around whatever writes `path` (a file, or files below it).

    Raises:
        DiskError: the disk is full, or the quota or the limit on a file's size is used up; or it may not be written to,
            fails, or is gone.
    """
    try:
        yield
    except Exception as error:
        found = as_disk_error(error, path)
        if found is None:
            raise
        raise found from error


def as_disk_error(error: BaseException, path: Path | None = None) -> DiskError | None:
    """What to tell the user if a file can't be written, or opened, for a reason outside the program, else `None`.

    Args:
        path: what was being written, where the error doesn't know.
    """
    if isinstance(error, DiskError):
        return error
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        known = error.filename if isinstance(error.filename, str) else None
        return _no_room(path if known is None else Path(known), os.strerror(error.errno))
    if isinstance(error, OSError) and error.errno in REFUSALS:
        named = Path(error.filename) if isinstance(error.filename, str) else path
        return None if named is None else _refused(named, error.errno)
    if path is not None and any(words in str(error) for words in LIBRARIES_SAY):
        return _no_room(path, str(error).splitlines()[0])
    number = re.search(r"\(os error (\d+)\)", str(error))
    if path is not None and number and int(number[1]) in REFUSALS:
        return _refused(path, int(number[1]))
    return None


def _refused(path: Path, number: int) -> DiskError:
    return DiskError(
        f"{path}: {os.strerror(number)}; {REFUSALS[number]}. What was finished before is whole, and the same command "
        f"goes on"
    )


def _no_room(path: Path | None, reason: str) -> DiskError:
    if path is None:
        return DiskError(f"a file could not be written ({reason}): make room, and start again")
    disk = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    free = shutil.disk_usage(disk).free / 2**20
    mount = next(p for p in (disk, *disk.parents) if p.is_mount())
    return DiskError(
        f"{path} could not be written ({reason}); the disk at {mount} has {free:.1f} MB left. What was finished "
        f"before is whole: make room, and start the same command again"
    )


# -- one file ------------------------------------------------------------------------------------------------


def write_atomic(path: Path, text: str) -> None:
    """Writes `path` so that a reader sees the old text or the new one, never a part.

    Raises:
        DiskError: there is no room; the old file stays.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with writing(path), partial.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except DiskError:
        partial.unlink(missing_ok=True)  # every byte counts now
        raise


# -- a folder ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Around whatever writes the files of `folder`: gives another place for them, which is sealed and becomes `folder`
    once all are there. Until then what `folder` held stays.

    Raises:
        DiskError: there is no room.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    try:
        with writing(folder):
            partial.mkdir(parents=True)
            yield partial
            seal(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    replace_folder(partial, folder)


def replace_folder(partial: Path, final: Path) -> None:
    """Puts a folder that is written to its end where an older one may be."""
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)


def seal(folder: Path) -> None:
    """Marks a folder as written to its end, and brings its files to the disk."""
    files = {}
    for file in sorted(p for p in folder.iterdir() if p.is_file() and p.name != SEAL):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        files[file.name] = [file.stat().st_size, _sha256(file)]
    write_atomic(folder / SEAL, json.dumps(files, indent=1))


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in words; `None` if it is as it was when it was sealed."""
    try:
        files = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        for name, (size, digest) in files.items():
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes in place of {size}"
            if _sha256(folder / name) != digest:
                return f"the contents of {name} have changed"
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        return "it was not written to its end" if missing == SEAL else f"{missing} is missing"
    except (OSError, *MALFORMED) as error:
        return f"it can't be read ({error})"
    return None


def newest_whole(folders: Iterable[Path]) -> Path | None:
    """The last of `folders` that is whole. Damaged ones behind it are named and removed.

    Left where they are, they would count among the newest ones that are kept, in place of good ones.
    """
    for folder in reversed(list(folders)):
        wrong = damage(folder)
        if wrong is None:
            return folder
        log.warning("%s is not used: %s. The one before it is taken, if there is one.", folder, wrong)
        shutil.rmtree(folder, ignore_errors=True)
    return None


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
