"""What conf/ and sweeps/ offer: every group's choices, and what their leading comment says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nlu_ppo.errors import MALFORMED, ConfigError, first_words

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
STUDIES = "sweeps"  # conf/sweeps is a link to the folder beside it; its files are grids, not parts of a run
EXPECTED = f"{STUDIES}/expected"  # what tables are held to: no configuration


@dataclass(frozen=True)
class Choice:
    """One YAML file of a group.

    Attributes:
        about: the comment that the file opens with, on one line.
        values: what the file sets, without its defaults list.
    """

    group: str
    name: str
    about: str
    values: Mapping[str, Any]


def read_groups(conf: Path = CONF) -> dict[str, list[Choice]]:
    """Choices by group, in alphabetical order; Hydra's own groups (`hydra/launcher`) come last."""
    found: dict[str, list[Choice]] = {}
    folders = [path for path in conf.iterdir() if path.is_dir()] if conf.is_dir() else []
    for folder in sorted(folders, key=lambda path: (path.name == "hydra", path.name)):
        # per folder, since a link such as conf/sweeps is followed only where a search starts at it
        for file in sorted(folder.rglob("*.yaml")):
            group = file.parent.relative_to(conf).as_posix()
            if group == EXPECTED:
                continue
            found.setdefault(group, []).append(_read(group, file))
    return found


def default_choices(conf: Path = CONF) -> dict[str, str]:
    """The choice that each group has when nothing is said."""
    defaults = yaml.safe_load((conf / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    pairs = [item for item in defaults if isinstance(item, dict)]
    return {key.removeprefix("override "): name for pair in pairs for key, name in pair.items()}


def _read(group: str, file: Path) -> Choice:
    try:
        text = file.read_text(encoding="utf-8")
        values = {key: value for key, value in (yaml.safe_load(text) or {}).items() if key != "defaults"}
    except (OSError, yaml.YAMLError, *MALFORMED) as error:
        raise ConfigError(f"{file} is no YAML with keys and values: {first_words(error)}") from error
    comments = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        comments.append(line.lstrip("#").strip())
    about = " ".join(c for c in comments if c and not c.startswith("@package"))
    return Choice(group, file.stem, about, values)
