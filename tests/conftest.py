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


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random Llama with a byte tokenizer: a local model directory that knows nothing."""
    from models import random_policy

    folder = tmp_path_factory.mktemp("model")
    policy = random_policy("llama", lora=False, spread=0.05)
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return folder
