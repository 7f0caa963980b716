"""Brings one run folder into MLflow: flat runs with tags, metrics in batches, files, the model.

Every call here may be repeated after a failure, in this process or a later one, and nothing arrives twice. What
has arrived is not remembered but asked of the server: MLflow keeps the latest step of every metric, and metrics
are sent in the order of their steps. (A batch whose confirmation was lost is sent again with the same time
stamps; MLflow's metrics have a primary key over all their columns, and leave out what they have.)
"""

from __future__ import annotations

import logging
import math
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from nlu_ppo.config import TrackingConfig
from nlu_ppo.credentials import take_password
from nlu_ppo.tracking import picture
from nlu_ppo.tracking.datasets import dataset_inputs
from nlu_ppo.tracking.folder import RunFolder
from nlu_ppo.tracking.model import log_model

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

ARTIFACTS = ("config.yaml", "result.json", "metrics.jsonl", "predictions.jsonl", picture.NAME)
ENDED = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
BATCH = 1000  # metrics per request: MLflow takes no more
ILLEGAL = re.compile(r"[^\w.\- :/]")  # in the name of a metric; answer words of one's own task may have them
NOT_AN_AXIS = ("step", "examples", "seconds")


def default_uri(outputs: Path) -> str:
    return f"sqlite:///{outputs.resolve() / 'mlflow.db'}"


def connect(config: TrackingConfig, outputs: Path) -> tuple[MlflowClient, str]:
    """A client and the id of the experiment, both created where missing.

    A new SQLite file is migrated by the first process that connects; others wait at the lock, since parallel
    migrations of one file lose runs.
    """
    # Whoever calls tries again on its own; MLflow's retries would hold the call up for minutes before that.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)
    from mlflow.store.db import utils
    from mlflow.tracking import MlflowClient

    utils.MAX_RETRY_COUNT = 1  # of a database that can't be opened: nine more take minutes, and hold the lock
    uri = take_password(config.uri) if config.uri else default_uri(outputs)
    if uri.startswith(("http:", "https:")):
        client = MlflowClient(tracking_uri=uri)
        return client, _experiment(client, config.experiment, artifacts=None)
    outputs.mkdir(parents=True, exist_ok=True)
    with FileLock(outputs / ".mlflow.lock"):
        client = MlflowClient(tracking_uri=uri)
        return client, _experiment(client, config.experiment, (outputs.resolve() / "mlartifacts").as_uri())


def _experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id
    try:
        return client.create_experiment(name, artifact_location=artifacts)
    except MlflowException:  # another client was faster
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return experiment.experiment_id


