"""A reward model's run from data to result, and trained models as a run's reward asks them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlu_ppo.config import Config, RewardModelConfig
from nlu_ppo.errors import DataError
from nlu_ppo.methods import reward_model as method_of
from nlu_ppo.methods.judging import Scorer
from nlu_ppo.methods.reward_model import TokenPair, score_pairs, tokenized
from nlu_ppo.methods.setting import Part, Setting, training_examples
from nlu_ppo.preference.loading import load_reward_model, new_reward_model
from nlu_ppo.preference.measure import accuracy_interval
from nlu_ppo.preference.model import RewardModel
from nlu_ppo.preference.pairs import (
    LABELS,
    Pair,
    file_pairs,
    from_file,
    hold_out,
    label_pairs,
    rationale_pairs,
)
from nlu_ppo.prompting import Prompter
from nlu_ppo.rationales.writing import rationales_of
from nlu_ppo.tasks.record import Example
from nlu_ppo.tasks.splits import TaskData

if TYPE_CHECKING:
    from nlu_ppo.run import Recorder

fit = method_of.fit
CHANCE = 50.0  # percent of pairs that a coin gets right


def prepare(
    config: Config, tasks: Sequence[TaskData], recorder: Recorder, start: Path | None = None
) -> tuple[Setting, list[TokenPair], list[TokenPair]]:
    """A new reward model in its setting, the pairs to train it on, and those to measure it by.

    Args:
        start: what the SFT run has saved that the model starts from.

    Raises:
        UserError: the model can't be read, or a file of pairs is malformed.
    """
    model = new_reward_model(config.model, config.lora, config.seed, config.device, start)
    parts = tuple(_part(config, data, model) for data in tasks)
    setting: Any = Setting(config, model, parts, recorder)  # type: ignore[arg-type]
    train, held_out = _pairs(config, parts)
    return setting, _tokens(parts, train, model), _tokens(parts, held_out, model)


def _part(config: Config, data: TaskData, model: RewardModel) -> Part:
    analysis = config.task.rationale_tokens if config.task.rationale else 0
    prompter = Prompter(data.task, model.tokenizer, config.model.layout, analysis_tokens=analysis)
    part = Part(data, prompter, rationales_of(config, data.task))
    if config.model.kind == "decoder":  # an encoder has no prompt
        prompter.max_prompt_tokens = model.context_length - part.longest_answer
    return part


PartPairs = list[tuple[int, Pair]]  # the number of the task that a pair belongs to, and the pair


def _pairs(config: Config, parts: Sequence[Part]) -> tuple[PartPairs, PartPairs]:
    method = config.method
    assert isinstance(method, RewardModelConfig)
    held_out: PartPairs = []
    if method.held_out_pairs is not None:
        held_out = [(0, pair) for pair in file_pairs(Path(method.held_out_pairs))]
    if from_file(method.pairs):
        path = Path(method.pairs)
        train = file_pairs(path)
        if not held_out:
            train, held = hold_out(train, method.held_out, path)
            held_out = [(0, pair) for pair in held]
        return [(0, pair) for pair in train], held_out
    made: PartPairs = []
    for number, part in enumerate(parts):
        made += [(number, pair) for pair in _made(config, part, training_examples(part))]
        if method.held_out_pairs is None:
            shown = next(iter(part.data.evaluation.values()))  # reported only, as every evaluation is
            held_out += [(number, pair) for pair in _made(config, part, shown)]
    if not made or not held_out:
        raise DataError(
            f"method.pairs={method.pairs}: no two analyses differ, so that there is no pair to learn from"
        )
    return made, held_out


def _made(config: Config, part: Part, examples: Sequence[Example]) -> Iterator[Pair]:
    method = config.method
    assert isinstance(method, RewardModelConfig)
    if method.pairs == LABELS:
        return label_pairs(part.task, examples, method.wrong_labels, config.seed, part.rationales)
    assert part.rationales is not None  # `check_pairs` has seen to it
    return rationale_pairs(part.task, examples, config.seed, part.rationales)


def _tokens(parts: Sequence[Part], pairs: PartPairs, model: RewardModel) -> list[TokenPair]:
    found: list[TokenPair] = []
    for number, part in enumerate(parts):
        own = [pair for owner, pair in pairs if owner == number]
        found += tokenized(model, part.prompter, own)
    return found


def save(setting: Setting, folder: Path) -> None:
    assert isinstance(setting.policy, RewardModel)
    setting.policy.save(folder)


def measure(setting: Setting, pairs: Sequence[TokenPair]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The result's numbers and one line per pair: the score is the share of pairs told apart, in percent."""
    model, config = setting.policy, setting.config
    assert isinstance(model, RewardModel)
    found = score_pairs(model, pairs, config.eval.batch_size)
    metrics = found.metrics
    groups = [pair.pair.group for pair in pairs]
    interval = accuracy_interval(found.chosen, found.rejected, groups, config.eval.bootstrap_samples)
    summary = {
        "metrics": {**metrics, "score": metrics["pair_accuracy"]},
        "score": 100 * metrics["pair_accuracy"],
        "ci95": list(interval),
        "likelihood_score": None,
        "majority": CHANCE,
        "n": len(pairs),
        "unparsable": 0,
        "shortened": 0,
    }
    lines = [
        {
            "id": pair.pair.group,
            "chosen": pair.pair.chosen,
            "rejected": pair.pair.rejected,
            "reward_chosen": chosen,
            "reward_rejected": rejected,
            "correct": chosen > rejected,
        }
        for pair, chosen, rejected in zip(pairs, found.chosen, found.rejected, strict=True)
    ]
    return summary, lines


def scorers(
    config: Config, parts: Sequence[Part], folders: Mapping[str, Path], start: Path | None = None
) -> dict[str, Scorer]:
    """What the trained models say of completions, by the key that holds their settings.

    Where they share the policy's base model and tokenizer they share its prompts, too.
    """

    base = config.reward.model or config.model

    def scorer(folder: Path, settings: RewardModelConfig) -> Scorer:
        own_start = start if settings.init == "sft" else None
        model = load_reward_model(base, config.lora, folder, config.device, own_start)
        own = dataclasses.replace(config, model=base)
        read = parts if base is config.model else [_part(own, part.data, model) for part in parts]
        prompters = {part.task.name: part.prompter for part in read}
        return lambda task, examples, completions: model.judge(prompters[task], examples, completions)

    return {name: scorer(folder, getattr(config.reward, name)) for name, folder in folders.items()}
