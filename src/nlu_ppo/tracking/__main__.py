"""`python -m nlu_ppo.tracking`: brings runs that MLflow lacks, or has in part, from their folders into it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nlu_ppo.config import TrackingConfig
from nlu_ppo.errors import UserError
from nlu_ppo.tracking.mirror import sync


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nlu_ppo.tracking", description=__doc__)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="where studies live")
    parser.add_argument("--uri", default=None, help="tracking server (default: SQLite under --outputs)")
    parser.add_argument("--experiment", default="nlu_ppo")
    arguments = parser.parse_args()
    config = TrackingConfig(uri=arguments.uri, experiment=arguments.experiment)
    try:
        brought, present = sync(arguments.outputs, config)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{brought} runs brought into MLflow, {present} were there already")


if __name__ == "__main__":
    main()
