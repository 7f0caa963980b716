"""Prompts as messages, for models that are asked through a server, and what their replies give as an answer.

A server's chat template is its own, and nobody can open the answer's tag for the model: it writes the tag itself, as
the instruction says, or leaves it out. No tokenizer is at hand, so that no prompt is cut and lengths are estimates.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from nlu_ppo.prompting import Prompt, Prompter
from nlu_ppo.tasks.record import CLOSE, OPEN, Example, Task

CLOSE_THOUGHT = "</think>"
BYTES_PER_TOKEN = 3  # of an answer's words in any common tokenizer, with tokens to spare
SPARE = 16

Turns = tuple[tuple[str, str], ...]  # (role, text)


class MessagePrompter(Prompter):
    """Renders the prompts of one task as a conversation.

    Args:
        layout: `chat` (the instruction as the system's turn, demonstrations as turns that were answered) or `plain`
            (one turn of the user's, with the very text that models of the plain layout get).
    """

    def __init__(
        self,
        task: Task,
        layout: str = "chat",
        demonstrations: Sequence[Example] = (),
        analysis_tokens: int = 0,
    ) -> None:
        super().__init__(task, None, "plain", demonstrations, analysis_tokens=analysis_tokens)
        self.layout = layout

    def with_demonstrations(self, demonstrations: Sequence[Example]) -> MessagePrompter:
        return MessagePrompter(self.task, self.layout, demonstrations, self.analysis_tokens)

    @property
    def before(self) -> Turns:
        """The turns in front of every query."""
        if self.layout == "plain":
            return ()
        shown = [(self.query(d), OPEN + self._answered(d)) for d in self.demonstrations]
        turns = [
            (role, text) for pair in shown for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        return (("system", self.instruction), *turns)

    def turn(self, example: Example) -> str:
        """The user's turn that is answered."""
        return super().render(example) if self.layout == "plain" else self.query(example)

    def render(self, example: Example) -> str:
        """The whole conversation as JSON."""
        return json.dumps([*self.before, ("user", self.turn(example))], ensure_ascii=False)

    def prepare(self, examples: Sequence[Example]) -> list[Prompt]:
        """Prompts without tokens."""
        return [Prompt(self.render(example), ()) for example in examples]

    def longest_reply(self, completions: Iterable[str]) -> int:
        """Tokens that are enough for any of these completions, the opening tag and an analysis.

        A power of two: it is part of what a reply is kept under, and so a few more examples seldom change it.
        """
        longest = max(len((OPEN + text).encode()) for text in completions)
        return 1 << (longest // BYTES_PER_TOKEN + SPARE + self.analysis_tokens - 1).bit_length()


def completion_in(reply: str) -> str:
    """The part of a reply that stands where other models write: behind the first opening tag.

    A reply without that tag, or with a closing tag in front of it (the model took the tag for opened, and went on
    behind its answer), is answer from its beginning. `parse_answer` then takes it to the first closing tag. What a
    model thinks aloud in front (`<think>...</think>`, where the server leaves it in) is no part of its answer; a
    thought that does not end leaves none.
    """
    text = reply.lstrip()
    if text.startswith("<think>"):
        text = text.partition(CLOSE_THOUGHT)[2]
    before, tag, inside = text.partition(OPEN)
    return inside if tag and CLOSE not in before else text.strip()
