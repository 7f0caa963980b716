"""Composes runs as the command line does, but in this process."""

from __future__ import annotations

import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from nlu_ppo.cli import register_resolvers
from nlu_ppo.config import Config, register_schemas, to_config
from nlu_ppo.run import Run, build_run

ROOT = Path(__file__).parents[1]


def config_of(*overrides: str) -> Config:
    register_schemas()
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return to_config(compose("config", overrides=list(overrides)))


def run_of(folder: Path, *overrides: str) -> Run:
    return build_run(config_of(f"outputs={folder.parent}", *overrides), folder)


def command(*arguments: str) -> list[str]:
    """The command line of train.py with this interpreter."""
    return [sys.executable, str(ROOT / "train.py"), *arguments]
