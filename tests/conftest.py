"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data beside the repository, which the project itself doesn't ship."""
    place = Path(os.environ.get("NLU_PPO_SHARED") or Path(__file__).parents[2] / "shared")
    if not (place / "data").is_dir():
        pytest.skip(f"no real data at {place / 'data'}: set NLU_PPO_SHARED to a folder that holds data/")
    return place
