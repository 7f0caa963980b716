"""A run's life, from its first line to result.json. What it is, is in `identity`; what it does, in `work`."""

from __future__ import annotations

import dataclasses
import logging
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nlu_ppo import ranks, stopping
from nlu_ppo.checks import check_processes, check_run
from nlu_ppo.config import (
    Config,
    RewardedConfig,
    RewardModelConfig,
    TrainingConfig,
)
from nlu_ppo.credentials import without_password
from nlu_ppo.errors import DataError, DiskError, FolderBusyError, RunFolderError
from nlu_ppo.identity import (
    identity,
    reward_model_config,
    run_key,
    start_config,
    subfolder,
    task_label,
    what_differs,
)
from nlu_ppo.rationales.writing import provide
from nlu_ppo.rewards import needed_models
from nlu_ppo.storage import SEAL, damage, writing
from nlu_ppo.tasks.rationales import WRITTEN
from nlu_ppo.tasks.splits import load_tasks
from nlu_ppo.tracking.folder import ObservedFolder, RunFolder, jsonable
from nlu_ppo.tracking.mirror import Mirror
from nlu_ppo.tracking.params import params_of
from nlu_ppo.tracking.picture import NAME as PICTURE
from nlu_ppo.tracking.picture import draw_run

log = logging.getLogger(__name__)

POLL = 2.0  # seconds between looks at a run that another process is at work on
CACHE = ".cache"  # below outputs/: may be removed whenever no run is at work


@dataclass(frozen=True)
class Run:
    """One cell of a grid: (task, model, method, reward, lora, seed), and where its results go."""

    config: Config
    key: str
    folder: Path
    typed: frozenset[str] = frozenset()  # keys that the command line or the sweep gave a value to

    @property
    def trains(self) -> bool:
        return isinstance(self.config.method, TrainingConfig)

    @property
    def names(self) -> dict[str, str | None]:
        """The choices by group; `None` where the method doesn't use the group."""
        c = self.config
        return {
            "task": task_label(c.task),
            "model": c.model.name,
            "method": c.method.name,
            "reward": c.reward.name if isinstance(c.method, RewardedConfig) else None,
            "lora": c.lora.name if self.trains and c.model.kind == "decoder" else None,
        }


def build_run(config: Config, folder: Path, typed: Iterable[str] = ()) -> Run:
    """Checks what needs no torch and no data, and names the run.

    Raises:
        UserError: task, source, model path, reward or submission don't fit together.
    """
    check_run(config)
    return Run(config, run_key(config), folder, frozenset(typed))


# -- life cycle ----------------------------------------------------------------------------------------------


