"""A trained run as a function from texts to labels: what `mlflow.pyfunc.load_model` gives.

A new text gets the prompt that the run's texts got, and its answer is read as the run's answers were.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from omegaconf import OmegaConf

from nlu_ppo.config import EvalConfig, ModelConfig, TaskConfig
from nlu_ppo.errors import MALFORMED, DataError, ModelError
from nlu_ppo.evaluation import answer
from nlu_ppo.inference.decoder import score_answers
from nlu_ppo.methods.setting import Part, Setting
from nlu_ppo.models.loading import load_trained
from nlu_ppo.models.locate import resolve_path
from nlu_ppo.models.policy import Policy
from nlu_ppo.prompt_cache import token_ids
from nlu_ppo.prompting import Prompter
from nlu_ppo.tasks import tasks_of
from nlu_ppo.tasks.record import CLOSE_ANALYSIS, Example, Kind, Label, Task
from nlu_ppo.tracking.datasets import slots_of

if TYPE_CHECKING:
    import pandas as pd

SETTINGS = "settings.json"  # beside adapter/, and start/ where the run itself began with an adapter
T = TypeVar("T")


@dataclass(frozen=True)
class _Part:
    """One task: how it is prompted, and how long its answers may become."""

    prompter: Prompter
    slots: list[str]
    lists: list[str]  # slots whose texts are made of a list
    eval: EvalConfig

    @property
    def task(self) -> Task:
        return self.prompter.task


def served(setting: Setting) -> dict[str, Any]:
    """What answering new texts takes, beside the weights; `run.json` keeps it."""
    config = setting.config
    model = dataclasses.asdict(config.model)
    if Path(resolve_path(config.model.path)).is_dir() and config.model.path != "tiny":
        model["path"] = str(Path(config.model.path).expanduser().resolve())
    tasks = [part.task for part in setting.parts]
    first = setting.parts[0]
    example = next(iter(first.data.evaluation.values()))[0]
    shown: dict[str, Any] = {slot: example.fields[slot] for slot in slots_of(first.task)}
    lists = [slot for task in tasks if (slot := _candidates_slot(task, config.task)) is not None]
    shown |= {slot: list(example.candidates) for slot in lists if slot in shown}
    return {
        "task": dataclasses.asdict(config.task),
        "model": model,
        "eval": dataclasses.asdict(config.eval),
        "seed": config.seed,
        "columns": {task.name: slots_of(task) for task in tasks},
        "lists": lists,
        "numbers": all(task.kind is Kind.REGRESS for task in tasks),
        "example": [shown | ({"task": first.task.name} if len(tasks) > 1 else {})],
        "lengths": {part.task.name: _lengths(part, config.eval) for part in setting.parts},
    }


def _lengths(part: Part, config: EvalConfig) -> dict[str, int | None]:
    """Longest prompt and answer in tokens; `None` for an answer whose legal ones tell how long it may be."""
    answer = config.max_new_tokens or (None if part.task.lists_answers else part.longest_answer)
    return {"prompt": part.prompter.max_prompt_tokens, "answer": answer}


def _candidates_slot(task: Task, config: TaskConfig) -> str | None:
    """The slot that shows an example's own candidates."""
    if task.kind is not Kind.CHOOSE:
        return None
    return config.record.candidates if config.record is not None else "entities"


