"""Composes runs as the command line does, but in this process."""

from __future__ import annotations

import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from nlu_ppo.choices import CONF, STUDIES, read_groups
from nlu_ppo.cli import register_resolvers
from nlu_ppo.composition import register_schemas, to_config
from nlu_ppo.config import Config
from nlu_ppo.identity import run_key
from nlu_ppo.run import Run, build_run
from nlu_ppo.sweeper import expand

ROOT = Path(__file__).parents[1]
# What a choice leaves open on purpose.
NEEDED = {
    "model=local": ["model.path=some/folder"],
    "model=openai_compatible": ["model.name=m", "method=zero_shot"],
    **{
        f"model={name}": ["method=sft"]
        for name in ("bert_base", "bert_base_cased", "bert_large", "deberta_v3_large")
    },
}

register_schemas()
register_resolvers()


def tree_of(*overrides: str, hydra: bool = False) -> DictConfig:
    """The tree that Hydra hands to train.py."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=hydra)


def config_of(*overrides: str) -> Config:
    """The checked configuration of a command line."""
    return to_config(tree_of(*overrides))


def run_of(folder: Path, *overrides: str) -> Run:
    """A run in a folder of the caller's."""
    return build_run(config_of(f"outputs={folder.parent}", *overrides), folder)


def command(*arguments: str) -> list[str]:
    """The command line of train.py with this interpreter."""
    return [sys.executable, str(ROOT / "train.py"), *arguments]


def every_choice() -> list[str]:
    """`group=choice` for every YAML file below conf/."""
    return [f"{g}={c.name}" for g, choices in read_groups().items() if g != STUDIES for c in choices]


def every_cell(study: str) -> list[list[str]]:
    """The overrides of all cells of sweeps/<study>.yaml."""
    chosen = f"+sweeps={study}"
    sweeper = OmegaConf.to_container(tree_of(chosen, hydra=True).hydra.sweeper)
    return expand(sweeper["params"], [chosen], sweeper["cells"])


def compose_all() -> int:
    """Composes and checks every choice and every cell; returns how many there were.

    Of cells that differ in the seed only, one stands for all.
    """
    count = 0
    for choice in every_choice():
        config_of(choice, *NEEDED.get(choice, []))
        count += 1
    for study in sorted((ROOT / "sweeps").glob("*.yaml")):
        cells = {tuple(o for o in cell if not o.startswith("seed=")) for cell in every_cell(study.stem)}
        assert cells, study
        for cell in sorted(cells):
            config = config_of(*cell)
            assert config.study == study.stem, study
            run_key(config)
            count += 1
    return count
