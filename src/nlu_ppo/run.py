"""A run: what it is (its key), where it lives (its folder), and its life from first line to result.json."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import platform
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from nlu_ppo import stopping
from nlu_ppo.config import (
    Config,
    EvalConfig,
    PPOConfig,
    RewardConfig,
    RewardedConfig,
    RewardModelConfig,
    SFTConfig,
    TaskConfig,
    TrainingConfig,
    ZeroShotConfig,
    key_fields,
)
from nlu_ppo.encoder_checks import check_encoder
from nlu_ppo.errors import ConfigError, DiskError, FolderBusyError, RunFolderError
from nlu_ppo.further import further_identity, further_tasks, load_further, record_identity
from nlu_ppo.models.locate import adapter_fingerprint, fingerprint
from nlu_ppo.preference.pairs import check_pairs, from_file
from nlu_ppo.rationales.writers import writer_identity
from nlu_ppo.rationales.writing import check_writer, provide, rationales_of, with_analyses
from nlu_ppo.rewards import get_reward, needed_models
from nlu_ppo.storage import writing
from nlu_ppo.tasks import Task, tasks_of
from nlu_ppo.tasks.published import check_published
from nlu_ppo.tasks.rationales import MODEL, WRITTEN, check_rationales
from nlu_ppo.tasks.splits import check_source, data_fingerprint, load_tasks
from nlu_ppo.tasks.submission_sets import check_submission, submission_fingerprint
from nlu_ppo.tasks.texts import text_identity
from nlu_ppo.tracking.credentials import without_password
from nlu_ppo.tracking.datasets import describe_data
from nlu_ppo.tracking.folder import RunFolder
from nlu_ppo.tracking.mirror import Mirror
from nlu_ppo.tracking.params import params_of
from nlu_ppo.tracking.picture import NAME as PICTURE
from nlu_ppo.tracking.picture import draw_run

if TYPE_CHECKING:
    from nlu_ppo.tasks.splits import TaskData

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
POLL = 2.0  # seconds between looks at a run that another process is at work on
REWARD_MODELS = "reward_models"  # the study of those that a run has trained because its reward asks them
CACHE = ".cache"  # below outputs/: may be removed whenever no run is at work
LIBRARIES = ("torch", "transformers", "peft", "trl", "datasets", "mlflow", "hydra-core", "nlu-ppo")


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


def identity(config: Config) -> dict[str, Any]:
    """All that changes a run's result, and nothing else: what `key` hashes.

    Settings of groups that the method doesn't use stay out, so that a zero-shot run is the same run under any
    reward and any adapter. Files count by content, not by the folder they lie in.
    """
    method = config.method
    trains, uses_train = isinstance(method, TrainingConfig), not isinstance(method, ZeroShotConfig)
    tasks = tasks_of(config.task)
    parts: dict[str, Any] = {
        "task": _task_identity(config.task, tasks, trains and not isinstance(method, RewardModelConfig)),
        "data": {task.name: data_fingerprint(task, config.task) for task in tasks},
        "model": key_fields(config.model),
        "weights": fingerprint(config.model.path, config.model.revision),
        "adapter": adapter_fingerprint(config.model.adapter),
        "method": key_fields(method),
        "seed": config.seed,
    }
    for name in ("path", "revision"):  # the weights stand for them
        parts["model"].pop(name)
    encoder = config.model.kind == "encoder"
    parts["model"].pop("layout" if encoder else "kind")
    if not uses_train:
        for name in ("limit.train", "selection"):  # demonstrations, too, come from what selection leaves
            parts["task"].pop(name)
    further = further_tasks(config)
    parts["eval"] = _eval_identity(config.eval, [*tasks, *(task for task, _ in further)])
    if further:
        parts["also"] = further_identity(further)
    if config.eval.submission:
        parts["submission"] = submission_fingerprint(tasks, config.task)
    if encoder:  # it has no prompt, and only one score
        parts["method"].pop("loss_on", None)
        parts["eval"] = {k: v for k, v in parts["eval"].items() if k not in ("likelihood", "max_new_tokens")}
    elif trains:
        parts["lora"] = key_fields(config.lora) if config.lora.enabled else {"enabled": False}
    if config.task.rationale is not None:
        written = config.task.rationale in WRITTEN
        parts["rationale"] = writer_identity(config) if written else _file_identity(config.task.rationale)
    if isinstance(method, RewardModelConfig):
        parts["pairs"] = [_file_identity(method.pairs), _file_identity(method.held_out_pairs)]
        parts["eval"] = {"bootstrap_samples": config.eval.bootstrap_samples}  # it answers nothing
        if from_file(method.pairs):
            parts["method"].pop("wrong_labels")
        else:
            parts["method"].pop("held_out")
    if isinstance(method, RewardedConfig):
        parts["reward"] = _reward_identity(config.reward)
        for name in needed_models(config.reward):
            if getattr(config.reward, name) is not None:
                parts["reward"][name] = run_key(reward_model_config(config, name))
        parts["method"] = {k: v for k, v in parts["method"].items() if not k.startswith("start.")}
        start = start_config(config)
        if start is not None:
            parts["start"] = run_key(start)
    if isinstance(method, PPOConfig) and method.kl_controller == "fixed":
        for name in ("kl_target", "kl_horizon"):
            parts["method"].pop(name)
    return parts


def reward_model_config(config: Config, name: str) -> Config:
    """The run of the reward model that stands under `reward.<name>`: same task, adapter settings and seed.

    Its study is one of its own, for a model is shared by the studies that need it, and no row of their tables.
    """
    method = getattr(config.reward, name)
    return dataclasses.replace(
        config, method=method, model=config.reward.model or config.model, reward=RewardConfig("none"),
        eval=EvalConfig(), study=REWARD_MODELS,
    )  # fmt: skip


def _file_identity(value: str | None) -> str | None:
    """What stands for a file: its contents; for a word, the word itself."""
    if value is None or not Path(value).is_file():
        return value
    return f"sha256:{hashlib.sha256(Path(value).read_bytes()).hexdigest()}"


def start_config(config: Config) -> Config | None:
    """The SFT run that a run of `method.init=sft` starts from; `None` for other runs."""
    start = getattr(config.method, "start", None)
    return None if start is None else dataclasses.replace(config, method=start)


def _task_identity(config: TaskConfig, tasks: Sequence[Task], mixes: bool) -> dict[str, Any]:
    """The task's settings. Those of a group count only for a group, and mixing only for training on answers to one."""
    parts = key_fields(config) | record_identity(config) | {"members": [task.name for task in tasks]}
    if len(tasks) == 1 or not mixes:
        parts.pop("mixing")
    if parts.get("mixing") != "temperature":
        parts.pop("mixing_temperature")
    return parts


