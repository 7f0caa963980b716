"""Answers test sets without labels, and writes the files that a benchmark's server takes.

Also tells a model behind a server all that a run will ask, before it asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from nlu_ppo.config import EvalConfig
from nlu_ppo.evaluation import answer, longest_answer
from nlu_ppo.messages import MessagePrompter
from nlu_ppo.methods.setting import Part, Setting
from nlu_ppo.models.policy import Policy
from nlu_ppo.prompting import Prompter
from nlu_ppo.remote import Questions, RemoteModel
from nlu_ppo.tasks.record import Example
from nlu_ppo.tasks.reduction import judge
from nlu_ppo.tasks.submission import fall_back, render
from nlu_ppo.tasks.submission_sets import SubmissionSets


def answer_submission(
    setting: Setting, submission: SubmissionSets, write: Callable[[str, str], None]
) -> dict[str, float]:
    """Answers the test sets of the setting's tasks, as an evaluation would, and writes the files.

    Args:
        setting: after the fit.
        write: takes a file's name and its text.

    Returns:
        metrics: how many rows each file has, and how many of them had no parsable answer.
    """
    policy, config = setting.policy, setting.config
    parts = {part.task.name: part for part in setting.parts}
    metrics: dict[str, float] = {}
    for test in submission.sets:
        part = parts[test.task.name]
        name = " and ".join(file.name for file in test.files)
        fitting = config.eval
        if isinstance(policy, Policy):
            fitting = _within_context(policy, part.prompter, test.examples, config.eval)
        labels = answer(policy, part.prompter, test.examples, fitting, config.seed, progress=name).labels
        judged = judge(part.task, test.examples, labels)
        legal = fall_back(judged.task, judged.examples, judged.answers, part.data.train_labels)
        rows = [(example.idx, label) for example, label in zip(judged.examples, legal, strict=True)]
        for file in test.files:
            write(file.name, render(file, rows))
            metrics[f"submission/{file.name}/rows"] = len(rows)
            metrics[f"submission/{file.name}/unparsable"] = sum(label is None for label in judged.answers)
    return metrics


def announce(
    model: RemoteModel, setting: Setting, further: Sequence[Part], submission: SubmissionSets | None
) -> None:
    """Says what a run will ask of a server, all sets together, and what that costs at most.

    Args:
        setting: after the fit, which adds demonstrations.

    Raises:
        ConfigError: it costs more than it may. Nothing was sent.
    """
    own = {part.task.name: part for part in setting.parts}
    sets = [
        (p.prompter, examples) for p in (*setting.parts, *further) for examples in p.data.evaluation.values()
    ]
    if submission:
        sets += [(own[test.task.name].prompter, test.examples) for test in submission.sets]
    questions: list[Questions] = []
    for prompter, examples in sets:
        assert isinstance(prompter, MessagePrompter)
        limit = setting.config.eval.max_new_tokens or longest_answer(prompter, examples)
        questions.append((prompter, examples, limit))
    model.announce(questions)


def _within_context(
    policy: Policy, prompter: Prompter, examples: Sequence[Example], config: EvalConfig
) -> EvalConfig:
    """Completions no longer than the prompts leave room for.

    The room was made for the examples known before the fit; here a candidate may be longer than all of those.
    """
    limit = config.max_new_tokens or longest_answer(prompter, examples)
    if prompter.max_prompt_tokens is not None:
        limit = min(limit, policy.context_length - prompter.max_prompt_tokens)
    return replace(config, max_new_tokens=limit)
