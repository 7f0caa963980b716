"""What MLflow shows of a run beside its numbers: few short params, and tags for all that one filters by."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from nlu_ppo.config import Config, walk

# Asked of any run, so always there; seldom typed, because they come from the model's file.
ALWAYS = ("method.learning_rate", "method.epochs", "method.k")


def params_of(config: Config, names: Mapping[str, str | None], typed: Collection[str]) -> dict[str, str]:
    """The choices of a run by group, its seed, and the settings that tell it from others.

    MLflow's pages lay every param of the runs in hand side by side. PPO alone has thirty settings, nearly all at
    their defaults, and the other methods have none of those: the columns that matter would drown. So a setting is
    a param if somebody set it (on the command line or in a sweep, where the runs at its default value are named
    like the others), or if the method's file differs from the schema's default. All others are in config.yaml,
    which every run has among its artifacts.

    Args:
        names: the choices by group; `None` where the method doesn't use the group.
        typed: dotted keys that the command line, or the sweep, gave a value to.
    """
    chosen = {name: value for name, value in names.items() if value is not None}
    params = {**chosen, "seed": str(config.seed)}
    for group in names:
        if group not in chosen:
            continue
        for key, item, value in walk(getattr(config, group), f"{group}."):
            if _tells_apart(key, item, value, typed):
                params[key] = str(value)
    for key, item, value in walk(config.eval, "eval."):
        if key in typed and _counts(item):
            params[key] = str(value)
    return params


def _tells_apart(key: str, item: dataclasses.Field[object], value: object, typed: Collection[str]) -> bool:
    if not _counts(item) or item.name == "name":
        return False
    if key in typed or key in ALWAYS:
        return True
    return key.startswith("method.") and item.default != value


def _counts(item: dataclasses.Field[object]) -> bool:
    return bool(item.metadata.get("key", True) or item.metadata.get("resolved") or item.name == "adapter")
