"""Which way a policy shares what prompts have in common, and why, in words for people."""

from __future__ import annotations

from typing import Any

from nlu_ppo.inference.reading import reads_trees, sees_everything
from nlu_ppo.models.policy import Policy

TREES = "trees"  # every common prefix is run once
ONE_PREFIX = "one prefix"  # only what all rows of a batch have in common is


def sharing(policy: Policy, in_training: bool = True) -> str:
    """How prefixes are shared, exactly in either way: `trees`, or `one prefix: ` and why no more than that.

    Tries a small tree where that is not yet known.

    Args:
        in_training: what `method.share_prefix` says.
    """
    way = TREES if reads_trees(policy) else f"{ONE_PREFIX}: {_why_no_tree(policy)}"
    return way if in_training else f"not shared in training (method.share_prefix=false), otherwise {way}"


def _why_no_tree(policy: Policy) -> str:
    config = policy.trunk.config
    if has_alibi(config):
        return f"ALiBi, which {config.model_type} adds to its scores, goes by the columns of the cache"
    if not sees_everything(config):
        return "some layers see a window of the last tokens only"
    if config._attn_implementation != "sdpa":
        return f"a tree needs model.attention=sdpa, and this is {config._attn_implementation}"
    return "the attention of this architecture can't be told of a tree"


def has_alibi(config: Any) -> bool:
    """Whether scores fall with distance in place of positions being told to tokens."""
    of_attention = getattr(config, "attn_config", None)
    return bool(
        config.model_type == "bloom"
        or getattr(config, "alibi", False)
        or getattr(of_attention, "alibi", False)
    )