class Classifier:
    """Answers rows of texts, with a trained model.

    Args:
        folder: settings, adapter (or all weights), as `nlu_ppo.tracking.model` lays them down.
        device: `auto` takes CUDA where there is one.
    """

    def __init__(self, folder: Path, device: str = "auto") -> None:
        try:
            settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, *MALFORMED) as error:
            raise ModelError(f"{folder / SETTINGS} can't be read ({error}): export the run again") from error
        model = _read(ModelConfig, settings["model"])
        if (folder / "start").is_dir():
            model = replace(model, adapter=str(folder / "start"))
        self._policy: Policy = load_trained(model, folder / "adapter", device)
        config = _read(EvalConfig, settings["eval"])
        self._seed = int(settings["seed"])
        self._parts = {}
        wanted = _read(TaskConfig, settings["task"])
        analysis = wanted.rationale_tokens if wanted.rationale else 0
        if analysis:
            self._policy.closing = CLOSE_ANALYSIS
        for task in tasks_of(wanted):
            lengths = settings["lengths"][task.name]
            prompter = Prompter(task, self._policy.tokenizer, model.layout, analysis_tokens=analysis)
            prompter.max_prompt_tokens = lengths["prompt"]
            limited = replace(config, max_new_tokens=lengths["answer"])
            self._parts[task.name] = _Part(
                prompter, settings["columns"][task.name], settings["lists"], limited
            )

    def predict(self, table: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Answers every row.

        Args:
            table: a column of texts for each slot of the task's prompt; of a model of several tasks also `task`.

        Returns:
            `label` (the class's name, a number, or words; `None` if unparsable), `completion` (what the model
            wrote) and, of classes and candidates, `probabilities`: each one's, among the legal answers.

        Raises:
            DataError: a row lacks a text, or names no task of this model.
        """
        import pandas as pd

        rows = table.to_dict("records")
        answers: list[dict[str, Any]] = [{} for _ in rows]
        by_task: dict[str, list[int]] = {}
        for number, row in enumerate(rows):
            by_task.setdefault(self._task_of(number, row), []).append(number)
        for name, numbers in by_task.items():
            part = self._parts[name]
            examples = [_example(part, number, rows[number]) for number in numbers]
            for number, found in zip(numbers, self._answer(part, examples), strict=True):
                answers[number] = found
        columns = ["label", "completion", "probabilities"]
        return pd.DataFrame(answers, index=table.index, columns=columns, dtype=object)  # or None becomes NaN

    def _task_of(self, number: int, row: Mapping[Any, Any]) -> str:
        if len(self._parts) == 1:
            return next(iter(self._parts))
        name = row.get("task")
        if name not in self._parts:
            raise DataError(f"row {number}: `task` is {name!r}; this model has {', '.join(self._parts)}")
        return str(name)

    def _answer(self, part: _Part, examples: Sequence[Example]) -> list[dict[str, Any]]:
        with torch.inference_mode():
            found = answer(self._policy, part.prompter, examples, part.eval, self._seed)
            likely = self._probabilities(part, examples, token_ids(found.prompts))
        return [
            {"label": _named(part.task, label), "completion": text, "probabilities": shares}
            for label, text, shares in zip(found.labels, found.texts, likely, strict=True)
        ]

    def _probabilities(
        self, part: _Part, examples: Sequence[Example], prompts: Sequence[Sequence[int]]
    ) -> Sequence[dict[str, float] | None]:
        """Of every legal answer, normalised over these; not of numbers, of which there are many."""
        task, prompter = part.task, part.prompter
        if task.kind not in (Kind.CLASSIFY, Kind.CHOOSE):
            return [None] * len(examples)
        words = [task.answers(example) for example in examples]
        tokens = [[prompter.completion_ids(prompter.close(word)) for word in row] for row in words]
        scores = score_answers(self._policy, prompts, tokens, batch_size=part.eval.batch_size)
        names = [task.labels if task.kind is Kind.CLASSIFY else row for row in words]
        return [
            dict(zip(row, torch.tensor(score, dtype=torch.float64).softmax(0).tolist(), strict=True))
            for row, score in zip(names, scores, strict=True)
        ]


def _named(task: Task, label: Label | None) -> Any:
    return task.labels[int(label)] if task.kind is Kind.CLASSIFY and label is not None else label  # type: ignore[arg-type]


def _example(part: _Part, number: int, row: Mapping[Any, Any]) -> Example:
    for slot in part.slots:
        value = row.get(slot)
        wanted, kinds = ("list", (list, tuple, np.ndarray)) if slot in part.lists else ("text", (str,))
        if not isinstance(value, kinds):
            raise DataError(f"row {number}: the column {slot!r} holds {value!r} where a {wanted} is due")
    texts: dict[str, Any] = {
        slot: list(row[slot]) if slot in part.lists else row[slot] for slot in part.slots
    }
    name = f"row-{number}"
    if part.task.kind is not Kind.CHOOSE:
        return Example(name, texts, None, task=part.task.name)
    assert part.task.fields_of is not None
    assert part.task.candidates_of is not None
    shown = part.task.fields_of(texts)  # the candidates are a list, of which the prompt shows a text
    return Example(name, shown, None, candidates=part.task.candidates_of(texts), task=part.task.name)


def _read(schema: type[T], values: Mapping[str, Any]) -> T:
    found: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), dict(values)))
    return found


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> Classifier:
    """What MLflow calls; `load_model(uri, model_config={"device": "cpu"})` chooses the device."""
    return Classifier(Path(path), (model_config or {}).get("device", "auto"))
