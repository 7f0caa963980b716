"""What a process of its own does in test_mirror.py; a module without torch, so that it starts quickly."""

from pathlib import Path

from nlu_ppo.config import TrackingConfig
from nlu_ppo.tracking.delivery import connect


def connect_and_create(outputs: Path) -> str:
    """Connects to the database below `outputs` and creates a run in it; returns the run's id."""
    client, experiment = connect(TrackingConfig(experiment="tests"), outputs)
    return client.create_run(experiment).info.run_id
