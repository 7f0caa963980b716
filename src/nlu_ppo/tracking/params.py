"""What MLflow shows of a run beside its numbers: few short params, and tags for all that one filters by."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from nlu_ppo.config import Config, default_of, walk

# Asked of any run, so always there; seldom typed, because they come from the model's file.
ALWAYS = ("task", "model", "method", "method.learning_rate", "method.epochs", "method.k")


def params_of(config: Config, names: Mapping[str, str | None], typed: Collection[str]) -> dict[str, str]:
    """Task, model, method and seed of a run, and under `with.<key>` the settings that tell it from others.

    MLflow's pages lay every param of the runs in hand side by side. PPO alone has thirty settings, nearly all at
    their defaults, and the other methods have none of those: the columns that matter would drown. So a setting is
    a param if somebody set it (on the command line or in a sweep, where the runs at its default value are named
    like the others), or if the method's file differs from the schema's default. All others are in config.yaml,
    which every run has among its artifacts. Adapter and reward are settings in this sense: between a run that uses
    one and a run that doesn't, it is the method that differs.

    The page that compares runs opens with the first three differing params of the alphabet as its axes. Hence the
    prefix: method, model, seed and task come first.

    Args:
        names: the choices by group; `None` where the method doesn't use the group.
        typed: dotted keys that the command line, or the sweep, gave a value to.
    """
    params = {"seed": str(config.seed)}
    for group, chosen in {**names, "eval": ""}.items():
        if chosen is None:
            continue
        if group in ALWAYS or (group in typed and chosen):
            params[group] = chosen
        for key, item, value in walk(getattr(config, group), f"{group}."):
            if _tells_apart(key, item, value, typed):
                params[f"with.{key}"] = str(value)
    return params


def _tells_apart(key: str, item: dataclasses.Field[object], value: object, typed: Collection[str]) -> bool:
    counts = item.metadata.get("key", True) or item.metadata.get("resolved") or item.name == "adapter"
    if not counts or item.name == "name":
        return False
    if key in typed or key in ALWAYS:
        return True
    # the settings of the SFT run that a run starts from are params of that one
    own = key.startswith("method.") and not key.startswith("method.start.")
    return own and value != default_of(item)
