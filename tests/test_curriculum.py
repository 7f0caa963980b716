"""`method.order`: the order in which examples come, against what the model itself says of them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import config_of
from models import random_policy

from nlu_ppo.errors import ConfigError
from nlu_ppo.identity import run_key
from nlu_ppo.methods import curriculum
from nlu_ppo.methods.setting import Part, Setting
from nlu_ppo.prompting import Prompter
from nlu_ppo.run import build_run
from nlu_ppo.tasks.splits import load_tasks

SMALL = ("task.limit.train=12", "task.selection=0", "method.epochs=2")


def setting_of(*overrides: str) -> Setting:
    config, policy = config_of(*SMALL, *overrides), random_policy()
    parts = tuple(Part(data, Prompter(data.task, policy.tokenizer)) for data in load_tasks(config.task))
    recorder: Any = None
    return Setting(config, policy, parts, recorder)


def epochs_of(setting: Setting) -> tuple[list[int], list[int]]:
    stream = curriculum.training_stream(setting)
    seen = list(islice(stream, 2 * len(stream)))
    assert sorted(seen[: len(stream)]) == sorted(seen[len(stream) :]) == list(range(len(stream)))
    return seen[: len(stream)], seen[len(stream) :]


@pytest.mark.parametrize("method", ["sft", "ppo", "rloo"])
def test_short_examples_come_first(method: str) -> None:
    setting = setting_of(f"method={method}", "method.order=short_first")
    examples = setting.parts[0].data.train
    for epoch in epochs_of(setting):
        lengths = [sum(map(len, examples[n].fields.values())) for n in epoch]
        assert lengths == sorted(lengths)
    plain = setting_of(f"method={method}")
    assert epochs_of(plain)[0] != epochs_of(setting)[0]


def test_what_the_model_is_sure_of_comes_first() -> None:
    """Against log-probabilities from plain forward passes."""
    setting = setting_of("method=ppo", "method.order=confidence", "task=toy_nli")
    first, second = epochs_of(setting)
    assert first == second  # the model has no two equal margins
    policy, (part,) = setting.policy, setting.parts
    margins = []
    for example, prompt in zip(part.data.train, part.prompter.encode(part.data.train), strict=True):
        found = {}
        for word in part.task.verbalizers:
            ids = list(part.prompter.completion_ids(word + "</Judgement>"))
            with torch.no_grad():
                logits = policy.model(input_ids=torch.tensor([[*prompt.ids, *ids]])).logits[0]
            rows = logits[len(prompt.ids) - 1 : -1].log_softmax(-1)
            found[word] = rows.gather(1, torch.tensor(ids).unsqueeze(1)).sum().item()
        right = part.task.verbalize(example.label)  # type: ignore[arg-type]
        margins.append(found.pop(right) - max(found.values()))
    assert [margins[n] for n in first] == sorted(margins, reverse=True)


def test_the_key_knows_the_order() -> None:
    keys = {
        run_key(config_of("method=sft", f"method.order={o}"))
        for o in ("shuffled", "short_first", "long_first", "confidence")
    }
    assert len(keys) == 4
    assert run_key(config_of("method=sft")) in keys


def test_confidence_needs_answers_to_compare() -> None:
    with pytest.raises(ConfigError, match="those of task=squad can't be listed"):
        build_run(config_of("task=squad", "method=sft", "method.order=confidence"), Path("nowhere"))
    with pytest.raises(ConfigError, match=r"method\.order=confidence needs a language model"):
        config_of("model=bert_base", "method=sft", "method.order=confidence")
