"""Compares the pinned versions with advisories on the disk, where no database of known holes can be asked.

    git clone https://github.com/pypa/advisory-database
    python scripts/audit_offline.py advisory-database

Prints each advisory that covers a pinned version, then how many there were, and of which day the newest is. Exits with
1 if any covers one. An advisory (https://ossf.github.io/osv-schema) covers a version that it lists, or that lies in one
of its ranges.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from dependencies import ROOT, pinned
from packaging.utils import canonicalize_name
from packaging.version import Version


def covers(affected: Mapping[str, Any], version: str) -> bool:
    """Whether one entry under `affected` of an advisory is about a version."""
    if version in (affected.get("versions") or ()):
        return True
    ranges = [r["events"] for r in affected.get("ranges") or () if r["type"] == "ECOSYSTEM"]
    return any(_within(events, Version(version)) for events in ranges)


def _within(events: Sequence[Mapping[str, str]], version: Version) -> bool:
    """Events are in the order of versions; each `introduced` lasts until the next `fixed` or `last_affected`."""
    inside = False
    for event in events:
        (what, at), *_ = event.items()
        if what == "introduced" and (at == "0" or version >= Version(at)):
            inside = True
        elif (what == "fixed" and version >= Version(at)) or (
            what == "last_affected" and version > Version(at)
        ):
            inside = False
    return inside


def advisories(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Those about a package that were not withdrawn."""
    for file in sorted((folder / "vulns" / name).glob("*.yaml")):
        told = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not told.get("withdrawn"):
            yield told


def main(folder: Path) -> int:
    if not (folder / "vulns").is_dir():
        sys.exit(f"{folder} holds no folder vulns: clone https://github.com/pypa/advisory-database")
    looked_at, hits, newest = 0, 0, ""
    pins = pinned(ROOT / "constraints.txt")
    for name, versions in sorted(pins.items()):
        for told in advisories(folder, canonicalize_name(name)):
            looked_at, newest = looked_at + 1, max(newest, str(told["modified"])[:10])
            for version in sorted(versions):
                if any(covers(affected, version) for affected in told["affected"]):
                    hits += 1
                    print(f"{name} {version}: {told['id']}: {told['details'].strip().splitlines()[0][:200]}")
    print(
        f"{len(pins)} packages, {looked_at} advisories about them (the newest of {newest}), {hits} cover a pin"
    )
    return 1 if hits else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
