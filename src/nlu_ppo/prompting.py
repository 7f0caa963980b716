"""Prompt layout: shared instruction first, then demonstrations, then the query, ending in an open tag.

The model continues after `<Judgement>` and closes the tag itself, so that a completion is
`Positive</Judgement>`. All prompts of a task begin with the same tokens; what follows may reuse their cache.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nlu_ppo.errors import ModelError
from nlu_ppo.tasks.record import CLOSE, OPEN, Example, Label, Task


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt. `ids` ends with the open tag; `shortened` says that a text field was cut to fit."""

    text: str
    ids: tuple[int, ...]
    shortened: bool = False


class Prompter:
    """Renders and tokenises the prompts of one task for one tokenizer.

    Args:
        layout: `plain` (paper A's way, no chat template) or `chat` (the tokenizer's own template).
        demonstrations: labelled examples shown before every query.
        max_prompt_tokens: longer prompts lose the end of their longest text field, nothing else.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Any,
        layout: str = "plain",
        demonstrations: Sequence[Example] = (),
        max_prompt_tokens: int | None = None,
    ) -> None:
        if layout == "chat" and not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                "model.layout=chat needs a tokenizer with a chat template, and this one has none: "
                "use model.layout=plain"
            )
        self.task = task
        self.tokenizer = tokenizer
        self.layout = layout
        self.demonstrations = tuple(demonstrations)
        self.max_prompt_tokens = max_prompt_tokens

    def with_demonstrations(self, demonstrations: Sequence[Example]) -> Prompter:
        return Prompter(self.task, self.tokenizer, self.layout, demonstrations, self.max_prompt_tokens)

    # -- text ---------------------------------------------------------------------------------------------

    @property
    def instruction(self) -> str:
        """The lines that every prompt of the task begins with."""
        task = self.task
        return f"{task.instruction}\n{task.answer_format} Write it as {OPEN}answer{CLOSE}."

    def query(self, example: Example) -> str:
        return self.task.template.format_map(example.fields)

    def completion(self, label: Label) -> str:
        """The text that a perfect model writes after the open tag."""
        return self.close(self.task.verbalize(label))

    @staticmethod
    def close(answer: str) -> str:
        """An answer as a whole completion."""
        return answer + CLOSE

    def render(self, example: Example) -> str:
        """The whole prompt as text, ending in the open tag."""
        demonstrations = [(self.query(d), self._answered(d)) for d in self.demonstrations]
        if self.layout == "chat":
            return self._render_chat(demonstrations, self.query(example))
        blocks = [self.instruction]
        blocks += [f"{query}\n{OPEN}{answer}" for query, answer in demonstrations]
        blocks.append(f"{self.query(example)}\n{OPEN}")
        return "\n\n".join(blocks)

    def _answered(self, example: Example) -> str:
        if example.label is None:
            raise ValueError(f"example {example.id} has no label and can't be a demonstration")
        return self.completion(example.label)

    def _render_chat(self, demonstrations: list[tuple[str, str]], query: str) -> str:
        turns: list[dict[str, str]] = []
        for shown, answer in demonstrations:
            turns += [{"role": "user", "content": shown}, {"role": "assistant", "content": OPEN + answer}]
        turns.append({"role": "user", "content": query})
        system = [{"role": "system", "content": self.instruction}, *turns]
        # Templates without a system role (Gemma's) raise: the instruction then opens the first turn.
        merged = [{**turns[0], "content": f"{self.instruction}\n\n{turns[0]['content']}"}, *turns[1:]]
        for messages in (system, merged):
            try:
                text = self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
            except Exception as error:  # jinja2 errors of many kinds, by the template's own choice
                failure = error
                continue
            if self.instruction in text:
                return text + OPEN
        raise ModelError(
            f"the tokenizer's chat template takes neither a system turn nor the instruction in the first "
            f"user turn ({failure}): use model.layout=plain"
        )

    # -- tokens -------------------------------------------------------------------------------------------

    def encode(self, examples: Iterable[Example]) -> list[Prompt]:
        """Tokenised prompts, shortened where they exceed `max_prompt_tokens`.

        Raises:
            ModelError: the prompt is too long even with its longest text field empty.
        """
        examples = list(examples)
        texts = [self.render(e) for e in examples]
        rows = self._tokenize(texts) if texts else []
        limit = self.max_prompt_tokens
        return [
            Prompt(text, tuple(ids)) if limit is None or len(ids) <= limit else self._shorten(example, limit)
            for example, text, ids in zip(examples, texts, rows, strict=True)
        ]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        # A rendered chat template already holds its own beginning-of-sequence token.
        encoded = self.tokenizer(texts, add_special_tokens=self.layout != "chat", verbose=False)
        return encoded["input_ids"]

    def _shorten(self, example: Example, limit: int) -> Prompt:
        """Cuts the end of the longest text field, by bisection on its length in characters."""
        name = max(example.fields, key=lambda k: len(example.fields[k]))
        whole = example.fields[name]

        def cut(length: int) -> Prompt:
            short = replace(example, fields={**example.fields, name: whole[:length]})
            text = self.render(short)
            return Prompt(text, tuple(self._tokenize([text])[0]), shortened=True)

        fits, too_long = cut(0), len(whole)
        if len(fits.ids) > limit:
            raise ModelError(
                f"example {example.id}: its prompt has {len(fits.ids)} tokens even with the field {name!r} "
                f"left empty, more than the {limit} that the model's context leaves for it: use fewer "
                f"demonstrations (method.k) or a model with a longer context"
            )
        low = 0
        while too_long - low > 1:
            middle = (low + too_long) // 2
            candidate = cut(middle)
            if len(candidate.ids) <= limit:
                low, fits = middle, candidate
            else:
                too_long = middle
        return fits

    def completion_ids(self, text: str) -> tuple[int, ...]:
        """Tokens of `text` as they follow the open tag.

        Prompt and completion are tokenised apart and joined as ids, so that the token before the boundary is
        the same in training and in decoding. SentencePiece tokenizers put a blank before the first word of a
        text; tokenising behind a line break and dropping the break's tokens leaves it out.

        Raises:
            ModelError: the text tokenises to nothing, or its tokens don't spell it.
        """
        anchor = self.tokenizer("\n", add_special_tokens=False)["input_ids"]
        joined = self.tokenizer("\n" + text, add_special_tokens=False)["input_ids"]
        ids = joined[len(anchor) :] if joined[: len(anchor)] == anchor else []
        if not self._spells(ids, text):
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not self._spells(ids, text):
            spelled = self.tokenizer.decode(ids) if ids else ""
            raise ModelError(
                f"task {self.task.name}: the answer {text!r} tokenises to {spelled!r} with this model's "
                f"tokenizer: choose other verbalizers or another model"
            )
        return tuple(ids)

    def _spells(self, ids: Sequence[int], text: str) -> bool:
        """Whether tokens decode to a text.

        Some tokenizers compose accents (Qwen's), and some decoders close the gap before a comma: that doesn't
        make another answer of one that is copied from a text.
        """
        if not ids:
            return False
        spelled = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return unicodedata.normalize("NFC", spelled).strip() == unicodedata.normalize("NFC", text).strip()


def common_prefix_length(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with; less than the shortest row has, so that each keeps a suffix."""
    if not rows:
        return 0
    ordered = [tuple(row) for row in rows]
    first, last = min(ordered), max(ordered)  # in lexicographic order these two differ soonest
    limit = min(len(row) for row in rows) - 1
    length = 0
    while length < limit and first[length] == last[length]:
        length += 1
    return max(length, 0)
