"""Where a model's files are, and what they are worth as part of a run's key. No torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from nlu_ppo.errors import ModelError

TINY = Path(__file__).parent / "tiny"
ADAPTER = "adapter_config.json"
SAMPLE = 1 << 20  # bytes read at either end of a file too large to be hashed whole at every start


def resolve_path(path: str) -> str:
    """`tiny`, a local directory or a hub id, as what `from_pretrained` takes.

    Raises:
        ModelError: the path is written like a directory and there is none.
    """
    if path == "tiny":
        return str(TINY)
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"model.path={path}: the directory holds no config.json, so it is no saved model"
            )
        return str(folder)
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        raise ModelError(f"model.path={path}: there is no such directory")
    return path


def fingerprint(path: str, revision: str | None) -> str:
    """What identifies a model's weights: id and revision on the hub, the contents of a local directory."""
    folder = Path(resolve_path(path))
    return _hash_folder(folder) if folder.is_dir() else f"hub:{path}@{revision or 'main'}"


def adapter_fingerprint(path: str | None) -> str | None:
    """What identifies a saved adapter: its contents.

    Raises:
        ModelError: the folder holds none.
    """
    if path is None:
        return None
    if not (Path(path) / ADAPTER).is_file():
        raise ModelError(f"model.adapter={path}: the folder holds no {ADAPTER}, so it is no saved adapter")
    return _hash_folder(Path(path))


def _hash_folder(folder: Path) -> str:
    """Names and contents of a model's files; of those above 64 MiB their size, first and last MiB."""
    digest = hashlib.sha256()
    wanted = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".py")
    for file in sorted(p for p in folder.iterdir() if p.suffix in wanted and p.name != "report.json"):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as stream:
            if size <= 64 * SAMPLE:
                digest.update(stream.read())
            else:
                digest.update(stream.read(SAMPLE))
                stream.seek(-SAMPLE, 2)
                digest.update(stream.read())
    return f"sha256:{digest.hexdigest()}"
