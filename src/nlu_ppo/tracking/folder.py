"""The run folder: what a run writes, and in which order, so that a crash at any moment loses nothing.

`result.json` comes last and atomically: a run is finished if and only if it says so.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nlu_ppo.errors import MALFORMED, FolderBusyError, RunFolderError
from nlu_ppo.storage import write_atomic, writing

LOG = "run.log"  # what a run says that a sweep started in a process of its own
IGNORED = {".lock", ".hydra", LOG}  # what other programs may have put there before the run began


def jsonable(value: Any) -> Any:
    """Tuples become lists; NaN and infinities become null, which is what JSON has for them."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class RunFolder:
    """One run's folder, held by one process at a time."""

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.key = key
        self._lock = FileLock(path / ".lock")
        self._record_lock = threading.Lock()  # the mirror's thread writes to run.json, too
        self._clock: tuple[float, float] | None = (
            None  # seconds since the run began, and the monotonic clock then
        )

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    # -- life cycle ---------------------------------------------------------------------------------------

    def open(
        self, overwrite: bool = False, differs: Callable[[Mapping[str, Any]], str] = lambda theirs: ""
    ) -> dict[str, Any] | None:
        """Takes hold of the folder.

        Args:
            differs: says what differs from the run that is there, of whose key it gets what that stands for.

        Returns:
            the result of the run if it is finished already, else `None`.

        Raises:
            RunFolderError: another process holds it, or it belongs to another run.
            DiskError: there is no room for it.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.claim():
                raise FolderBusyError(f"{self.path}: another process is at work on this run")
        held = [p for p in self.path.iterdir() if p.name not in IGNORED]
        if held and overwrite:
            for entry in held:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            held = []
        record = self.read_json("run.json")
        if held and record.get("key") != self.key:
            whose = f"run {record['key'][:8]}" if "key" in record else "something that is no run of ours"
            self.close()
            raise RunFolderError(
                f"{self.path} already holds {whose}, and this is run {self.key[:8]}"
                f"{differs(record.get('identity') or {})}: choose another folder "
                f"(hydra.run.dir=DIR), or replace what is there with overwrite=true"
            )
        result = self.read_json("result.json")
        return result if result.get("status") == "finished" else None

    def claim(self) -> bool:
        """Takes hold of the folder, unless another process has. A process that is killed holds nothing."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def begin(self, record: Mapping[str, Any], config_yaml: str) -> None:
        """Writes who this run is. What an earlier, unfinished attempt said of its end goes away.

        `started` stays that of the first attempt: seconds in metrics.jsonl count from there.
        """
        (self.path / "result.json").unlink(missing_ok=True)
        write_atomic(self.path / "config.yaml", config_yaml)
        first = {"started": time.time(), **self.read_json("run.json")}
        self.update_record({**first, **record, "ended": None, "key": self.key})
        self.elapsed()

    @property
    def started(self) -> float:
        """When the run began, in seconds of the Unix epoch."""
        return float(self.read_json("run.json")["started"])

    def elapsed(self) -> float:
        """Seconds since the run began, with those between its attempts.

        The system's clock counts at the start of an attempt; whoever sets it later changes nothing. It never goes
        back behind what an earlier attempt has recorded.
        """
        if self._clock is None:
            before = max((line.get("seconds", 0.0) for line in self.read_metrics()), default=0.0)
            self._clock = max(time.time() - self.started, before), time.monotonic()
        at, then = self._clock
        return at + time.monotonic() - then

    def finish(self, result: Mapping[str, Any]) -> None:
        """The last file that a run writes."""
        self.update_record({"ended": self.started + self.elapsed()})
        text = json.dumps(jsonable({"key": self.key, **result}), indent=1, ensure_ascii=False)
        write_atomic(self.path / "result.json", text + "\n")

    def close(self) -> None:
        self._lock.release()

    # -- files --------------------------------------------------------------------------------------------

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder; empty if it isn't there.

        Raises:
            RunFolderError: it is there and can't be read.
        """
        path = self.path / name
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise TypeError("no JSON object")
            return found
        except FileNotFoundError:
            return {}
        except MALFORMED as error:
            raise RunFolderError(
                f"{path} is damaged ({error}): remove it, or start over with overwrite=true"
            ) from error

    def update_record(self, values: Mapping[str, Any]) -> None:
        """Adds to `run.json`, what a resumed run has to know of its earlier attempts."""
        with self._record_lock:
            record = {**self.read_json("run.json"), **values}
            write_atomic(self.path / "run.json", json.dumps(jsonable(record), indent=1) + "\n")

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        path = self.path / "metrics.jsonl"
        with writing(path), path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(jsonable(line)) + "\n")

    def keep_metrics(self) -> None:
        """Brings metrics.jsonl to the disk: a power cut then leaves no checkpoint of steps that it has no line of."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            with writing(path), path.open("rb") as stream:
                os.fsync(stream.fileno())

    def read_metrics(self) -> list[dict[str, Any]]:
        return self.metrics_from(0)[0]

    def metrics_from(self, offset: int) -> tuple[list[dict[str, Any]], int]:
        """The lines behind `offset` bytes of metrics.jsonl, and where they end."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return [], offset
        with path.open("rb") as stream:
            stream.seek(offset)
            text = stream.read()
        whole = text[: text.rfind(b"\n") + 1]  # the last line may be torn by a crash
        try:
            lines = [json.loads(line) for line in whole.split(b"\n")[:-1]]
            if odd := [
                line for line in lines if not isinstance(line, dict) or not isinstance(line.get("step"), int)
            ]:
                raise TypeError(f"no object with a step: {json.dumps(odd[0])[:80]}")
        except MALFORMED as error:
            raise RunFolderError(
                f"{path} is damaged behind byte {offset} ({error}): remove the broken line, or start over with "
                f"overwrite=true"
            ) from error
        return lines, offset + len(whole)

    def truncate_metrics(self, step: int, scored: int) -> None:
        """Forgets what was logged after the checkpoint that a resumed run goes on from.

        Args:
            step: the checkpoint's.
            scored: the last step whose weights it knows the score of. A checkpoint that a signal asked for is written
                before its step is scored; the next attempt does that, and may be killed before its own checkpoint.
        """
        kept = [
            line
            for line in self.read_metrics()
            if line["step"] <= step and (line["step"] <= scored or not _is_score(line))
        ]
        write_atomic(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    @property
    def submission(self) -> Path:
        return self.path / "submission"

    def write_submission(self, name: str, text: str) -> None:
        self.submission.mkdir(exist_ok=True)
        write_atomic(self.submission / name, text)

    def write_predictions(self, predictions: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(jsonable(p), ensure_ascii=False) + "\n" for p in predictions)
        write_atomic(self.path / "predictions.jsonl", text)


def _is_score(line: Mapping[str, Any]) -> bool:
    """Whether a line of metrics is the score of held-out data during training."""
    return any(name.startswith("select/") for name in line)


class ObservedFolder(RunFolder):
    """The same folder for a run's other processes: they read it, and the main process holds it and writes it."""

    def begin(self, record: Mapping[str, Any], config_yaml: str) -> None:
        pass

    def elapsed(self) -> float:
        return 0.0

    def finish(self, result: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass

    def update_record(self, values: Mapping[str, Any]) -> None:
        pass

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        pass

    def truncate_metrics(self, step: int, scored: int) -> None:
        pass

    def write_submission(self, name: str, text: str) -> None:
        pass

    def write_predictions(self, predictions: Iterable[Mapping[str, Any]]) -> None:
        pass