class Recorder:
    """Where methods log: the run folder first, then its mirror."""

    def __init__(self, folder: RunFolder, mirror: Mirror) -> None:
        self.folder = folder
        self._mirror = mirror
        self._fit_began = time.monotonic()
        self.fit_seconds_before = 0.0  # of earlier attempts, as far as their steps count
        self.best: dict[str, float] = {}
        self.repeated = -1  # steps up to it are on record, and done again

    def log(self, step: int, examples: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl. `examples` (training examples so far) is the axis all methods share."""
        if step <= self.repeated:
            return
        line = {"step": step, "examples": examples, "seconds": round(self.folder.elapsed(), 3), **values}
        self.folder.append_metrics(line)
        self._mirror.metrics()

    def begin_fit(self) -> None:
        self._fit_began = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of the record: steps that count keep the time that they took."""
        fit = self.fit_seconds_before + time.monotonic() - self._fit_began
        return {"best": self.best, "fit_seconds": fit}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best = state["best"]
        self.fit_seconds_before = state["fit_seconds"]


def execute(run: Run) -> dict[str, Any]:
    """Runs `run`, unless its folder says that it is finished. Returns what result.json holds.

    A failure is written to the folder and to MLflow before it goes on to the caller. Several processes (`ranks`) all
    call it.

    Raises:
        Interrupted: a signal has asked this process to end; if the run was training, there is a checkpoint.
    """
    ranks.connect(run.config.device)
    if ranks.world() > 1:
        ranks.on_main(check_processes, run.config)
    with stopping.signals_heeded():
        return _execute(run)


def _execute(run: Run) -> dict[str, Any]:
    folder = (RunFolder if ranks.is_main() else ObservedFolder)(run.folder, run.key)

    def differs(theirs: Mapping[str, Any]) -> str:
        return what_differs(theirs, jsonable(identity(run.config)))

    done = ranks.on_main(folder.open, run.config.overwrite, differs)
    try:
        if done is not None:
            print(f"already finished: {run.folder}")
            return done
        ranks.on_main(provide_analyses, run.config)
        start = _start_of(run)
        judges = _reward_models_of(run)
        names = {**run.names, "seed": str(run.config.seed), "study": run.config.study, "key": run.key}
        tags = {k: str(v) for k, v in names.items() if v is not None}
        with stopping.at_step_ends():  # what has begun is told how it ended
            record = {
                "host": socket.gethostname(),
                "processes": ranks.world(),
                "tags": tags,
                "params": params_of(run.config, run.names, run.typed),
                "identity": identity(run.config),
            }
            ranks.on_main(folder.begin, record, _written(run.config))
            tracking = dataclasses.replace(
                run.config.tracking, enabled=run.config.tracking.enabled and ranks.is_main()
            )
            mirror = Mirror(tracking, Path(run.config.outputs), folder)
        try:
            with stopping.at_once():
                from nlu_ppo import work  # torch, which nothing before this needs

                recorder = Recorder(folder, mirror)
                if isinstance(run.config.method, RewardModelConfig):
                    result = work.work_on_pairs(run, folder, recorder, start)
                else:
                    result = work.work(run, folder, recorder, start, judges)
            if ranks.is_main():
                with writing(folder.path / PICTURE):
                    draw_run(folder, " · ".join(tags[t] for t in ("task", "model", "method", "seed")))
            folder.finish(result)
        except BaseException as error:
            if folder.read_json("result.json").get("status") == "finished":  # a signal came a moment too late
                raise
            # Leaving a run that isn't finished is a failure of the run; only a person or the system interrupts.
            failed = isinstance(error, (Exception, SystemExit))
            failure = _failure(run, "failed" if failed else "interrupted", f"{type(error).__name__}: {error}")
            try:
                folder.finish(failure)
            except DiskError as full:  # a folder without result.json is a run that isn't finished
                log.warning("%s", full)
            mirror.end(failure)
            ranks.part()
            raise
        mirror.end(result)
        return result
    finally:
        folder.close()


def check_unchanged(run: Run) -> None:
    """Raises DataError if files that the run has just read are not those that its key was made of."""
    if run_key(run.config) != run.key:
        raise DataError(
            "a file that the run reads (data, model, pairs, reward) has changed while it was read, so that what is in "
            "memory may be half old and half new: start again when nobody writes to it"
        )


def finished_result(run: Run) -> dict[str, Any] | None:
    """What result.json holds if it says that the run is finished, else `None`."""
    try:
        result = RunFolder(run.folder, run.key).read_json("result.json")
    except RunFolderError:  # damaged; the run says so if it is started
        return None
    return result if (result.get("status"), result.get("key")) == ("finished", run.key) else None


def record_end(run: Run, status: str, error: str) -> None:
    """Says in folder and MLflow how a run ended that was killed before it could say so itself.

    Does nothing for a run that had not begun, that has said it, or that another process is at work on.
    """
    folder, config = RunFolder(run.folder, run.key), run.config
    try:
        folder.open()
        if not folder.read_json("run.json") or folder.read_json("result.json"):
            return
        failure = _failure(run, status, error)
        folder.finish(failure)
        Mirror(config.tracking, Path(config.outputs), folder).end(failure)
    except RunFolderError:
        return
    finally:
        folder.close()


def _failure(run: Run, status: str, error: str) -> dict[str, Any]:
    """What result.json says of a run that has no result."""
    return {**run.names, "status": status, "seed": run.config.seed, "error": error}


def _written(config: Config) -> str:
    """The configuration as config.yaml has it: without the password of a tracking server."""
    tree = dataclasses.asdict(config)
    if config.tracking.uri is not None:
        tree["tracking"]["uri"] = without_password(config.tracking.uri)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _start_of(run: Run) -> Path | None:
    """The weights that `run` starts from: those of its SFT run, which is trained now if there is none yet.

    Another process may be at work on it, for a run that starts from the same; that is waited for.
    """
    config = start_config(run.config)
    return None if config is None else _trained(config)


def _reward_models_of(run: Run) -> dict[str, Path]:
    """The weights of the reward models that the run's reward asks, each trained now if there is none yet."""
    if not isinstance(run.config.method, RewardedConfig):
        return {}
    return {
        name: _trained(reward_model_config(run.config, name)) for name in needed_models(run.config.reward)
    }


def _trained(config: Config) -> Path:
    """The weights of a run, whatever study has it; if there is no such run, it is executed now.

    Another process may be at work on it, for a run that needs the same; that is waited for.
    """
    config = dataclasses.replace(config, overwrite=False)
    outputs, key = Path(config.outputs), run_key(config)
    home = outputs / config.study / subfolder(config, key)
    waiting = False
    while True:
        found = ranks.on_main(_finished_weights, config)
        if found is not None:
            return found
        if not waiting:
            print(f"what this run starts from: {home}", flush=True)
        run = build_run(config, home)
        if ranks.on_main(finished_result, run) is not None:  # and its weights are gone
            run = build_run(dataclasses.replace(config, overwrite=True), home)
        try:
            execute(run)
        except FolderBusyError:
            waiting = True
            time.sleep(POLL)


def _finished_weights(config: Config) -> Path | None:
    """The weights of a run if any study has it, finished, and its weights are as they were when they were saved."""
    outputs, key = Path(config.outputs), run_key(config)
    home = outputs / config.study / subfolder(config, key)
    for path in (home, *sorted(outputs.glob(f"*/{subfolder(config, key)}"))):
        found = RunFolder(path, key)
        result = found.read_json("result.json")
        if (result.get("status"), result.get("key")) != ("finished", key):
            continue
        of_old = found.adapter.is_dir() and not (found.adapter / SEAL).exists()  # before weights were sealed
        wrong = None if of_old else damage(found.adapter)
        if wrong is None:
            return found.adapter
        log.warning("%s is not used: %s. Other weights of that run are looked for.", found.adapter, wrong)
    return None


def provide_analyses(config: Config, dry_run: bool = False) -> Path | None:
    """Has the analyses written that a run learns from, and the runs that it starts from or asks, if a model writes
    them. All at once and first of all, so that what they cost is told before anything is trained.

    Returns:
        the folder of what is written; `None` if the run needs none.

    Raises:
        UserError: as `rationales.writing.provide`.
    """
    if config.task.rationale not in WRITTEN:
        return None
    configs, start = [config], start_config(config)
    others = [] if start is None else [start]
    if isinstance(config.method, RewardedConfig):
        others += [reward_model_config(config, name) for name in needed_models(config.reward)]
    configs += [other for other in others if _finished_weights(other) is None]
    return provide(configs, load_tasks(config.task, Path(config.outputs) / CACHE), dry_run)
