"""From what a model wrote to a label.

The whole answer must match an answer word: "I do not know" holds "no", and isn't one.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache

from nlu_ppo.tasks.metrics import best_overlap, normalize_record_answer
from nlu_ppo.tasks.record import CLOSE, Kind, Label, Task, accepted_answers
from nlu_ppo.tasks.registry import get_task

_NUMBER = re.compile(r"[+-]?([0-9]+([.,][0-9]*)?|[.,][0-9]+)")
# What may surround a number. Signs, and a point or comma in front, belong to it; "%" and "/" change it.
_BEFORE_NUMBER = " \"'`*_()[]{}:;~“”‘’«»"
_AFTER_NUMBER = _BEFORE_NUMBER + ".,!?"


def parse_answer(
    task: str | Task, completion: str, candidates: Sequence[str] | None = None
) -> int | float | str | None:
    """The label that a completion gives, or `None` if it gives none.

    Only the text before the first closing tag counts, all of it if there is no tag.

    * Classes: the answer word, in any case, with any white space and punctuation around it -> its label id.
    * Numbers: plain decimal notation, point or comma ("4", "4.5", "4,5"), within the task's range -> float.
      A number outside the range is no legal answer, just as a word outside the answer words isn't: "42" says
      nothing about similarity, and clipping would score it as the best answer.
    * Extracts: the text, with single blanks. Any text is an answer, and only an empty one isn't.
    * Choices: the text, with single blanks, if it has a letter or digit; if it equals one of `candidates` but for
      case, punctuation and articles, that candidate. Others are kept, since the official metric gives them partial
      credit.

    Args:
        completion: what was generated after the open tag. No text raises an error.
        candidates: `Example.candidates`, for tasks that choose.

    Raises:
        ConfigError: unknown task.
    """
    record = get_task(task)
    if not isinstance(completion, str):
        return None
    answer = completion.partition(CLOSE)[0]
    if record.kind is Kind.CLASSIFY:
        return _answer_words(record.verbalizers).get(normalize_answer(answer))
    if record.kind is Kind.REGRESS:
        return _number(answer, record.low, record.high)
    if record.kind is Kind.EXTRACT:
        return " ".join(answer.split()) or None
    return _choice(answer, candidates)


def normalize_answer(text: str) -> str:
    """Case folded, white space squeezed, no white space or punctuation at the ends."""
    return _trim(" ".join(text.casefold().split()))


@lru_cache(maxsize=256)
def _answer_words(verbalizers: tuple[str, ...]) -> Mapping[str, int]:
    return {normalize_answer(word): label for label, word in enumerate(verbalizers)}


def _trim(text: str) -> str:
    start, end = 0, len(text)
    while start < end and _is_edge(text[start]):
        start += 1
    while end > start and _is_edge(text[end - 1]):
        end -= 1
    return text[start:end]


def _is_edge(char: str) -> bool:
    return char.isspace() or char in string.punctuation or unicodedata.category(char)[0] == "P"


def _number(text: str, low: float, high: float) -> float | None:
    trimmed = " ".join(text.split()).lstrip(_BEFORE_NUMBER).rstrip(_AFTER_NUMBER)
    if not _NUMBER.fullmatch(trimmed):
        return None
    value = float(trimmed.replace(",", "."))
    return value if math.isfinite(value) and low <= value <= high else None


def _choice(text: str, candidates: Sequence[str] | None) -> str | None:
    answer = " ".join(text.split())
    if not any(char.isalnum() for char in answer):
        return None
    if candidates:
        if answer in candidates:
            return answer
        wanted = _essence(answer)
        for candidate in candidates:
            if wanted and _essence(candidate) == wanted:  # of "the" and "a" nothing is left to compare
                return candidate
    return answer


def _essence(text: str) -> str:
    """As the metric compares; it only knows ASCII punctuation, so that of other scripts goes first."""
    return normalize_record_answer(_trim(text))


def is_correct(task: str | Task, answer: Label | None, reference: Label | None) -> bool:
    """Whether one answer is right on its own; numbers: within a tenth of the task's range."""
    record = get_task(task)
    if answer is None or reference is None:
        return False
    if record.kind is Kind.REGRESS:
        return abs(float(answer) - float(reference)) <= 0.1 * (record.high - record.low)  # type: ignore[arg-type]
    if record.kind is Kind.CLASSIFY:
        return answer == reference
    _, exact = best_overlap(str(answer), accepted_answers(reference))
    return bool(exact)
