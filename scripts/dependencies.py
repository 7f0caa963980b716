"""Writes docs/dependencies.md: what this package needs, why, in which version, and under which licence.

    python scripts/dependencies.py

Reasons are in pyproject.toml (`tool.reasons`), versions in constraints.txt, licences in the metadata of what is
installed here.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "dependencies.md"
HEAD = """# Dependencies

Written by `python scripts/dependencies.py`. `make sbom` writes what is installed as CycloneDX JSON, and `make audit`
asks a database for known holes.
"""


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def name_of(requirement: str) -> str:
    """The package of `name[extra]>=1; marker`."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None, requirement
    return normal(found[0])


def direct() -> dict[str, list[str]]:
    """Package -> the extras that need it; an empty text stands for the package itself."""
    table = project()["project"]
    groups = {"": table["dependencies"], **table["optional-dependencies"]}
    found: dict[str, list[str]] = {}
    for group, requirements in groups.items():
        for requirement in requirements:
            found.setdefault(name_of(requirement), []).append(group)
    return found


def pinned(file: Path) -> dict[str, list[str]]:
    """Package -> its versions in a file of pins; several where they depend on Python."""
    found: dict[str, list[str]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        match = re.match(r"([A-Za-z0-9._-]+)==([^ ;\\\\]+)", line)
        if match:
            found.setdefault(normal(match[1]), []).append(match[2])
    return found


def licence(name: str) -> str:
    try:
        told = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return "-"
    classes = [c.rpartition(" :: ")[2] for c in told.get_all("Classifier", []) if c.startswith("License ::")]
    text = (
        told.get("License-Expression") or ", ".join(classes) or (told.get("License") or "-").splitlines()[0]
    )
    return text[:60].replace("|", "/")


def page() -> str:
    reasons, versions = project()["tool"]["reasons"], pinned(ROOT / "constraints.txt")
    mine = direct()
    lines = [HEAD, "## Direct", "", "| Package | Pinned | Licence | For | Why |", "|---|---|---|---|---|"]
    for name in sorted(mine):
        extras = ", ".join(extra or "every run" for extra in mine[name])
        pins = ", ".join(versions.get(name, ["-"]))
        lines.append(f"| {name} | {pins} | {licence(name)} | {extras} | {reasons[name]} |")
    needed_by: dict[str, set[str]] = {}
    for distribution in importlib.metadata.distributions():
        for requirement in distribution.requires or ():
            if "extra ==" not in requirement:
                needed_by.setdefault(name_of(requirement), set()).add(normal(distribution.name))
    lines += [
        "",
        "## What these need",
        "",
        "`-`: not installed where this page was written (another system or Python).",
        "",
    ]
    lines += ["| Package | Pinned | Licence | Needed by |", "|---|---|---|---|"]
    for name in sorted(set(versions) - set(mine)):
        by = ", ".join(sorted(needed_by.get(name, set()) & {*versions, *mine})) or "-"
        lines.append(f"| {name} | {', '.join(versions[name])} | {licence(name)} | {by} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
