"""Composes a run from conf/ and the command line, executes it, records it. See `python train.py --help`."""

import hydra
from omegaconf import DictConfig

from nlu_ppo.cli import command_line, folder_of, one_run, typed_keys
from nlu_ppo.composition import register_schemas, to_config
from nlu_ppo.run import build_run, execute
from nlu_ppo.tables.summary import before_and_after

register_schemas()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
@one_run
def main(tree: DictConfig) -> None:
    run = build_run(to_config(tree), folder_of(tree), typed_keys())
    result = execute(run)
    print(before_and_after(run.folder, result))


if __name__ == "__main__":
    command_line(main)
