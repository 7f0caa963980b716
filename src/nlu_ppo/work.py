"""The work of a run: load, fit, evaluate. What `run` calls once all is checked; needs torch."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nlu_ppo import ranks, reward_runs, stopping
from nlu_ppo.answering import announce, answer_submission
from nlu_ppo.choices import ROOT
from nlu_ppo.config import Config
from nlu_ppo.further import load_further
from nlu_ppo.inference import perplexity
from nlu_ppo.inference.vllm_decoder import VllmDecoder
from nlu_ppo.inference.ways import sharing
from nlu_ppo.methods.registry import METHODS
from nlu_ppo.methods.setting import Part, Setting
from nlu_ppo.models.classifier import load_classifier
from nlu_ppo.models.loading import choose_device, load_policy, peak_memory_bytes, save_adapter
from nlu_ppo.models.room import advised
from nlu_ppo.progress import quiet_libraries
from nlu_ppo.prompt_cache import PromptCache
from nlu_ppo.prompting import Prompter
from nlu_ppo.rationales.writing import rationales_of, with_analyses
from nlu_ppo.remote import RemoteModel
from nlu_ppo.results import evaluate_part, prediction_lines, summarize
from nlu_ppo.run import CACHE, Recorder, Run, check_unchanged
from nlu_ppo.serving import served
from nlu_ppo.tasks.rationales import Rationales
from nlu_ppo.tasks.record import CLOSE_ANALYSIS
from nlu_ppo.tasks.splits import TaskData, load_tasks
from nlu_ppo.tasks.submission_sets import load_submission
from nlu_ppo.tracking.datasets import describe_data
from nlu_ppo.tracking.folder import RunFolder

log = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "peft", "trl", "datasets", "mlflow", "hydra-core", "openai", "nlu-ppo")


@advised()
def work(
    run: Run, folder: RunFolder, recorder: Recorder, start: Path | None, judges: Mapping[str, Path]
) -> dict[str, Any]:
    """Load, fit, evaluate. Returns what result.json will hold."""
    quiet_libraries()
    config, clock = run.config, Stopwatch()
    scratch = Path(config.outputs) / CACHE
    # the further sets too, so that a missing file ends the run before anything is trained
    with ranks.main_first():  # which leaves caches to the others
        tasks, beside = load_tasks(config.task, scratch), load_further(config, scratch)
    tasks = with_analyses(config, tasks)
    skipped = _skipped_rows(tasks, beside)
    submission = (
        load_submission([data.task for data in tasks], config.task, scratch)
        if config.eval.submission
        else None
    )
    policy = _model(run, tasks, start)
    cache = PromptCache(scratch / "prompts")
    parts = tuple(_part(config, data, policy, cache, rationales_of(config, data.task)) for data in tasks)
    further = tuple(_part(config, data, policy, cache) for data in beside)
    if config.task.rationale:
        policy.closing = CLOSE_ANALYSIS
    setting, reading, shared = Setting(config, policy, parts, recorder), None, None
    if config.model.kind == "decoder":
        shared = sharing(policy, getattr(config.method, "share_prefix", True))
        log.info("prefixes that prompts share: %s", shared)
        setting = setting.with_room_for_answers()
        for part in further:
            part.leave_room_for_answers(policy, config.eval)
        # before training: a text may be missing or too short
        reading = perplexity.prepare(policy, config.eval)
    if judges:
        setting = dataclasses.replace(setting, scorers=reward_runs.scorers(config, parts, judges, start))
    folder.update_record(
        {
            "datasets": describe_data(config, folder.read_json("run.json")["identity"], tasks, beside),
            "serving": served(setting) if run.trains else None,
        }
    )
    ranks.on_main(check_unchanged, run)
    stopping.leave_if_requested()
    clock.lap("load")

    recorder.begin_fit()
    setting = METHODS[config.method.name](setting)
    if run.trains:
        ranks.on_main(save_adapter, policy, folder.adapter)
    clock.lap("fit", recorder.fit_seconds_before)
    remote = policy if isinstance(policy, RemoteModel) else None
    if remote:
        announce(remote, setting, further, submission)

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
        "shared_prefixes": shared,
        "seconds": clock.laps,
        "samples_per_second": trained / max(clock.laps["fit" if run.trains else "evaluate"], 1e-9),
        "peak_memory_bytes": None if remote else peak_memory_bytes(policy.device),
        "versions": versions(),
        "commit": commit(),
    }
    if remote:  # how fast it is depends on what is kept from before
        result |= {"samples_per_second": None, "endpoint": remote.account()}
    if read is not None:
        perplexity.report(result, read)
    return result


def _model(run: Run, tasks: Sequence[TaskData], start: Path | None) -> Any:
    """What answers: a policy, or what takes its place where the model is an encoder or behind a server."""
    config = run.config
    if config.model.kind == "encoder":
        return load_classifier(config.model, tasks[0].task, config.seed, choose_device(config.device))
    if config.model.kind == "endpoint":
        return RemoteModel(config)
    lora = config.lora if run.trains else None
    policy = load_policy(config.model, lora, config.seed, config.device, start)
    if config.model.decoder == "vllm":
        policy.decoder = VllmDecoder(policy, config.model, lora, config.seed)
    return policy


def _part(
    config: Config, data: TaskData, policy: Any, cache: PromptCache, rationales: Rationales | None = None
) -> Part:
    """A task with its prompts, which have room for an analysis where the run's answers have one."""
    room = config.task.rationale_tokens if config.task.rationale else 0
    if isinstance(policy, RemoteModel):
        return Part(data, policy.prompter(data.task, room), rationales)
    prompter = Prompter(data.task, policy.tokenizer, config.model.layout, cache=cache, analysis_tokens=room)
    return Part(data, prompter, rationales)


@advised()
def work_on_pairs(run: Run, folder: RunFolder, recorder: Recorder, start: Path | None) -> dict[str, Any]:
    """The same for a reward model: load, fit, and measure it by held-out pairs."""
    quiet_libraries()
    config, clock = run.config, Stopwatch()
    tasks = with_analyses(config, load_tasks(config.task, Path(config.outputs) / CACHE))
    setting, pairs, held_out = reward_runs.prepare(config, tasks, recorder, start)
    folder.update_record(
        {
            "datasets": describe_data(config, folder.read_json("run.json")["identity"], tasks, []),
            "serving": None,
        }
    )
    ranks.on_main(check_unchanged, run)
    stopping.leave_if_requested()
    clock.lap("load")
    recorder.begin_fit()
    setting = reward_runs.fit(setting, pairs, held_out)
    ranks.on_main(reward_runs.save, setting, folder.adapter)
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
