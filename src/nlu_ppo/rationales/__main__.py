"""`python -m nlu_ppo.rationales [--dry-run] [group=choice] [key=value]`: has the analyses of a run written.

Overrides are those of train.py; what is written is what that run will look for, so that it finds it there. It says
first how many analyses are lacking, how many tokens and how much money they take, and refuses what costs more than
`task.writer.max_cost`. With --dry-run it stops there. Run again, it goes on where it was interrupted.

Exit codes: 0: all is there. 2: a mistake that the user can mend; what came back before is kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from nlu_ppo.choices import CONF
from nlu_ppo.cli import INTERRUPTED, USER_ERROR, register_resolvers
from nlu_ppo.composition import register_schemas, to_config
from nlu_ppo.config import Config
from nlu_ppo.errors import ConfigError, UserError
from nlu_ppo.mistakes import explain, told
from nlu_ppo.run import build_run, provide_analyses
from nlu_ppo.tasks.rationales import WRITTEN


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m nlu_ppo.rationales",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dry-run", action="store_true", help="say what it costs, and stop")
    options, overrides = parser.parse_known_args(arguments)
    try:
        folder = provide_analyses(_composed(overrides), options.dry_run)
    except (UserError, HydraException) as error:
        print(f"error: {explain(error) or told(error)}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where this one stopped", file=sys.stderr)
        return INTERRUPTED
    if folder is None:
        print("this run learns from no analysis: try method=sft, method.init=sft, or reward=label_sensitive")
    else:
        print(folder)
    return 0


def _composed(overrides: Sequence[str]) -> Config:
    register_schemas()
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = to_config(compose("config", list(overrides)))
    if config.task.rationale not in WRITTEN:
        raise ConfigError(
            f"task.rationale={config.task.rationale}: there is something to write with task.rationale=model or "
            f"task.rationale=endpoint"
        )
    build_run(config, Path(config.outputs))  # for its checks
    return config


if __name__ == "__main__":
    sys.exit(main())
