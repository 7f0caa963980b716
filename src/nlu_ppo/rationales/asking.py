"""How a model is asked for an analysis that argues for a given label, and what counts as one."""

from __future__ import annotations

import re

from nlu_ppo.prompting import Prompter
from nlu_ppo.tasks.answers import parse_answer
from nlu_ppo.tasks.record import CLOSE, CLOSE_ANALYSIS, OPEN, OPEN_ANALYSIS, Example, Task

VERSION = 1  # of wording and reading: another one is another source of analyses

EMPTY = "empty"
ENDLESS = "without end"
OTHER = "names another answer"
UNREADABLE = "tags that were not asked for"
REASONS = (EMPTY, ENDLESS, OTHER, UNREADABLE)

# Answer words of everyday use: in an analysis "no" says nothing, unless it is said as an answer.
_EVERYDAY = {"yes", "no", "true", "false", "same", "different"}


def task_part(task: Task) -> str:
    """What all questions on a task begin with."""
    return (
        f"{task.instruction}\n{task.answer_format}\n"
        f"You are shown a case and an answer to it. Defend the answer: in one to three short sentences, say what in "
        f"the text speaks for it. Defend it also where you would answer otherwise, and name no other answer."
    )


def case_part(task: Task, example: Example, label: int) -> str:
    """The rest of a question."""
    return (
        f"{task.template.format_map(example.fields)}\nAnswer: {task.verbalize(label)}\n"
        f"Write nothing but the defence, as {OPEN_ANALYSIS}defence{CLOSE_ANALYSIS}."
    )


class AskingPrompter(Prompter):
    """Prompts that ask a base model for an analysis, one label at a time; they end in the open tag of the analysis."""

    label = 0

    def render(self, example: Example) -> str:
        first, rest = task_part(self.task), case_part(self.task, example, self.label)
        if self.layout == "chat":
            return self._render_chat(first, [], rest, OPEN_ANALYSIS)
        return f"{first}\n\n{rest}\n{OPEN_ANALYSIS}"

    @property
    def instruction(self) -> str:
        return task_part(self.task)


def read_analysis(task: Task, label: int, text: str, ended: bool) -> tuple[str | None, str]:
    """The analysis in what a model wrote, and else why there is none (one of `REASONS`).

    Args:
        text: with the analysis in its tags, or without one of them or both.
        ended: whether the model ended it itself.

    Another answer counts as named where it stands in a judgement's tags, opens or makes up the analysis, is quoted,
    or follows "answer", "judgement" or "label"; and anywhere, if it is no word of everyday use.
    """
    judged = re.search(f"{re.escape(OPEN)}(.*?){re.escape(CLOSE)}", text, re.DOTALL)
    if judged is not None:
        if parse_answer(task, judged[1]) != label:
            return None, OTHER
        text = text.replace(judged[0], "")
    before, opened, rest = text.partition(OPEN_ANALYSIS)
    analysis, closed, _ = (rest if opened else before).partition(CLOSE_ANALYSIS)
    if not closed and not ended:
        return None, ENDLESS
    analysis = " ".join(analysis.split())
    if not any(char.isalnum() for char in analysis):
        return None, EMPTY
    if any(tag in analysis for tag in (OPEN, CLOSE, OPEN_ANALYSIS)):
        return None, UNREADABLE
    if any(_names(analysis, word) for n, word in enumerate(task.verbalizers) if n != label):
        return None, OTHER
    return analysis, ""


def _names(analysis: str, word: str) -> bool:
    text, name = analysis.casefold(), rf"\b{re.escape(word.casefold())}\b"
    if word.casefold() not in _EVERYDAY:
        return re.search(name, text) is not None
    said = (
        rf"^\W*{name}(?=[.,;:!]|$)",
        rf"[\"'“‘*]{name}[\"'”’*.,]",
        rf"\b(answer|judgement|judgment|label)( is|:)?\W*{name}",
    )
    return any(re.search(pattern, text) for pattern in said)
