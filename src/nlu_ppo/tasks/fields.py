"""Template fields of the tasks whose texts must be marked, cleaned or joined, and their raw JSON shapes.

Each `*_fields` function takes a row in the hub's schema; each `*_rows` function makes such rows of one JSON
object of the SuperGLUE release.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from nlu_ppo.tasks.record import Row, RowError

_HIGHLIGHT = re.compile(r"\s*@highlight\s*")
_BREAKS = re.compile(r"<br\s*/?>", re.IGNORECASE)
_BOLD = re.compile(r"</?b>", re.IGNORECASE)


def _squeeze(text: str) -> str:
    return " ".join(text.split())


# -- BoolQ --------------------------------------------------------------------------------------------------


def boolq_fields(row: Row) -> dict[str, str]:
    """The release writes questions in lower case and without a question mark."""
    question = row["question"].strip()
    return {"passage": row["passage"].strip(), "question": question + ("" if question.endswith("?") else "?")}


# -- film reviews -------------------------------------------------------------------------------------------


def imdb_fields(row: Row) -> dict[str, str]:
    """Takes the line breaks of the web page out of the review."""
    return {"text": _squeeze(_BREAKS.sub(" ", row["text"]))}


# -- WiC ----------------------------------------------------------------------------------------------------


def wic_fields(row: Row) -> dict[str, str]:
    """Marks the form of the word in both sentences as `*form*`; `word` is the lemma."""
    fields = {"word": row["word"].strip()}
    for n in "12":
        text, start, end = row[f"sentence{n}"], int(row[f"start{n}"]), int(row[f"end{n}"])
        if not 0 <= start < end <= len(text):
            raise RowError(
                f"start{n}={start}, end{n}={end} don't lie within sentence{n} ({len(text)} characters)"
            )
        fields[f"sentence{n}"] = f"{text[:start]}*{text[start:end]}*{text[end:]}".strip()
    return fields


# -- WSC ----------------------------------------------------------------------------------------------------


def wsc_rows(item: Row) -> Iterator[Row]:
    target = item["target"]
    yield {**{k: v for k, v in item.items() if k != "target"}, **target}


def wsc_fields(row: Row) -> dict[str, str]:
    """Marks the noun phrase as `[it]` and the pronoun as `*it*` in the text.

    The noun is spelled as in the text, so that the release ("The dog" for "the dog") and the hub, which mends
    some of these, give the same fields. A noun phrase that isn't in the text in one piece stays unmarked.
    """
    text = row["text"]
    noun = _find_span(text, row["span1_text"], int(row["span1_index"]))
    pronoun = _find_span(text, row["span2_text"], int(row["span2_index"])) or _word_at(
        text, int(row["span2_index"])
    )
    marks = [(pronoun, "*", "*")]
    if noun and (noun[1] <= pronoun[0] or pronoun[1] <= noun[0]):  # "his" in "his mother": pronoun only
        marks.append((noun, "[", "]"))
    marked = text
    for (start, end), left, right in sorted(marks, reverse=True):  # from the end, so that offsets stay valid
        marked = f"{marked[:start]}{left}{marked[start:end]}{right}{marked[end:]}"
    return {
        "text": marked.strip(),
        "noun": text[slice(*noun)] if noun else _squeeze(row["span1_text"]),
        "pronoun": text[slice(*pronoun)],
    }


def _find_span(text: str, span: str, index: int) -> tuple[int, int] | None:
    """Character range of the occurrence of `span` nearest to word number `index` (words between blanks).

    Known faults of the release that this survives: other case, a final full stop, a line break for a blank,
    a word glued to punctuation, an index one word off. Whole words are preferred to parts of words.
    """
    pattern = r"\s+".join(re.escape(word) for word in span.strip().rstrip(".").split())
    if not pattern:
        return None
    starts = [m.start() for m in re.finditer(r"\S+", text)]
    for whole in (rf"(?<!\w){pattern}(?!\w)", pattern):
        found = [m.span() for m in re.finditer(whole, text, re.IGNORECASE)]
        if found:
            # The number of the word that a range begins in, counted as the release counts.
            return min(found, key=lambda r: abs(sum(s <= r[0] for s in starts) - 1 - index))
    return None


def _word_at(text: str, index: int) -> tuple[int, int]:
    words = [m.span() for m in re.finditer(r"\S+", text)]
    if not words:
        raise RowError("the text is empty")
    return words[min(max(index, 0), len(words) - 1)]


# -- MultiRC ------------------------------------------------------------------------------------------------


def multirc_rows(item: Row) -> Iterator[Row]:
    passage = item["passage"]
    for question in passage["questions"]:
        for answer in question["answers"]:
            row: dict[str, Any] = {
                "paragraph": passage["text"],
                "question": question["question"],
                "answer": answer["text"],
                "idx": {"paragraph": item["idx"], "question": question["idx"], "answer": answer["idx"]},
            }
            if answer.get("label") is not None:
                row["label"] = answer["label"]
            yield row


def multirc_fields(row: Row) -> dict[str, str]:
    """Takes the HTML tags out of the paragraph."""
    paragraph = _squeeze(_BOLD.sub("", _BREAKS.sub(" ", row["paragraph"])))
    return {"paragraph": paragraph, "question": row["question"].strip(), "answer": row["answer"].strip()}


def multirc_group(idx: Row) -> tuple[int, int]:
    return (int(idx["paragraph"]), int(idx["question"]))


# -- ReCoRD -------------------------------------------------------------------------------------------------


def record_rows(item: Row) -> Iterator[Row]:
    """One row per query. The release's `end` is the last character, not one behind it."""
    text = item["passage"]["text"]
    entities = sorted({text[e["start"] : e["end"] + 1] for e in item["passage"]["entities"]})
    for qa in item["qas"]:
        row: dict[str, Any] = {
            "passage": text,
            "query": qa["query"],
            "entities": entities,
            "idx": {"passage": item["idx"], "query": qa["idx"]},
        }
        if "answers" in qa:
            row["answers"] = sorted({answer["text"] for answer in qa["answers"]})
        yield row


def record_fields(row: Row) -> dict[str, str]:
    """Joins the passage's highlights into it as sentences and lists the candidates one per line."""
    parts = [part.strip() for part in _HIGHLIGHT.split(row["passage"]) if part.strip()]
    passage = " ".join(part + "." if part[-1].isalnum() else part for part in parts)
    return {
        "passage": passage,
        "entities": "\n".join(f"- {entity}" for entity in record_candidates(row)),
        "query": row["query"].strip(),
    }


def record_candidates(row: Row) -> tuple[str, ...]:
    """The passage's entities without repetitions, sorted: the hub keeps them in a set's arbitrary order."""
    return tuple(sorted({_squeeze(entity) for entity in row["entities"]} - {""}))


def record_answers(row: Row) -> tuple[str, ...] | None:
    """All gold spellings, sorted; `None` on the unlabelled test split."""
    return tuple(sorted({_squeeze(answer) for answer in row.get("answers") or ()} - {""})) or None


# -- AX-g ---------------------------------------------------------------------------------------------------


def axg_group(idx: int) -> int:
    """Rows 2k and 2k+1 are a pair. The release's `pair_id` differs on every row and pairs nothing."""
    return int(idx) // 2
