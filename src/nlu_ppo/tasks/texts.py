"""Running texts, on which a run's perplexity is measured: where they come from, and what they are in its key.

`wikitext` is the test split of WikiText-2 (Merity et al. 2016) on the hub, in its raw form, its lines joined by
an empty line between them, as all do who report its perplexity by token. A file counts as it is.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from nlu_ppo.errors import ConfigError, DataError
from nlu_ppo.tasks.record import HubSource

WIKITEXT = "wikitext"
SPLIT = "test"
HUB = HubSource(
    "Salesforce/wikitext", "wikitext-2-raw-v1", "b08601e04326c79dfdd32d625aee71d232d685c3", {SPLIT: SPLIT}
)
BETWEEN_LINES = "\n\n"


@dataclass(frozen=True)
class Text:
    """A text and the name that its perplexity is reported under."""

    name: str
    content: str


def read_text(source: str) -> Text:
    """The text that `eval.perplexity` names.

    Raises:
        ConfigError: it names nothing that is there.
        DataError: the file is not UTF-8, or the hub can't be reached.
    """
    path = _local(source)
    if path is not None and path.is_file():
        try:
            return Text(_name(source), path.read_bytes().decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    from nlu_ppo.tasks.hub import load_split  # imports `datasets`, which takes seconds

    advice = f"name a text file, or a folder with {HUB.config}/{SPLIT}-*.parquet"
    rows = load_split(f"eval.perplexity={source}", HUB, SPLIT, path, advice)
    return Text(_name(source), BETWEEN_LINES.join(row["text"] for row in rows))


def text_identity(source: str) -> dict[str, str]:
    """What identifies a text: its name, and the hub's revision or a hash of the files.

    Raises:
        ConfigError: it names nothing that is there.
    """
    path = _local(source)
    if path is None:
        return {"name": _name(source), "contents": f"hub:{HUB.path}@{HUB.revision}/{HUB.config}/{SPLIT}"}
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else _parquet(path):
        digest.update(file.read_bytes())
    return {"name": _name(source), "contents": f"sha256:{digest.hexdigest()}"}


def _local(source: str) -> Path | None:
    """The file or folder that is meant; `None` for the hub."""
    if source == WIKITEXT:
        return None
    path = Path(source).expanduser()
    if path.is_file() or (path.is_dir() and _parquet(path)):
        return path
    wrong = (
        f"the folder holds no {HUB.config}/{SPLIT}-*.parquet" if path.is_dir() else "there is no such file"
    )
    raise ConfigError(
        f"eval.perplexity={source}: {wrong}. Name a text file, {WIKITEXT} for the hub's WikiText-2, or a folder "
        f"with {HUB.config}/{SPLIT}-*.parquet"
    )


def _parquet(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{HUB.config}/{SPLIT}-*.parquet"))


def _name(source: str) -> str:
    """A name that a metric may have."""
    path = Path(source).expanduser()
    return (
        WIKITEXT
        if source == WIKITEXT or path.is_dir()
        else re.sub(r"[^\w.-]+", "_", path.stem, flags=re.ASCII)
    )
