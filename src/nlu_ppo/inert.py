"""Texts of data as a tokenizer reads them: nothing that stands in them becomes a control token.

A tokenizer turns `</s>` or `<|im_end|>` into its control token wherever it stands, in a film review too; such a text
could end a sequence or a turn, and say what follows in another's name. A text that is tokenised alone is therefore
tokenised without them (`ids_of`). Where control tokens belong beside the texts, as in a rendered chat template, they
are broken up by a blank in the texts before (`defused`): `< |im_end|>`. All other texts stay as they are. A lone half
of a surrogate pair is no text, and readers refuse it before it comes here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

# How the families that servers run write theirs (Llama, Qwen, DeepSeek, Gemma, Mistral and others).
_FAMILIES = re.compile(
    r"<\|[^\s<>|]{1,60}\|>|<｜[^<>｜]{1,60}｜>|</?s>|<(?:bos|eos|pad|start_of_turn|end_of_turn)>|\[/?INST\]|<</?SYS>>"
)
_known: WeakKeyDictionary[Any, Controls] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Controls:
    """The control tokens of a tokenizer, by their spelling; the unknown token isn't one.

    `written` are those that its chat template writes beside them (Qwen's `<think>` is no special token of it).
    """

    ids: dict[str, int]
    written: dict[str, int]

    @cached_property
    def every(self) -> frozenset[int]:
        return frozenset([*self.ids.values(), *self.written.values()])

    @cached_property
    def special(self) -> frozenset[int]:
        return frozenset(self.ids.values())

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        longest_first = sorted({*self.ids, *self.written}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @cached_property
    def loosely(self) -> re.Pattern[str]:
        """Finds what a tokenizer's own normalization could make a control token of, too."""
        names = {_loose(name) for name in (*self.ids, *self.written)}
        return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


def controls(tokenizer: Any) -> Controls:
    """The control tokens of a tokenizer."""
    found = _known.get(tokenizer)
    if found is None:
        unknown = tokenizer.unk_token
        special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        template = str(getattr(tokenizer, "chat_template", None) or "")
        written = {}
        for number, token in tokenizer.added_tokens_decoder.items():
            if token.special:
                special[token.content] = number
            elif token.content.strip() and token.content in template:
                written[token.content] = number
        special.pop(unknown, None)
        _known[tokenizer] = found = Controls(special, written)
    return found


def ids_of(tokenizer: Any, texts: Sequence[str], add_special_tokens: bool = False) -> list[list[int]]:
    """Tokens of texts of which nothing is a control token; `add_special_tokens` are the tokenizer's own around them."""
    whole = {"add_special_tokens": add_special_tokens, "verbose": False, "split_special_tokens": True}
    rows = tokenizer(list(texts), **whole)["input_ids"]
    special = controls(tokenizer).special
    if not add_special_tokens:
        odd = [i for i, row in enumerate(rows) if not special.isdisjoint(row)]
    else:
        added = tokenizer.num_special_tokens_to_add()
        odd = [i for i, row in enumerate(rows) if sum(map(special.__contains__, row)) > added]
    for i in odd:  # tokenizers of the unigram kind have them in their vocabulary, like any word
        rows[i] = tokenizer(defused(tokenizer, texts[i]), **whole)["input_ids"]
    return rows


def defused(tokenizer: Any, text: str) -> str:
    """The text with a blank in every control token that stands in it, and so without any."""
    known = controls(tokenizer)
    if not known.loosely.search(_loose(text)):
        return text
    while known.pattern.search(text):
        text = known.pattern.sub(lambda found: f"{found[0][:1]} {found[0][1:]}", text)
    if not getattr(tokenizer, "is_fast", False):
        return text
    while True:  # what normalization makes of others: "＜/s＞" may be another way to write "</s>"
        found = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
        pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
        spans = [span for number, span in pairs if number in known.every and span[0] < span[1]]
        if not spans:
            return text
        for start, end in reversed(spans):
            middle = min(start + 1, end - 1)
            text = f"{text[:middle]} {text[middle:]}" if middle > start else f"{text[:start]}{text[end:]}"


def defused_for_any(text: str) -> str:
    """`defused` for a model on a server, whose tokenizer nobody here knows: by the spellings of common families."""
    while _FAMILIES.search(text):
        text = _FAMILIES.sub(lambda found: f"{found[0][:1]} {found[0][1:]}", text)
    return text


def _loose(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return text.casefold()