def _eval_identity(config: EvalConfig, tasks: Sequence[Task]) -> dict[str, Any]:
    """The settings of the evaluation that have an effect; of a text its name and contents.

    Raises:
        ConfigError: the text isn't there.
    """
    parts = key_fields(config)
    if config.decoding == "greedy":
        parts.pop("temperature")
    if not any(task.lists_answers for task in tasks):
        parts.pop("likelihood")
    if not config.submission:  # a run without one keeps the key that it had before there were any
        parts.pop("submission")
    if config.perplexity is None:
        parts.pop("perplexity_window")
        parts.pop("perplexity_stride")
    else:
        parts["perplexity"] = text_identity(config.perplexity)
    return parts


def _reward_identity(config: RewardConfig) -> dict[str, Any]:
    """The reward's settings; of a user's own function the name and the contents of its file."""
    models = (
        "label_model.",
        "rationale_model.",
        "model.",
    )  # a model that is asked counts by its own run's key
    parts = {name: value for name, value in key_fields(config).items() if not name.startswith(models)}
    if ".py:" in config.name:
        path, _, function = config.name.rpartition(":")
        file = Path(path)
        contents = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
        parts["name"] = {"function": function, "contents": contents}
    return parts


def run_key(config: Config) -> str:
    """64 hexadecimal digits that stand for the run's identity."""
    text = json.dumps(identity(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def task_label(config: TaskConfig) -> str:
    """The task's name in folders, tables and MLflow; a part of a group is never called by the group's name."""
    return config.name if config.members is None else "+".join(config.members)


def subfolder(config: Config, key: str) -> str:
    """Where a run lies below its study."""
    return f"{task_label(config.task)}/{config.model.name}/{config.method.name}/{config.seed}-{key[:8]}"


def build_run(config: Config, folder: Path, typed: Iterable[str] = ()) -> Run:
    """Checks what needs no torch and no data, and names the run.

    Raises:
        UserError: task, source, model path, reward or submission don't fit together.
    """
    for task in tasks_of(config.task):
        check_source(task, config.task)
        if config.eval.submission:
            check_submission(task)
        if not isinstance(config.method, ZeroShotConfig) and not task.trainable:
            raise ConfigError(_no_training_split(task))
        if getattr(config.method, "order", None) == "confidence" and not task.lists_answers:
            raise ConfigError(
                f"method.order=confidence compares the likelihoods of legal answers, and those of task={task.name} "
                f"can't be listed: take method.order=short_first"
            )
        if isinstance(config.method, RewardedConfig):
            get_reward(config.reward, task)
            if config.reward.model is not None and not needed_models(config.reward):
                raise ConfigError(
                    f"reward.model: reward={config.reward.name} asks no reward model that could use it"
                )
            for name in needed_models(config.reward):
                check_pairs(getattr(config.reward, name), task, config.task.rationale, f"reward.{name}")
        if isinstance(config.method, RewardModelConfig):
            check_pairs(config.method, task, config.task.rationale)
            _check_no_answers(config.eval)
        if config.task.rationale is not None:
            _check_rationale(config, task)
        if isinstance(config.method, SFTConfig):
            check_answer_words(config.method, task)
    if config.model.kind == "encoder" and not isinstance(config.method, RewardModelConfig):
        check_encoder(config)
    if config.eval.scoring == "as_published":
        for task in (*tasks_of(config.task), *(task for task, _ in further_tasks(config))):
            check_published(task)
    further_tasks(config)
    return Run(config, run_key(config), folder, frozenset(typed))


def _check_no_answers(config: EvalConfig) -> None:
    """Raises ConfigError where a reward model is asked for answers, which it doesn't write."""
    for name in ("also", "submission", "perplexity"):
        if getattr(config, name):
            raise ConfigError(
                f"method=reward_model writes no answers, so that eval.{name} makes no sense with it"
            )


def _check_rationale(config: Config, task: Task) -> None:
    """Raises ConfigError where answers with an analysis don't fit task, method or scoring."""
    assert config.task.rationale is not None
    check_rationales(task, config.task.rationale)
    check_writer(config)
    if config.model.kind == "encoder" and not isinstance(config.method, RewardModelConfig):
        raise ConfigError(
            f"task.rationale needs a model that writes, and model={config.model.name} is an encoder"
        )
    if config.task.rationale == MODEL and (config.model.kind == "encoder" or config.reward.model is not None):
        raise ConfigError(
            "task.rationale=model asks the run's own base model, and here the reward model has another one: have the "
            "analyses written first (python -m nlu_ppo.rationales), and name the file with task.rationale=FILE"
        )
    if config.method.name == "few_shot":
        raise ConfigError("task.rationale: the demonstrations of method=few_shot have no analysis to show")
    if isinstance(config.method, SFTConfig) and config.method.answer_words:
        raise ConfigError(
            "task.rationale and method.answer_words don't go together: no analysis argues for such words"
        )


def check_answer_words(method: SFTConfig, task: Task) -> None:
    """Raises ConfigError where `method.answer_words` names what is no label of the task."""
    strangers = [label for label in method.answer_words if label not in task.labels]
    if strangers:
        there = f"its labels are {', '.join(task.labels)}" if task.labels else "its answers have no labels"
        raise ConfigError(f"method.answer_words: {strangers[0]} is no label of {task.name}: {there}")


def _no_training_split(task: Task) -> str:
    return (
        f"task={task.name} has no training split: train on {task.train_on or 'another task'} "
        f"(task={task.train_on or 'OTHER'} eval.also=[{task.name}]), or evaluate it with method=zero_shot, of "
        f"a trained model with model.adapter=<folder of its run>/adapter"
    )


# -- life cycle ----------------------------------------------------------------------------------------------


class Recorder:
    """Where methods log: the run folder first, then its mirror."""

    def __init__(self, folder: RunFolder, mirror: Mirror) -> None:
        self.folder = folder
        self._mirror = mirror
        self._began = folder.started
        self._fit_began = time.time()
        self.fit_seconds_before = 0.0  # of earlier attempts, as far as their steps count
        self.best: dict[str, float] = {}

    def log(self, step: int, examples: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl. `examples` (training examples so far) is the axis all methods share."""
        line = {"step": step, "examples": examples, "seconds": round(time.time() - self._began, 3), **values}
        self.folder.append_metrics(line)
        self._mirror.metrics()

    def begin_fit(self) -> None:
        self._fit_began = time.time()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of the record: steps that count keep the time that they took."""
        fit = self.fit_seconds_before + time.time() - self._fit_began
        return {"best": self.best, "fit_seconds": fit}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best = state["best"]
        self.fit_seconds_before = state["fit_seconds"]


def execute(run: Run) -> dict[str, Any]:
    """Runs `run`, unless its folder says that it is finished. Returns what result.json holds.

    A failure is written to the folder and to MLflow before it goes on to the caller.

    Raises:
        Interrupted: a signal has asked this process to end; if the run was training, there is a checkpoint.
    """
    with stopping.signals_heeded():
        return _execute(run)


def _execute(run: Run) -> dict[str, Any]:
    folder = RunFolder(run.folder, run.key)
    done = folder.open(run.config.overwrite)
    try:
        if done is not None:
            print(f"already finished: {run.folder}")
            return done
        provide_analyses(run.config)
        start = _start_of(run)
        judges = _reward_models_of(run)
        names = {**run.names, "seed": str(run.config.seed), "study": run.config.study, "key": run.key}
        tags = {k: str(v) for k, v in names.items() if v is not None}
        with stopping.at_step_ends():  # what has begun is told how it ended
            folder.begin(
                {
                    "host": socket.gethostname(),
                    "tags": tags,
                    "params": params_of(run.config, run.names, run.typed),
                    "identity": identity(run.config),
                },
                _written(run.config),
            )
            mirror = Mirror(run.config.tracking, Path(run.config.outputs), folder)
        try:
            with stopping.at_once():
                recorder = Recorder(folder, mirror)
                if isinstance(run.config.method, RewardModelConfig):
                    result = _work_on_pairs(run, folder, recorder)
                else:
                    result = _work(run, folder, recorder, start, judges)
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
            raise
        mirror.end(result)
        return result
    finally:
        folder.close()


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
        found = _finished_weights(config)
        if found is not None:
            return found
        try:
            if not waiting:
                print(f"what this run starts from: {home}", flush=True)
            execute(build_run(config, home))
        except FolderBusyError:
            waiting = True
            time.sleep(POLL)


def _finished_weights(config: Config) -> Path | None:
    """The weights of a run if any study has it, finished."""
    outputs, key = Path(config.outputs), run_key(config)
    home = outputs / config.study / subfolder(config, key)
    for path in (home, *sorted(outputs.glob(f"*/{subfolder(config, key)}"))):
        found = RunFolder(path, key)
        result = found.read_json("result.json")
        if (result.get("status"), result.get("key")) == ("finished", key) and found.adapter.is_dir():
            return found.adapter
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


def _work(
    run: Run, folder: RunFolder, recorder: Recorder, start: Path | None, judges: Mapping[str, Path]
) -> dict[str, Any]:
    """Load, fit, evaluate: the part that needs torch."""
    from nlu_ppo.answering import answer_submission
    from nlu_ppo.inference import perplexity
    from nlu_ppo.methods import METHODS, Part, Setting
    from nlu_ppo.models.classifier import load_classifier
    from nlu_ppo.models.loading import choose_device, load_policy, peak_memory_bytes, save_adapter
    from nlu_ppo.progress import quiet_libraries
    from nlu_ppo.prompt_cache import PromptCache
    from nlu_ppo.prompting import Prompter
    from nlu_ppo.results import evaluate_part, prediction_lines, summarize
    from nlu_ppo.serving import served
    from nlu_ppo.tasks.record import CLOSE_ANALYSIS
    from nlu_ppo.tasks.submission_sets import load_submission

    quiet_libraries()
    config, clock = run.config, Stopwatch()
    scratch = Path(config.outputs) / CACHE
    # the further sets too, so that a missing file ends the run before anything is trained
    tasks, beside = load_tasks(config.task, scratch), load_further(config, scratch)
    tasks = with_analyses(config, tasks)
    skipped = _skipped_rows(tasks, beside)
    submission = (
        load_submission([data.task for data in tasks], config.task, scratch)
        if config.eval.submission
        else None
    )
    policy: Any
    if config.model.kind == "encoder":
        policy = load_classifier(config.model, tasks[0].task, config.seed, choose_device(config.device))
    else:
        lora = config.lora if run.trains else None
        policy = load_policy(config.model, lora, config.seed, config.device, start)
    cache = PromptCache(scratch / "prompts")
    parts, further = (
        tuple(
            Part(
                data,
                Prompter(
                    data.task,
                    policy.tokenizer,
                    config.model.layout,
                    cache=cache,
                    analysis_tokens=config.task.rationale_tokens if config.task.rationale else 0,
                ),
                rationales_of(config, data.task) if own else None,
            )
            for data in group
        )
        for group, own in ((tasks, True), (beside, False))
    )
    if config.task.rationale:
        policy.closing = CLOSE_ANALYSIS
    setting, reading = Setting(config, policy, parts, recorder), None
    if config.model.kind == "decoder":
        setting = setting.with_room_for_answers()
        for part in further:
            part.leave_room_for_answers(policy, config.eval)
        # before training: a text may be missing or too short
        reading = perplexity.prepare(policy, config.eval)
    if judges:
        from nlu_ppo.reward_runs import scorers

        setting = dataclasses.replace(setting, scorers=scorers(config, parts, judges))
    folder.update_record(
        {
            "datasets": describe_data(config, folder.read_json("run.json")["identity"], tasks, beside),
            "serving": served(setting) if run.trains else None,
        }
    )
    stopping.leave_if_requested()
    clock.lap("load")

    recorder.begin_fit()
    setting = METHODS[config.method.name](setting)
    if run.trains:
        save_adapter(policy, folder.adapter)
    clock.lap("fit", recorder.fit_seconds_before)

    outcomes = [outcome for part in setting.parts for outcome in evaluate_part(part, setting)]
    others = [outcome for part in further for outcome in evaluate_part(part, setting)]
    clock.lap("evaluate")
    folder.write_predictions(prediction_lines(outcomes, others))
    read = None
    if reading is not None:
        read = perplexity.measure(
            policy, reading, batch_size=config.eval.batch_size, progress=f"perplexity, {reading.name}"
        )
        clock.lap("perplexity")
    summary = summarize(outcomes, others)
    if submission:
        summary["metrics"] |= answer_submission(setting, submission, folder.write_submission)
        summary["submission_missing"] = submission.missing
        clock.lap("submission")
    trained = setting.examples_seen or summary["n"]
    result = {
        "status": "finished",
        **run.names,
        "seed": config.seed,
        **summary,
        "skipped_rows": skipped,
        "best": recorder.best,
        "seconds": clock.laps,
        "samples_per_second": trained / max(clock.laps["fit" if run.trains else "evaluate"], 1e-9),
        "peak_memory_bytes": peak_memory_bytes(policy.device),
        "versions": versions(),
        "commit": commit(),
    }
    if read is not None:
        perplexity.report(result, read)
    return result


def _work_on_pairs(run: Run, folder: RunFolder, recorder: Recorder) -> dict[str, Any]:
    """The same for a reward model: load, fit, and measure it by held-out pairs."""
    from nlu_ppo import reward_runs
    from nlu_ppo.models.loading import peak_memory_bytes
    from nlu_ppo.progress import quiet_libraries

    quiet_libraries()
    config, clock = run.config, Stopwatch()
    tasks = with_analyses(config, load_tasks(config.task, Path(config.outputs) / CACHE))
    setting, pairs, held_out = reward_runs.prepare(config, tasks, recorder)
    folder.update_record(
        {
            "datasets": describe_data(config, folder.read_json("run.json")["identity"], tasks, []),
            "serving": None,
        }
    )
    stopping.leave_if_requested()
    clock.lap("load")
    recorder.begin_fit()
    setting = reward_runs.fit(setting, pairs, held_out)
    reward_runs.save(setting, folder.adapter)
    clock.lap("fit", recorder.fit_seconds_before)
    summary, predictions = reward_runs.measure(setting, held_out)
    folder.write_predictions(predictions)
    clock.lap("evaluate")
    return {
        "status": "finished",
        **run.names,
        "seed": config.seed,
        **summary,
        "train_pairs": len(pairs),
        "skipped_rows": _skipped_rows(tasks, []),
        "best": recorder.best,
        "seconds": clock.laps,
        "samples_per_second": setting.examples_seen / max(clock.laps["fit"], 1e-9),
        "peak_memory_bytes": peak_memory_bytes(setting.policy.device),
        "versions": versions(),
        "commit": commit(),
    }


def _skipped_rows(tasks: Sequence[TaskData], beside: Sequence[TaskData]) -> dict[str, int]:
    """How many rows of each split were left out; of several tasks and further ones, by `<task>/<split>`.

    They are said on the console too: a score on fewer examples is another score.
    """
    counts = {}
    for data in (*tasks, *beside):
        for split, rows in data.bad_rows.items():
            alone = len(tasks) == 1 and data is tasks[0]
            counts[split if alone else f"{data.task.name}/{split}"] = len(rows)
            if rows:
                print(f"task {data.task.name}, split {split}: skipped {len(rows)} bad rows; first: {rows[0]}")
    return counts


class Stopwatch:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str, before: float = 0.0) -> None:
        """Ends a lap; `before`: seconds of it that another process has run."""
        now = time.perf_counter()
        self.laps[name], self._last = round(before + now - self._last, 3), now


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The checkout's commit, with `-dirty` if it differs from it; `None` outside a checkout."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip() or None
