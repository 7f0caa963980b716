"""Template fields of the tasks whose texts must be marked, cleaned or joined, and their raw JSON shapes.

Each `*_fields` function takes a row in the hub's schema; each `*_rows` function makes such rows of one JSON
object of the SuperGLUE release.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from nlu_ppo.tasks.record import Example, Row, RowError

_HIGHLIGHT = re.compile(r"\s*@highlight\s*")
_BREAKS = re.compile(r"<br\s*/?>", re.IGNORECASE)
_BOLD = re.compile(r"</?b>", re.IGNORECASE)
_PLACEHOLDER = "@placeholder"


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
    a word glued to punctuation, an index one word off. The word at the index counts even if it only contains
    the span; elsewhere whole words are preferred to parts of words.
    """
    pattern = r"\s+".join(re.escape(word) for word in span.strip().rstrip(".").split())
    if not pattern:
        return None
    starts = [m.start() for m in re.finditer(r"\S+", text)]
    whole = {m.span() for m in re.finditer(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE)}
    found = whole | {m.span() for m in re.finditer(pattern, text, re.IGNORECASE)}

    def rank(span: tuple[int, int]) -> tuple[bool, bool, int, int]:
        # The number of the word that a range begins in, counted as the release counts.
        distance = abs(sum(start <= span[0] for start in starts) - 1 - index)
        return distance > 0, span not in whole, distance, span[0]

    return min(found, key=rank, default=None)


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
    spans = [(text[e["start"] : e["end"] + 1], e["start"]) for e in item["passage"]["entities"]]
    entities = sorted({entity for entity, _ in spans})
    for qa in item["qas"]:
        row: dict[str, Any] = {
            "passage": text,
            "query": qa["query"],
            "entities": entities,
            "entity_spans": {"text": [entity for entity, _ in spans], "start": [start for _, start in spans]},
            "idx": {"passage": item["idx"], "query": qa["idx"]},
        }
        if "answers" in qa:
            row["answers"] = sorted({answer["text"] for answer in qa["answers"]})
        yield row


def record_fields(row: Row) -> dict[str, str]:
    """Lists the candidates one per line."""
    return {
        "passage": _record_passage(row),
        "entities": "\n".join(f"- {entity}" for entity in record_candidates(row)),
        "query": row["query"].strip(),
    }


def _record_passage(row: Row) -> str:
    """The whole passage, its highlights joined into it as sentences."""
    parts = [part.strip() for part in _HIGHLIGHT.split(row["passage"]) if part.strip()]
    return " ".join(part + "." if part[-1].isalnum() else part for part in parts)


def record_candidates(row: Row) -> tuple[str, ...]:
    """The passage's entities without repetitions, sorted: the hub keeps them in a set's arbitrary order."""
    return tuple(sorted({_squeeze(entity) for entity in row["entities"]} - {""}))


def record_answers(row: Row) -> tuple[str, ...] | None:
    """All gold spellings, sorted; `None` on the unlabelled test split."""
    return tuple(sorted({_squeeze(answer) for answer in row.get("answers") or ()} - {""})) or None


def record_items(row: Row) -> Iterator[Row]:
    """One row per candidate of a query, in the order in which they first stand in the passage."""
    if _PLACEHOLDER not in row["query"]:
        raise RowError(f"the query has no {_PLACEHOLDER} for an entity to be put in")
    spans, first = row["entity_spans"], dict[str, int]()
    for entity, start in zip(spans["text"], spans["start"], strict=True):
        first[_squeeze(entity)] = min(start, first.get(_squeeze(entity), start))
    behind = len(row["passage"])
    answers = record_answers(row)
    ordered = sorted(record_candidates(row), key=lambda entity: (first.get(entity, behind), entity))
    for number, entity in enumerate(ordered):
        item = {**row, "candidate": entity, "idx": {**row["idx"], "candidate": number}}
        yield item if answers is None else {**item, "label": int(entity in answers)}


def record_item_candidate(row: Row) -> tuple[str, ...]:
    return (row["candidate"],)


def record_yesno_fields(row: Row) -> dict[str, str]:
    """The query with the candidate in the place of the missing name."""
    query = row["query"].strip().replace(_PLACEHOLDER, row["candidate"])
    return {"passage": _record_passage(row), "query": query}


def record_group(idx: Row) -> tuple[int, int]:
    return (int(idx["passage"]), int(idx["query"]))


def one_of_each_label(examples: Sequence[Example]) -> list[int]:
    """Of every group one example of each label that it has, at random, but the same ones in every run."""
    groups: dict[Any, dict[Any, list[int]]] = {}
    for number, example in enumerate(examples):
        groups.setdefault(example.group, {}).setdefault(example.label, []).append(number)
    return sorted(
        random.Random(f"{group}/{label}").choice(numbers)
        for group, labels in groups.items()
        for label, numbers in labels.items()
    )


# -- AX-g ---------------------------------------------------------------------------------------------------


def axg_group(idx: int) -> int:
    """Rows 2k and 2k+1 are a pair. The release's `pair_id` differs on every row and pairs nothing."""
    return int(idx) // 2
