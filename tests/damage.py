"""Ways to damage a file's bytes, as hypothesis draws them: from real contents, and from nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

NASTY = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\n\n", b"\r", b"\t", b'"', b"'", b"\\", b"{", b"}", b"[", b"]",
    b"[" * 3000, b'{"a":' * 3000, b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"9" * 5000, b"null", b"true",
    b"\xed\xa0\x80",
    b"\\ud800",
    "\u202e\u2028\u0085".encode(), "\ud55c".encode("euc-kr"), "\u00e9".encode("latin-1"), b": ", b"- ", b"&a *a",
    b"!!python/object/apply:os.system ['touch flag']",
    b"${oc.env:HOME}", b"${x}", b"<<: *x", b"? ", b"%YAML 9.9\n", b"{{ 1 }}",
    b"</Judgement>", b"../../../x", b"x" * 5000,
)  # fmt: skip
ODD: Any = st.sampled_from(
    [None, True, -1, 0, 10**400, 1e308, float("nan"), float("inf"), "", "x", "\ud800", "a\0b", [], {}, [[]], {"": None},
     [None], {"text": 1}, "1e999", "../x", [1, "a"], {"a": {"b": []}}, 2**63, -0.0, "9" * 5000]
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, sources: Sequence[bytes]) -> bytes:
    """One of the sources with one to three damages, or arbitrary bytes."""
    data = draw(st.sampled_from(list(sources)))
    for _ in range(draw(st.integers(0, 2)) + 1):
        way, at = draw(st.integers(0, 8)), draw(st.integers(0, max(len(data) - 1, 0)))
        end = min(len(data), at + draw(st.integers(1, 40)))
        if way == 0:
            data = data[:at]
        elif way == 1 and data:
            data = data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
        elif way == 2:
            data = data[:at] + draw(st.sampled_from(NASTY)) + data[at:]
        elif way == 3:
            data = data[:at] + draw(st.sampled_from(NASTY)) + data[end:]
        elif way == 4:
            data = data[:at] + data[end:]
        elif way == 5:
            data = data[:end] + data[at:]
        elif way == 6:
            data = (
                data.replace(b"\n", b"\r\n")
                if draw(st.booleans())
                else data.decode("utf-8", "replace").encode("utf-16")
            )
        elif way == 7:
            data = _with_odd_json(draw, data)
        elif not at:
            data = draw(st.binary(max_size=200))
    return data


def _with_odd_json(draw: st.DrawFn, data: bytes) -> bytes:
    """One value, somewhere in the document or in one of the lines, replaced by one of another type."""
    whole = not data.strip().count(b"\n{")
    parts = [data] if whole else data.split(b"\n")
    number = draw(st.integers(0, len(parts) - 1))
    try:
        tree = json.loads(parts[number])
    except (ValueError, RecursionError):
        return data
    holder: dict[str, Any] = {"": tree}
    node, key = holder, ""
    while isinstance(node[key], (dict, list)) and node[key] and draw(st.integers(0, 5)):
        node = node[key]  # type: ignore[assignment]
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))  # type: ignore[arg-type]
    if isinstance(node, dict) and node is not holder and not draw(st.integers(0, 3)):
        del node[key]
    else:
        node[key] = draw(ODD)
    parts[number] = json.dumps(holder[""]).encode()
    return b"\n".join(parts)
