"""The methods by name. Whoever only needs a part of one imports that, and not all trainers' libraries."""

from __future__ import annotations

from collections.abc import Callable

from nlu_ppo.methods import few_shot, group, ppo, sft, zero_shot
from nlu_ppo.methods.setting import Setting

METHODS: dict[str, Callable[[Setting], Setting]] = {
    "zero_shot": zero_shot.fit,
    "few_shot": few_shot.fit,
    "sft": sft.fit,
    "ppo": ppo.fit,
    "grpo": group.fit,
    "rloo": group.fit,
}
