"""Hydra takes plugins from this namespace only; the launcher itself is nlu_ppo.launching.local."""

from nlu_ppo.launching import local


class LocalLauncher(local.LocalLauncher):
    """Under the name by which conf/hydra/launcher/local.yaml asks for it."""
