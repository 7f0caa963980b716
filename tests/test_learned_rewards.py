"""Rewards that reward models give, and the runs behind them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from composing import config_of, run_of
from models import random_policy
from safetensors.torch import load_file

from nlu_ppo.config import Config, RewardConfig
from nlu_ppo.errors import ConfigError
from nlu_ppo.identity import identity, reward_model_config, run_key, start_config
from nlu_ppo.inference.decoder import generate
from nlu_ppo.methods.judging import judge_by
from nlu_ppo.methods.setting import Part, Setting, TrainingStream
from nlu_ppo.methods.sft import tokenized
from nlu_ppo.preference.loading import load_reward_model
from nlu_ppo.prompting import Prompter
from nlu_ppo.rewards import get_reward, needed_models
from nlu_ppo.run import build_run, execute
from nlu_ppo.tasks import get_task
from nlu_ppo.tasks.rationales import load_rationales
from nlu_ppo.tasks.record import Example
from nlu_ppo.tasks.splits import TaskData
from nlu_ppo.tasks.toy import generate as toy_examples

SST2 = get_task("sst2")
EXAMPLE = Example("train-0", {"sentence": "fine"}, 1, task="sst2")
GOOD = "Positive</Judgement>"


def paid(config: RewardConfig, answer: int | None = 1, **scores: float) -> float:
    return get_reward(config, SST2)(GOOD, answer, EXAMPLE, scores)


def composed(*overrides: str) -> RewardConfig:
    return config_of("method=ppo", *overrides).reward


# -- formulas ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "wanted"), [(5.0, 3.9 - 1.5), (3.9, 3.9 - 1.5), (1.0, 1.0 - 1.5), (-7.0, -8.5)]
)
def test_mixed_is_paper_bs_formula(label: float, wanted: float):
    assert paid(composed("reward=mixed"), label_model=label, rationale_model=-1.5) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("choice", "threshold"),
    [("mixed", 3.9), ("mixed_llama2_13b", 6.2), ("mixed_baichuan2", 3.1), ("mixed_chatglm3", 3.7),
     ("mixed_mistral", 4.4), ("mixed_bloom_3b", 1.0), ("mixed_bloom_7b", 4.4)],
)  # fmt: skip
def test_thresholds_are_paper_bs(choice: str, threshold: float):
    config = composed(f"reward={choice}")
    assert paid(config, label_model=100.0, rationale_model=0.25) == pytest.approx(threshold + 0.25)


def test_models_judge_and_what_is_no_answer_earns_little():
    labels, analyses = composed("reward=label_sensitive"), composed("reward=preference")
    assert paid(labels, label_model=1.25) == 1.25
    assert paid(analyses, rationale_model=-0.5) == -0.5
    assert paid(labels, None, label_model=1.25) == -3.0
    assert paid(labels, None, label_model=-4.0) == -4.0  # never better than the model's own word


def test_a_composite_is_the_weighted_sum():
    config = composed("reward=composite", "reward.parts={label_agreement: 2, label_sensitive: 0.5}")
    assert paid(config, label_model=3.0) == pytest.approx(2 * 1 + 0.5 * 3.0)
    assert paid(config, 0, label_model=3.0) == pytest.approx(2 * -1 + 0.5 * 3.0)
    assert needed_models(config) == ("label_model",)
    assert needed_models(composed("reward=composite", "reward.parts.label_sensitive=0")) == ()


def test_noisy_is_agreement_with_wrong_labels_among_the_right_ones():
    config = composed("reward=noisy")
    assert (config.name, config.noise, config.correct) == ("label_agreement", 0.1, 1.0)


# -- what makes no sense -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=stsb", "reward=label_sensitive"], "answers of stsb are no labels"),
        (["task=squad", "reward=label_sensitive"], "answers of squad are no labels"),
        (["reward=preference"], r"reward\.rationale_model\.pairs=rationales .* set task\.rationale"),
        (["reward=mixed"], "set task.rationale"),
        (["reward=label_sensitive", "reward.noise=0.2"], "never looks at the gold label"),
        (["reward=label_agreement", "reward.name=label_sensitive"], r"reward\.label_model has no settings"),
        (["reward=mixed", "reward.threshold=null", "task.rationale=generated"], r"needs reward\.threshold"),
        (["reward=label_agreement", "reward.name=composite"], r"needs reward\.parts"),
        (["reward=composite", "+reward.parts.graded=1"], "task whose answers are numbers"),
        (["reward=composite", "+reward.parts.composite=1"], "part of itself"),
        (["reward=composite", "+reward.parts.nonsense=1"], "nonsense is no reward"),
        (["reward=label_sensitive", "reward.label_model.pairs=no.json"], "no.json: there is no such file"),
        (["task=rte", "task.rationale=generated"], "for the toy tasks"),
        (["task.rationale=no.json"], "there is no such file"),
        (["method=few_shot", "task.rationale=generated"], "few_shot"),
        (["method=reward_model", "eval.submission=true", "task=rte"], "writes no answers"),
    ],
)
def test_combinations_without_sense_are_told_before_anything_runs(overrides: list[str], message: str):
    method = () if any(o.startswith("method=") for o in overrides) else ("method=ppo",)
    with pytest.raises(ConfigError, match=message):
        build_run(config_of(*method, *overrides), Path("unused"))


# -- keys ----------------------------------------------------------------------------------------------------


def key(*overrides: str) -> str:
    return run_key(config_of("method=ppo", *overrides))


def test_a_run_goes_by_the_key_of_its_reward_model():
    plain = config_of("method=ppo", "reward=label_sensitive")
    own = run_key(reward_model_config(plain, "label_model"))
    assert identity(plain)["reward"]["label_model"] == own
    assert not any(name.startswith("label_model.") for name in identity(plain)["reward"])
    other = config_of("method=ppo", "reward=label_sensitive", "reward.label_model.epochs=3")
    assert run_key(reward_model_config(other, "label_model")) != own
    assert run_key(other) != run_key(plain)
    unseen = key("reward=label_sensitive", "reward.label_model.checkpoint_every=7")
    assert unseen == run_key(plain)
    assert key("reward=composite", "reward.rationale_model.epochs=3") == key("reward=composite")  # not asked


def test_a_reward_model_may_start_where_the_policy_does():
    """Paper B's pipeline: SFT, merged; the reward model's own adapter; PPO from the same SFT."""
    chosen = ("method=ppo", "method.init=sft", "reward=label_sensitive", "reward.label_model.init=sft")
    policy = config_of(*chosen, "method.start.max_steps=7", "eval.bootstrap_samples=50")
    judge = reward_model_config(policy, "label_model")
    assert run_key(start_config(judge)) == run_key(start_config(policy))  # type: ignore[arg-type]
    assert run_key(judge) != run_key(reward_model_config(config_of(*chosen), "label_model"))
    for missing in (chosen[:1] + chosen[2:], (*chosen, "+model@reward.model=tiny")):
        with pytest.raises(ConfigError, match=r"reward\.label_model\.init=sft .* needs method\.init=sft"):
            config_of(*missing)


def test_policy_settings_dont_change_the_reward_model():
    def model(*overrides: str) -> str:
        return run_key(
            reward_model_config(config_of("method=ppo", "reward=mixed", *overrides), "label_model")
        )

    assert (
        model("method.kl_coef=0.7")
        == model("method.learning_rate=1", "eval.likelihood=false", "study=x")
        == model()
    )
    assert model("seed=1") != model()
    assert model("lora=none") != model()


def test_files_of_pairs_count_by_their_contents(tmp_path: Path):
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text("[1]")
    second.write_text("[1]")
    keys = [run_key(config_of("method=reward_model", f"method.pairs={path}")) for path in (first, second)]
    assert keys[0] == keys[1]
    second.write_text("[2]")
    assert run_key(config_of("method=reward_model", f"method.pairs={second}")) != keys[0]


# -- judging a batch -----------------------------------------------------------------------------------------


def test_a_batch_goes_to_the_model_task_by_task():
    policy, asked = random_policy("llama"), []
    parts = tuple(
        Part(TaskData(get_task(name), [], [], {}, []), Prompter(get_task(name), policy.tokenizer))
        for name in ("sst2", "rte")
    )

    def scorer(task, examples, completions):
        asked.append((task, len(examples)))
        return [float(len(c)) for c in completions]

    config = config_of("method=ppo", "reward=label_sensitive", "task=sst2")
    setting = Setting(config, policy, parts, None, scorers={"label_model": scorer})  # type: ignore[arg-type]
    other = Example("train-1", {"premise": "p", "hypothesis": "h"}, 0, task="rte")
    judged = judge_by(setting).many(
        [GOOD, "Yes</Judgement>", "Negative</Judgement>"], [EXAMPLE, other, EXAMPLE]
    )
    assert [reward for reward, _, _ in judged] == [20.0, 15.0, 20.0]
    assert [right for _, _, right in judged] == [True, True, False]
    assert asked == [("sst2", 2), ("rte", 1)]


# -- answers with an analysis --------------------------------------------------------------------------------


def test_sft_learns_the_analysis_and_decoding_goes_on_to_its_end():
    policy, task = random_policy("llama"), get_task("toy_sentiment")
    examples = toy_examples("toy_sentiment", "train")[:4]
    prompter = Prompter(task, policy.tokenizer, analysis_tokens=40)
    part = Part(TaskData(task, examples, [], {}, []), prompter, load_rationales(task, "generated"))
    setting = Setting(config_of("method=sft"), policy, (part,), None)  # type: ignore[arg-type]
    row = tokenized(setting, TrainingStream(setting), "completion")[0]
    text = policy.tokenizer.decode([i for i in row["labels"] if i >= 0], skip_special_tokens=True)
    assert text.split("</Judgement>")[0] in task.verbalizers
    assert text.split("</Judgement>")[1].startswith("<Analysis>")
    assert text.endswith("</Analysis>")
    assert "<Analysis>why</Analysis>" in prompter.instruction
    assert prompter.closing == "</Analysis>"

    wanted = iter(
        policy.tokenizer.encode("Yes</Judgement><Analysis>no</Analysis> and more", add_special_tokens=False)
    )
    vocabulary = policy.base.config.vocab_size
    policy.reads_trees = False  # it isn't tried whether it can, by what a model says that is none
    policy.logits = lambda _: torch.nn.functional.one_hot(torch.tensor([next(wanted)]), vocabulary).float()  # type: ignore
    policy.closing = "</Analysis>"
    (found,) = generate(policy, [[1, 2, 3]], 100)
    assert policy.tokenizer.decode(found) == "Yes</Judgement><Analysis>no</Analysis>"


# -- whole runs ----------------------------------------------------------------------------------------------

SMALL = ("task.limit.train=24", "task.limit.eval=8", "task.selection=0", "eval.bootstrap_samples=10",
         "eval.likelihood=false", "tracking=none", "model=local", "model.learning_rate.reward_model=1e-2",
         "model.learning_rate.ppo=1e-2", "method.max_steps=2")  # fmt: skip


def adapter(config: Config, folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_a_run_trains_the_model_that_its_reward_asks_or_finds_it(tmp_path: Path, model_dir: Path):
    chosen = (*SMALL, f"model.path={model_dir}", "reward=label_sensitive", "reward.label_model.batch_size=8")
    first = run_of(tmp_path / "one", "method=ppo", *chosen)
    result = execute(first)
    assert result["reward"] == "label_sensitive"
    (found,) = (tmp_path / "reward_models").glob("toy_sentiment/*/reward_model/*")
    model = json.loads((found / "result.json").read_text())
    assert model["key"] == run_key(reward_model_config(first.config, "label_model"))
    assert (model["status"], model["n"], model["majority"]) == ("finished", 8, 50.0)
    assert model["score"] == pytest.approx(100 * model["metrics"]["pair_accuracy"])
    assert {"pair_log_loss", "calibration_error"} <= model["metrics"].keys()
    logged = [json.loads(line) for line in (found / "metrics.jsonl").read_text().splitlines()]
    assert any("select/pair_accuracy" in line and "select/calibration_error" in line for line in logged)
    assert any("train/pair_accuracy" in line for line in logged)

    # the saved model says of the held-out pairs what the run has recorded
    lines = [json.loads(line) for line in (found / "predictions.jsonl").read_text().splitlines()]
    loaded = load_reward_model(first.config.model, first.config.lora, found / "adapter")
    task, examples = get_task("toy_sentiment"), {e.id: e for e in toy_examples("toy_sentiment", "validation")}
    prompter = Prompter(task, loaded.tokenizer)
    told = loaded.judge(
        prompter, [examples[line["id"]] for line in lines], [line["chosen"] for line in lines]
    )
    assert told == pytest.approx([line["reward_chosen"] for line in lines], abs=1e-4)

    # a second run finds it, whatever its study, and ends with the same weights as if it had trained it
    written = (found / "result.json").stat().st_mtime_ns
    second = run_of(tmp_path / "two", "method=ppo", *chosen, "study=another")
    execute(second)
    assert (found / "result.json").stat().st_mtime_ns == written
    before, after = adapter(first.config, first.folder), adapter(second.config, second.folder)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_paper_bs_pipeline_is_one_command(tmp_path: Path, model_dir: Path):
    """SFT with analyses, a reward model from it, PPO from it: each a run, and the first one run only once."""
    run = run_of(
        tmp_path / "one", "method=ppo", "method.init=sft", "method.start.max_steps=1", "task.rationale=generated",
        "reward=label_sensitive", "reward.label_model.init=sft", "reward.label_model.max_steps=1",
        "reward.label_model.batch_size=4", "method.start.batch_size=4", "model.learning_rate.sft=1e-2",
        "task.rationale_tokens=24", *SMALL[:-1], "method.max_steps=1", f"model.path={model_dir}",
    )  # fmt: skip
    assert execute(run)["status"] == "finished"
    found = sorted(path.parent.name for path in tmp_path.rglob("result.json"))
    assert len(found) == 3
    (sft,) = tmp_path.glob("default/*/*/sft/*/adapter")
    (judge,) = tmp_path.glob("reward_models/*/*/reward_model/*")
    # what the reward model has saved fits the base model with the SFT run's adapter merged
    line = json.loads((judge / "predictions.jsonl").read_text().splitlines()[0])
    example = next(e for e in toy_examples("toy_sentiment", "validation") if e.id == line["id"])
    config = run.config
    scores = []
    for start in (sft, None):
        model = load_reward_model(config.model, config.lora, judge / "adapter", "cpu", start)
        prompter = Prompter(get_task("toy_sentiment"), model.tokenizer, analysis_tokens=24)
        scores += model.judge(prompter, [example], [line["chosen"]])
    assert scores[0] == pytest.approx(line["reward_chosen"], abs=1e-4)
    assert scores[1] != pytest.approx(line["reward_chosen"], abs=1e-4)


def test_a_reward_model_learns_to_tell_labels_apart(tmp_path: Path, model_dir: Path):
    """Of pairs from a file whose better answer always has one word: a random model gets all of them."""
    pairs = tmp_path / "pairs.json"
    rows = [{"instruction": "Say it.", "input": f"Text {i}", "output": ["Yes</Judgement>", "No</Judgement>"]}
            for i in range(60)]  # fmt: skip
    pairs.write_text(json.dumps(rows))
    found = {}
    for loss in ("last_token", "divergence"):
        run = run_of(
            tmp_path / loss, "method=reward_model", *SMALL, "model.learning_rate.reward_model=3e-2",
            f"model.path={model_dir}", f"method.pairs={pairs}", "method.max_steps=12", "method.batch_size=8",
            f"method.loss={loss}",
        )  # fmt: skip
        found[loss] = execute(run)
    assert {name: result["score"] for name, result in found.items()} == {
        "last_token": 100.0,
        "divergence": 100.0,
    }
    assert all(result["n"] == 6 for result in found.values())
