"""Markdown of the generated pages."""

from __future__ import annotations

from collections.abc import Iterable


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table, ending in a line break."""
    lines = [head, tuple("---" for _ in head), *rows]
    return (
        "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        + "\n"
    )


def prose(text: str) -> str:
    """A text with a capital at its beginning, and without what Markdown would take for HTML."""
    return (text[:1].upper() + text[1:]).replace("<", "&lt;")
