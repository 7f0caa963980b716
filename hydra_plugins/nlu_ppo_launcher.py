"""Hydra takes plugins from this namespace only; the launchers themselves are in nlu_ppo.launching."""

from nlu_ppo.launching import local, slurm


class LocalLauncher(local.LocalLauncher):
    """Under the name by which conf/hydra/launcher/local.yaml asks for it."""


class SlurmLauncher(slurm.SlurmLauncher):
    """Under the name by which conf/hydra/launcher/submitit_slurm.yaml asks for it."""
