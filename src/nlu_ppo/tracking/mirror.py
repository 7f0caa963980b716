"""MLflow as a mirror of the run folder, kept up to date by a thread that never holds up the run.

A server that dies loses nothing: the thread tries again until it is back, and sends what it lacks. What hasn't
arrived when the run ends is brought by `make sync` (`sync` below), which completes or rebuilds the mirror from
the run folders at any time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nlu_ppo.config import TrackingConfig
from nlu_ppo.errors import RunFolderError, TrackingError, first_words
from nlu_ppo.tracking.delivery import ENDED, Delivery, connect
from nlu_ppo.tracking.folder import RunFolder

log = logging.getLogger(__name__)

INTERVAL = 1.0  # seconds between two batches: many fast steps make one request
LONGEST_PAUSE = 30.0  # seconds between two attempts to reach a lost server
PREEMPTED_PATIENCE = 5.0  # seconds: a run that is told to go has not many left
# What a server means by these doesn't change with time. (It answers BAD_REQUEST to any error of its database.)
REFUSALS = {"INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_DOES_NOT_EXIST",
            "ENDPOINT_NOT_FOUND"}  # fmt: skip


class Mirror:
    """One run's copy in MLflow. No call raises an error of MLflow's, and only `end` waits.

    Args:
        folder: after `begin`; what is sent is read from it.

    Attributes:
        lost: nothing is sent (any more): tracking is off, or the server refuses or stays away.
    """

    def __init__(self, config: TrackingConfig, outputs: Path, folder: RunFolder) -> None:
        self.folder = folder
        self.lost = not config.enabled
        self._config, self._outputs = config, outputs
        self._result: Mapping[str, Any] | None = None
        self._lines = False
        self._stirred, self._ending = threading.Event(), threading.Event()
        self._contact: float | None = None  # when the server last did what it was asked
        self._failed = False
        self._thread = threading.Thread(target=self._send, name="mlflow", daemon=True)
        if config.enabled:
            import mlflow.tracking  # noqa: F401 - here, since two threads that import at once can trip each other

            self._thread.start()

    def metrics(self) -> None:
        """metrics.jsonl has grown."""
        self._lines = True
        self._stirred.set()

    def end(self, result: Mapping[str, Any]) -> None:
        """Waits until everything has arrived, but no longer than the server is silent for `tracking.patience`."""
        if self.lost:
            return
        patience = self._config.patience
        if result["status"] == "interrupted":
            patience = min(patience, PREEMPTED_PATIENCE)
        began = time.monotonic()
        self._result = result
        self._ending.set()
        self._stirred.set()
        while self._thread.is_alive() and time.monotonic() - max(began, self._contact or 0.0) < patience:
            self._thread.join(0.1)
        if self._thread.is_alive() or self.lost:
            self.lost = True
            log.warning(
                "MLflow lacks a part of this run; its folder %s has everything, and `make sync` brings it over.",
                self.folder.path,
            )

    # -- the thread ---------------------------------------------------------------------------------------

    def _send(self) -> None:
        """Sends whatever there is to send, until the end of the run has arrived or nothing more can be done."""
        delivery: Delivery | None = None
        pause = INTERVAL
        while not self.lost:
            self._stirred.clear()
            result = self._result
            try:
                if delivery is None:  # at first, and after a failure: then the server says what it has
                    connection = connect(self._config, self._outputs)
                    delivery = Delivery(connection, self.folder, live=True, alive=self._answered)
                if result is not None:
                    delivery.finish(result)
                    return
                if self._lines:  # not before the first: until then a resumed run may still cut its file
                    delivery.metrics()
            except Exception as error:
                delivery = None
                self._note(error)
                if self._ending.is_set():
                    self._stirred.wait(INTERVAL)
                else:
                    self._ending.wait(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                continue
            self._failed, pause = False, INTERVAL
            self._ending.wait(INTERVAL)
            self._stirred.wait()

    def _answered(self) -> None:
        self._contact = time.monotonic()

    def _note(self, error: Exception) -> None:
        """Says a failure once; gives up where another attempt would end the same."""
        refused = getattr(error, "error_code", None) in REFUSALS
        # At the end of the run, a server that never answered is not waited for: it isn't coming back, it wasn't
        # there. One that did answer has `tracking.patience` to do so again.
        self.lost = refused or (self._ending.is_set() and self._contact is None)
        if not self._failed:
            after = "It is not tried again" if refused else "It is tried again"
            log.warning(
                "MLflow can't be reached or refuses (%s: %s). The run goes on, and its folder %s has everything. "
                "%s; `make sync` brings over what is missing in the end.",
                type(error).__name__,
                first_words(error),
                self.folder.path,
                after,
            )
        self._failed = True


# -- rebuilding the mirror -----------------------------------------------------------------------------------


def run_folders(outputs: Path) -> Iterator[Path]:
    """All run folders below `outputs`, in order."""
    yield from (file.parent for file in sorted(outputs.rglob("run.json")))


def sync(outputs: Path, config: TrackingConfig) -> tuple[int, int]:
    """Brings every run of `outputs` that MLflow lacks, or has in part, into MLflow; runs at work are left alone.

    A run that was killed without a word counts as interrupted.

    Returns:
        how many runs were brought over or completed, and how many were there already.

    Raises:
        TrackingError: the server can't be reached, or refuses a run.
    """
    place = outputs
    brought = present = 0
    try:
        connection = connect(config, outputs)
        there = _statuses(*connection)
        for place in run_folders(outputs):
            record = RunFolder(place, "").read_json("run.json")
            if not isinstance(record.get("key"), str):
                raise RunFolderError(f"{place / 'run.json'} names no run: remove the folder, or run it again")
            folder = RunFolder(place, record["key"])
            if not folder.claim():
                continue
            try:
                done = _complete(folder, connection, there.get(record.get("mlflow_run_id", "")))
            finally:
                folder.close()
            brought, present = brought + done, present + (not done)
    except Exception as error:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        if not isinstance(error, (MlflowException, SQLAlchemyError, OSError)):
            raise
        raise TrackingError(
            f"{place}: MLflow can't be reached or refuses ({first_words(error)}). {brought} runs were brought over "
            f"before; the same command goes on from there.{_if_damaged(error, config, outputs)}"
        ) from error
    return brought, present


def _if_damaged(error: Exception, config: TrackingConfig, outputs: Path) -> str:
    """What to do about a database file that is none any more."""
    if config.uri or not any(words in str(error) for words in ("not a database", "malformed")):
        return ""
    return (
        f" {outputs / 'mlflow.db'} is damaged: move it away, and the same command builds a new one from the run "
        f"folders, which have everything."
    )


def _complete(folder: RunFolder, connection: tuple[Any, str], status: str | None) -> bool:
    """Brings over what is missing of a run; whether anything was."""
    result = folder.read_json("result.json")
    if result.get("status") not in ENDED:
        result = {"status": "interrupted"}
    if status == "FINISHED" and result["status"] == "finished":
        return False
    delivery = Delivery(connection, folder, live=False)
    delivery.metrics()
    if status == ENDED[result["status"]] and not delivery.sent:
        return False
    delivery.finish(result)
    return True


def _statuses(client: Any, experiment: str) -> dict[str, str]:
    """Run id to status of all runs in the experiment."""
    found: dict[str, str] = {}
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        found |= {run.info.run_id: run.info.status for run in page}
        token = page.token
        if not token:
            return found
