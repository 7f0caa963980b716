"""Fixtures shared by all tests."""

import os
import shutil
import signal

# Workers share the cores (pytest -n): threads that wait for each other would cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")
from pathlib import Path
from typing import Any

import promises
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="tests of promises at their full length (two hours)")
    parser.addoption(
        "--record",
        type=Path,
        metavar="FILE",
        help="write promises and figures to this JSON file (with an equals sign: pytest reads its arguments once "
        "before it knows this option, and would take FILE for a place of tests)",
    )


def pytest_configure() -> None:
    """Gives signals their usual effect.

    A shell's background job has its Ctrl-C ignored, and `nohup` the end of the terminal; processes pass that on to
    those they start. Runs respect it, and so the tests of signals would wait in vain.
    """
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


# -- promises: what `make test-faults` shows, and docs/reliability.md lists ---------------------------------------

seen: list[promises.Seen] = []


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("promise"):
        item.user_properties.append(("promise", promises.words(*mark.args)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    figures = dict(report.user_properties).get("figures", {})
    for name, value in report.user_properties:
        if name == "promise":
            seen.append(promises.Seen(*value, report.nodeid, report.outcome, report.duration, figures))
            figures = {}  # counted once


def pytest_sessionfinish(session: pytest.Session) -> None:
    file = session.config.getoption("--record")
    if file is not None and not hasattr(
        session.config, "workerinput"
    ):  # workers of xdist report to one process
        promises.record(file, seen, full=session.config.getoption("--full"))


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a test of a promise has counted or measured, for docs/reliability.md: the test fills it in."""
    found: dict[str, Any] = {}
    request.node.user_properties.append(("figures", found))
    return found


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    """Whether tests of promises run at their full length."""
    return bool(pytestconfig.getoption("--full"))


# -- data and models -----------------------------------------------------------------------------------------


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


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: to copy it takes no time, to migrate a new one takes seconds."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def outputs(tmp_path: Path, migrated: Path) -> Path:
    """A folder for runs whose MLflow database is there already."""
    folder = tmp_path / "outputs"
    folder.mkdir()
    shutil.copy(migrated, folder / "mlflow.db")
    return folder
