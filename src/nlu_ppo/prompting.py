"""Prompt layout: shared instruction first, then demonstrations, then the query, ending in an open tag.

The model continues after `<Judgement>` and closes the tag itself, so that a completion is
`Positive</Judgement>`. All prompts of a task begin with the same tokens; what follows may reuse their cache.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from nlu_ppo import inert
from nlu_ppo.errors import ModelError
from nlu_ppo.progress import bar
from nlu_ppo.tasks.record import CLOSE, CLOSE_ANALYSIS, OPEN, OPEN_ANALYSIS, Example, Label, Task

if TYPE_CHECKING:
    from nlu_ppo.prompt_cache import PromptCache

AT_ONCE = 1000  # texts that are tokenised in one call
MANY = 20_000  # prompts whose tokenisation takes long enough for a progress bar
# What chat templates may ask for. The assistant's turn is to begin with the answer (Qwen3 would think first), and a
# prompt is to be the same tomorrow (Llama 3.1 and 3.2 name a date; this is the one that 3.1 has by itself).
TEMPLATE = {"enable_thinking": False, "date_string": "26 Jul 2024"}
THINK, THOUGHT = "<think>", "\n\n</think>\n\n"


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
        cache: keeps what `prepare` tokenises, for this run and others.
        analysis_tokens: room for an analysis behind the judgement; 0 asks for none.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Any,
        layout: str = "plain",
        demonstrations: Sequence[Example] = (),
        max_prompt_tokens: int | None = None,
        cache: PromptCache | None = None,
        analysis_tokens: int = 0,
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
        self.cache = cache
        self.analysis_tokens = analysis_tokens
        self._completions: dict[str, tuple[int, ...]] = {}

    def with_demonstrations(self, demonstrations: Sequence[Example]) -> Prompter:
        return Prompter(
            self.task,
            self.tokenizer,
            self.layout,
            demonstrations,
            self.max_prompt_tokens,
            self.cache,
            self.analysis_tokens,
        )

    # -- text ---------------------------------------------------------------------------------------------

    @property
    def instruction(self) -> str:
        """The lines that every prompt of the task begins with."""
        task = self.task
        analysis = f" and say why: {OPEN_ANALYSIS}why{CLOSE_ANALYSIS}" if self.analysis_tokens else ""
        return f"{task.instruction}\n{task.answer_format} Write it as {OPEN}answer{CLOSE}{analysis}."

    @property
    def closing(self) -> str:
        """What ends a completion."""
        return CLOSE_ANALYSIS if self.analysis_tokens else CLOSE

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
            return self._render_chat(self.instruction, demonstrations, self.query(example))
        blocks = [self.instruction]
        blocks += [f"{query}\n{OPEN}{answer}" for query, answer in demonstrations]
        blocks.append(f"{self.query(example)}\n{OPEN}")
        return "\n\n".join(blocks)

    def render_query(self, instruction: str, query: str) -> str:
        """A prompt of another instruction and query, laid out as those of the task are."""
        if self.layout == "chat":
            return self._render_chat(instruction, [], query)
        return f"{instruction}\n\n{query}\n{OPEN}"

    def _answered(self, example: Example) -> str:
        if example.label is None:
            raise ValueError(f"example {example.id} has no label and can't be a demonstration")
        return self.completion(example.label)

    def _render_chat(
        self, instruction: str, demonstrations: list[tuple[str, str]], query: str, opening: str = OPEN
    ) -> str:
        # The template's control tokens end up in the same text as the data: those in the data must not be any.
        query = inert.defused(self.tokenizer, query)
        turns: list[dict[str, str]] = []
        for shown, answer in (map(partial(inert.defused, self.tokenizer), pair) for pair in demonstrations):
            turns += [{"role": "user", "content": shown}, {"role": "assistant", "content": OPEN + answer}]
        turns.append({"role": "user", "content": query})
        system = [{"role": "system", "content": instruction}, *turns]
        # Templates without a system role raise (Gemma's), or leave it out: the instruction then opens the first turn.
        merged = [{**turns[0], "content": f"{instruction}\n\n{turns[0]['content']}"}, *turns[1:]]
        wanted = [message["content"].strip() for message in system]
        failure = "it leaves texts out"  # templates for images pass over plain texts
        for messages in (system, merged):
            try:
                text = self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, **TEMPLATE
                )
            except Exception as error:  # jinja2 errors of many kinds, by the template's own choice
                failure = str(error)
                continue
            if all(part in text for part in wanted):
                return _thought_through(text) + opening
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
        return list(self._encoded(examples))

    def prepare(self, examples: Sequence[Example]) -> Sequence[Prompt]:
        """`encode` for a whole split: from the cache if it is there, and kept in it if it isn't.

        Raises:
            ModelError: as `encode`.
        """

        def make() -> Iterator[Prompt]:
            shown = bar(total=len(examples), desc="tokenise", unit="ex", disable=len(examples) < MANY)
            with shown:
                for prompt in self._encoded(examples):
                    yield prompt
                    shown.update()

        # The fields decide what is cut of a prompt that is too long, and the template names them.
        parts = ("prompts", self.task.template, self.layout, self.max_prompt_tokens)
        return self._kept(parts, map(self.render, examples), make)

    def _kept(
        self, parts: tuple[object, ...], texts: Iterable[str], make: Callable[[], Iterable[Prompt]]
    ) -> Sequence[Prompt]:
        """What `make` gives for `texts`, through the cache if there is one."""
        if self.cache is None:
            return list(make())
        key = self.cache.key(self.tokenizer, parts, texts)
        return list(make()) if key is None else self.cache.get(key, make)

    def _encoded(self, examples: Iterable[Example]) -> Iterator[Prompt]:
        source, limit = iter(examples), self.max_prompt_tokens
        while some := list(islice(source, AT_ONCE)):
            texts = [self.render(example) for example in some]
            for example, text, ids in zip(some, texts, self.tokenize(texts), strict=True):
                fits = limit is None or len(ids) <= limit
                yield Prompt(text, tuple(ids)) if fits else self._shorten(example, limit)  # type: ignore[arg-type]

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Tokens of rendered prompts."""
        if self.layout == "chat":  # it already holds its own beginning-of-sequence token
            return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return inert.ids_of(self.tokenizer, texts, add_special_tokens=True)

    def _shorten(self, example: Example, limit: int) -> Prompt:
        """Cuts the end of the longest text field, by bisection on its length in characters."""
        name = max(example.fields, key=lambda k: len(example.fields[k]))
        whole = example.fields[name]

        def cut(length: int) -> Prompt:
            short = replace(example, fields={**example.fields, name: whole[:length]})
            text = self.render(short)
            return Prompt(text, tuple(self.tokenize([text])[0]), shortened=True)

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
        if text not in self._completions:
            self._completions[text] = self._completion_ids(text)
        return self._completions[text]

    def written_ids(self, text: str) -> list[int]:
        """Tokens of any text as it follows the open tag: as `completion_ids`, for what a model wrote."""
        anchor, joined = inert.ids_of(self.tokenizer, ["\n", "\n" + text])
        if joined[: len(anchor)] == anchor:
            return joined[len(anchor) :]
        return inert.ids_of(self.tokenizer, [text])[0]

    def learn_completions(self, texts: Iterable[str]) -> None:
        """Tokenises many completions at once, or takes them from the cache; `completion_ids` then has them.

        Raises:
            ModelError: as `completion_ids`.
        """
        new = sorted(set(texts) - self._completions.keys())
        if new:
            rows = self._kept(
                ("completions",), new, lambda: (Prompt(text, self._completion_ids(text)) for text in new)
            )
            self._completions.update((row.text, row.ids) for row in rows)

    def _completion_ids(self, text: str) -> tuple[int, ...]:
        anchor, joined = inert.ids_of(self.tokenizer, ["\n", "\n" + text])
        ids = joined[len(anchor) :] if joined[: len(anchor)] == anchor else []
        if not self._spells(ids, text):
            (ids,) = inert.ids_of(self.tokenizer, [text])
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


def _thought_through(text: str) -> str:
    """Ends the thinking that some templates open whatever they are asked: what follows is the answer."""
    bare = text.rstrip()
    return bare + THOUGHT if bare.endswith(THINK) else text


def common_prefix_length(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with; less than the shortest row has, so that each keeps a suffix."""
    if not rows:
        return 0
    first, last = min(map(tuple, rows)), max(map(tuple, rows))  # in lexicographic order, they differ soonest
    limit = min(len(row) for row in rows) - 1
    length = 0
    while length < limit and first[length] == last[length]:
        length += 1
    return max(length, 0)