class Delivery:
    """One run on its way into MLflow: finds its run there, or creates it.

    Args:
        live: the run is at work, and MLflow shall say so.
        alive: called whenever the server has done something.

    Attributes:
        sent: metrics sent so far.
    """

    def __init__(
        self,
        connection: tuple[MlflowClient, str],
        folder: RunFolder,
        live: bool,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        from mlflow.entities import Param

        self.folder = folder
        self.sent = 0
        self._alive = alive
        self._client, self._experiment = connection
        self._offset = 0
        self._datasets_told = False
        if "folder_id" not in folder.read_json("run.json"):
            folder.update_record({"folder_id": uuid.uuid4().hex})
        record = folder.read_json("run.json")
        self._started = folder.started
        self.run_id = self._find(record) or self._create(record)
        run = self._client.get_run(self.run_id)
        self._arrived = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        self._told_error = "error" in run.data.tags
        if not run.data.params:
            params = [Param(name, str(value)[:500]) for name, value in record["params"].items()]
            self._client.log_batch(self.run_id, params=params)
        if live and run.info.status != "RUNNING":
            self._client.update_run(self.run_id, status="RUNNING")
        if record.get("mlflow_run_id") != self.run_id:
            folder.update_record({"mlflow_run_id": self.run_id})
        self._alive()

    def _find(self, record: Mapping[str, Any]) -> str | None:
        """The run's id in MLflow, unless it isn't there or was deleted."""
        from mlflow.exceptions import MlflowException

        known = record.get("mlflow_run_id")
        if known:
            try:
                run = self._client.get_run(known)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            else:
                if run.info.lifecycle_stage == "active":
                    return known
        # it may have been created, and the answer have got lost
        found = self._client.search_runs([self._experiment], f"tags.folder_id = '{record['folder_id']}'")
        return found[0].info.run_id if found else None

    def _create(self, record: Mapping[str, Any]) -> str:
        tags = record["tags"]
        run = self._client.create_run(
            self._experiment,
            start_time=int(self._started * 1000),
            tags={**tags, "folder_id": record["folder_id"]},
            run_name="/".join(tags[name] for name in ("task", "model", "method", "seed")),
        )
        return run.info.run_id

    def metrics(self) -> None:
        """Sends what metrics.jsonl has and the server lacks; before the first, which data the run reads."""
        if not self._datasets_told:
            datasets = dataset_inputs(self.folder.read_json("run.json").get("datasets", ()))
            if datasets:
                self._client.log_inputs(self.run_id, datasets)
            self._datasets_told = True
        lines, end = self.folder.metrics_from(self._offset)
        fresh = [metric for line in lines for metric in self._metrics_of(line)]
        for start in range(0, len(fresh), BATCH):
            self._client.log_batch(self.run_id, metrics=fresh[start : start + BATCH])
            self.sent += len(fresh[start : start + BATCH])
            self._alive()
        self._offset = end

    def _metrics_of(self, line: Mapping[str, Any]) -> Iterator[Metric]:
        """The step axis is training examples seen: the one that all methods share."""
        stamp = int((self._started + line.get("seconds", 0.0)) * 1000)
        values = {name: value for name, value in line.items() if name not in NOT_AN_AXIS}
        return self._missing(values, stamp, int(line["examples"]))

    def _missing(self, values: Mapping[str, Any], stamp: int, axis: int) -> Iterator[Metric]:
        from mlflow.entities import Metric

        for name, value in numbers(values).items():
            legal = ILLEGAL.sub("_", name)
            if axis > self._arrived.get(legal, -1):
                yield Metric(legal, value, stamp, axis)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Sends all the rest; last of all the status, so that a run that MLflow calls ended is there as a whole."""
        self.metrics()
        seconds = self.folder.read_json("run.json").get("ended")
        ended = int(1000 * seconds) if seconds else None
        final = list(self._missing(final_metrics(result), ended or 0, 0))
        if final:
            self._client.log_batch(self.run_id, metrics=final)
            self.sent += len(final)
        if result.get("error"):
            self._client.set_tag(self.run_id, "error", str(result["error"])[:5000])
        elif self._told_error:  # of an earlier attempt
            self._client.delete_tag(self.run_id, "error")
        for name in ARTIFACTS:
            if (self.folder.path / name).exists():
                self._client.log_artifact(self.run_id, str(self.folder.path / name))
                self._alive()
        if result["status"] == "finished":
            log_model(self._client, self._experiment, self.run_id, self.folder, self._alive)
        self._client.set_terminated(self.run_id, ENDED[result["status"]], end_time=ended)


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among `values`; what is missing or not a number has no place on a curve."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def final_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """`final/*` and `best/*`: what one compares runs by, logged once, at step 0 whatever the method.

    (A metric with one step is drawn as a bar per run, one with several as a curve.)
    """
    values = {f"final/{k}": v for k, v in result.get("metrics", {}).items()}
    for name in ("score", "likelihood_score", "majority", "unparsable", "n", "samples_per_second"):
        values[f"final/{name}"] = result.get(name)
    for name, seconds in result.get("seconds", {}).items():
        values[f"final/seconds_{name}"] = seconds
    best = result.get("best") or {}
    return numbers(values | {f"best/{k}": v for k, v in best.items()})
