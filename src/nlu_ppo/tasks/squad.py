"""SQuAD v1.1 (Rajpurkar et al. 2016): questions about Wikipedia passages, answered with words of the passage.

Its metrics are those of the official script, which ReCoRD took over: exact match and token F1 of normalised
answers, each the best over a question's gold answers, then the mean over questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nlu_ppo.tasks.record import HubSource, Kind, RawSource, Row, RowError, Task


def squad_answers(row: Row) -> tuple[str, ...]:
    """All gold answers, each once; the first one stays the first, since SFT trains on it.

    Raises:
        RowError: there is none, as for a third of the questions of SQuAD 2.0.
    """
    answers = row.get("answers")
    texts = answers.get("text") if isinstance(answers, Mapping) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RowError(f"answers {answers!r} is not of the form {{'text': [...]}}")
    found = dict.fromkeys(" ".join(text.split()) for text in texts)
    found.pop("", None)
    if not found:
        raise RowError("a question without an answer: SQuAD 2.0 has such, and this task is SQuAD 1.1")
    return tuple(found)


def squad_rows(document: Any) -> Iterator[tuple[str, Row | RowError]]:
    """One hub row per question of the official file, each with its path in it: articles, paragraphs, questions."""
    for article_path, article in _members("", document, "data"):
        for paragraph_path, paragraph in _members(article_path, article, "paragraphs"):
            for path, question in _members(paragraph_path, paragraph, "qas"):
                yield path, _row(article, paragraph, question)


def _members(path: str, node: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The items of list `name` of `node`; without such a list an error in their place, and errors as they are."""
    items = node.get(name) if isinstance(node, Mapping) else None
    if isinstance(node, RowError):
        yield path, node
    elif not isinstance(items, list):
        yield path or "the document", RowError(f"no list {name!r}: is this SQuAD's own file?")
    else:
        yield from ((f"{path}.{name}[{i}]".removeprefix("."), item) for i, item in enumerate(items))


def _row(article: Any, paragraph: Any, question: Any) -> Row | RowError:
    if isinstance(question, RowError):
        return question
    try:
        return {
            "id": question["id"],
            "title": article.get("title", ""),
            "context": paragraph["context"],
            "question": question["question"],
            "answers": {"text": [answer["text"] for answer in question["answers"]]},
        }
    except KeyError as error:
        return RowError(f"no key {error.args[0]!r}")
    except (TypeError, AttributeError) as error:
        return RowError(f"not the release's shape: {error}")


SQUAD = Task(
    name="squad",
    benchmark="squad",
    kind=Kind.EXTRACT,
    instruction="Read a passage from an encyclopedia and answer a question about it.",
    template="Passage: {context}\nQuestion: {question}",
    metrics=("em", "f1"),
    # The leaderboard and paper A's table 11 print the two side by side and no mean of them. F1 counts as the
    # score, because exact match is in it: an answer that matches exactly has an F1 of 1.
    score_metric="f1",
    columns=("context", "question"),
    label_of=squad_answers,
    index_column="id",
    group_field="context",  # about five questions share a passage
    hub=HubSource(
        "rajpurkar/squad",
        "plain_text",
        "7b6d24c440a36b6815f21b70d25016731768db1f",
        {"train": "train", "validation": "validation"},
    ),
    raw=RawSource(
        {"train": ("squad/train-v1.1.json",), "validation": ("squad/dev-v1.1.json",)},
        document=squad_rows,
    ),
)
