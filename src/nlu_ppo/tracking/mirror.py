"""MLflow as a mirror of the run folder: flat runs with tags, batched asynchronous metrics, artifacts.

Nothing here may stop a run. What MLflow refuses is said once and left; `make sync` (`sync` below) rebuilds
the mirror from the run folders at any time.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock

from nlu_ppo.config import TrackingConfig
from nlu_ppo.tracking import picture
from nlu_ppo.tracking.folder import RunFolder

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

ARTIFACTS = ("config.yaml", "result.json", "metrics.jsonl", "predictions.jsonl", picture.NAME)
ENDED = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
F = TypeVar("F", bound=Callable[..., None])


def default_uri(outputs: Path) -> str:
    return f"sqlite:///{outputs.resolve() / 'mlflow.db'}"


def connect(config: TrackingConfig, outputs: Path) -> tuple[MlflowClient, str]:
    """A client and the id of the experiment, both created where missing.

    A new SQLite file is migrated by the first process that connects; others wait at the lock, since parallel
    migrations of one file lose runs.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a lost server must not hold up a run
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    outputs.mkdir(parents=True, exist_ok=True)
    uri = config.uri or default_uri(outputs)
    with FileLock(outputs / ".mlflow.lock"):
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(config.experiment)
        if experiment is not None:
            return client, experiment.experiment_id
        local = (outputs.resolve() / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
        try:
            return client, client.create_experiment(config.experiment, artifact_location=local)
        except MlflowException:  # a server's other client was faster
            experiment = client.get_experiment_by_name(config.experiment)
            if experiment is None:
                raise
            return client, experiment.experiment_id


def _never_stop_a_run(method: F) -> F:
    """After the first failure the mirror stays silent: the run folder holds everything."""

    @functools.wraps(method)
    def guarded(self: Mirror, *args: Any, **kwargs: Any) -> None:
        if self.lost:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self.lost = True
            log.warning(
                "MLflow can't be reached or refuses (%s: %s). The run goes on; its folder %s has everything, "
                "and `make sync` brings it into MLflow later.",
                type(error).__name__,
                error,
                self.folder.path,
            )

    return guarded  # type: ignore[return-value]


class Mirror:
    """One run's copy in MLflow.

    Args:
        tags: what people filter by: study, task, model, method, reward, lora, seed, key.
        params: the few short parameters that tell runs apart.
    """

    def __init__(
        self,
        config: TrackingConfig,
        outputs: Path,
        folder: RunFolder,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
    ) -> None:
        self.folder = folder
        self.lost = not config.enabled
        self._pending: list[Any] = []
        self._client: MlflowClient
        self._run_id = ""
        self._start(config, outputs, tags, params)

    @_never_stop_a_run
    def _start(
        self, config: TrackingConfig, outputs: Path, tags: Mapping[str, str], params: Mapping[str, Any]
    ) -> None:
        self._client, experiment = connect(config, outputs)
        earlier = self.folder.read_json("run.json").get("mlflow_run_id")
        if earlier and self._exists(earlier):
            self._run_id = earlier
            self._client.update_run(earlier, status="RUNNING")
        else:
            name = "/".join(tags[t] for t in ("task", "model", "method", "seed"))
            run = self._client.create_run(experiment, tags=dict(tags), run_name=name)
            self._run_id = run.info.run_id
            self.folder.update_record({"mlflow_run_id": self._run_id})
            self._log_params(params)

    def _exists(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException:
            return False

    def _log_params(self, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        self._client.log_batch(self._run_id, params=[Param(k, str(v)[:500]) for k, v in params.items()])

    @_never_stop_a_run
    def metrics(self, line: Mapping[str, Any], when: float | None = None) -> None:
        """Sends one line of metrics.jsonl as one batch, without waiting. The step axis is examples seen."""
        from mlflow.entities import Metric

        stamp = int((when or time.time()) * 1000)
        axis = int(line["examples"])
        batch = [
            Metric(name, float(value), stamp, axis)
            for name, value in line.items()
            if name not in ("step", "examples") and isinstance(value, (int, float)) and math.isfinite(value)
        ]
        self._pending.append(self._client.log_batch(self._run_id, metrics=batch, synchronous=False))

    @_never_stop_a_run
    def end(self, result: Mapping[str, Any]) -> None:
        """Final metrics, artifacts and status; returns once everything has arrived."""
        from mlflow.entities import Metric

        for operation in self._pending:
            if operation is not None:
                operation.wait()
        now = int(time.time() * 1000)
        final = [Metric(k, v, now, 0) for k, v in final_metrics(result).items()]
        if final:
            self._client.log_batch(self._run_id, metrics=final)
        if result.get("error"):
            self._client.set_tag(self._run_id, "error", str(result["error"])[:5000])
        for name in ARTIFACTS:
            if (self.folder.path / name).exists():
                self._client.log_artifact(self._run_id, str(self.folder.path / name))
        if self.folder.adapter.is_dir():
            self._client.log_artifacts(self._run_id, str(self.folder.adapter), "adapter")
        self._client.set_terminated(self._run_id, ENDED[result["status"]])


def final_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """`final/*`: what one compares runs by, logged once."""
    values = {f"final/{k}": v for k, v in result.get("metrics", {}).items()}
    for name in ("score", "likelihood_score", "majority", "unparsable", "n", "samples_per_second"):
        values[f"final/{name}"] = result.get(name)
    for name, seconds in result.get("seconds", {}).items():
        values[f"final/seconds_{name}"] = seconds
    best = result.get("best") or {}
    values |= {f"best/{k}": v for k, v in best.items()}
    return {
        k: float(v)
        for k, v in values.items()
        if isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)
    }


# -- rebuilding the mirror -----------------------------------------------------------------------------------


def run_folders(outputs: Path) -> Iterator[Path]:
    """All run folders below `outputs`, in order."""
    yield from (file.parent for file in sorted(outputs.rglob("run.json")))


def sync(outputs: Path, config: TrackingConfig) -> tuple[int, int]:
    """Brings every ended run of `outputs` that MLflow lacks, or has unfinished, into MLflow.

    Returns:
        how many runs were brought over, and how many were there already.
    """
    client, experiment = connect(config, outputs)
    there = _synced_keys(client, experiment)
    brought = present = 0
    for path in run_folders(outputs):
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
        folder = RunFolder(path, record["key"])
        result = folder.read_json("result.json")
        if result.get("status") not in ENDED:
            continue
        if there.get(record.get("mlflow_run_id", "")) == ENDED[result["status"]]:
            present += 1
            continue
        with contextlib.suppress(KeyError):
            record.pop("mlflow_run_id")
        folder.update_record({"mlflow_run_id": None})
        mirror = Mirror(config, outputs, folder, record["tags"], record["params"])
        for line in folder.read_metrics():
            mirror.metrics(line, when=record["started"] + line.get("seconds", 0.0))
        mirror.end(result)
        if mirror.lost:
            raise RuntimeError(f"{path}: MLflow did not take this run")
        brought += 1
    return brought, present


def _synced_keys(client: MlflowClient, experiment: str) -> dict[str, str]:
    """Run id to status of all runs in the experiment."""
    found: dict[str, str] = {}
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        found |= {run.info.run_id: run.info.status for run in page}
        token = page.token
        if not token:
            return found
