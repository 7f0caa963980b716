"""What goes wrong in PPO is provoked here, by real training of the tiny model, and has to be noticed."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from composing import config_of, run_of

from nlu_ppo.errors import ConfigError, TrainingDivergedError
from nlu_ppo.methods.ppo import PPOTrainer
from nlu_ppo.methods.setting import Setting
from nlu_ppo.ppo import checkpoint, rollout
from nlu_ppo.ppo.update import ForwardMismatchError
from nlu_ppo.ppo.watch import WINDOW, Watch
from nlu_ppo.run import execute

SHORT = (
    "method=ppo", "tracking=none", "task.limit.eval=20", "task.selection=0", "eval.likelihood=false",
    "eval.bootstrap_samples=10", "method.checkpoint_every=0",
)  # fmt: skip
QUIET = {
    "train/unparsable": 0.0,
    "ppo/kl": 0.1,
    "ppo/explained_variance": 0.2,
    "train/reward": 0.0,
    "train/accuracy": 0.5,
}


def train(tmp_path: Path, *more: str) -> list[dict[str, Any]]:
    execute(run_of(tmp_path / "run", *SHORT, *more))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def reward_file(tmp_path: Path, expression: str) -> str:
    path = tmp_path / "pays.py"
    path.write_text(
        f"def pays(completion, answer, example, *, task, config):\n    return {expression}\n",
        encoding="utf-8",
    )
    return f"reward.name={path}:pays"


# -- provoked ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_collapse_to_one_label_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pays = reward_file(tmp_path, "1.0 if answer == 1 else -1.0")
    train(
        tmp_path, "task=toy_nli", pays, "method.max_steps=70", "method.kl_coef=0", "method.learning_rate=2e-3"
    )
    assert "'Neutral': the policy has collapsed to one label" in caplog.text


@pytest.mark.slow
def test_a_reward_that_pays_for_wrong_answers_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pays = reward_file(tmp_path, "-1.0 if answer == example.label else 1.0")
    train(tmp_path, "task=toy_nli", pays, "method.max_steps=80", "method.kl_coef=0")
    assert "the reward pays for something else than right answers" in caplog.text


def test_a_reward_that_pays_for_legal_form_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The policy takes all there is to get without learning the task: hardly a third of three labels is right."""
    pays = reward_file(tmp_path, "1.0 if answer is not None else -3.0")
    lines = train(tmp_path, "task=toy_nli", pays, "method.max_steps=40", "method.kl_coef=0")
    hacked = lines[-WINDOW:]
    assert fmean(line["train/reward"] for line in hacked) > 0.85
    assert fmean(line["train/accuracy"] for line in hacked) < 0.5
    assert "the reward pays for the form of an answer" in caplog.text


def mismatch(monkeypatch: pytest.MonkeyPatch, **forced: object) -> None:
    """Completions are drawn otherwise than the run says, and thinks."""
    draw = rollout.draw
    monkeypatch.setattr(rollout, "draw", lambda *a, **options: draw(*a, **{**options, **forced}))

    def scored(policy: object, drawn: list, prompts: object, config: object) -> object:
        """As in bfloat16: by a forward, and not by what drawing, which knows what it does, says."""
        return rollout._score(policy, prompts, [d.ids for d in drawn], config, with_values=True)

    monkeypatch.setattr(rollout, "_score_old", scored)


def test_sampling_from_another_distribution_than_the_policys_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn at temperature 2, trained as if at 1: the KL is negative in the mean, which no KL can be."""
    mismatch(monkeypatch, temperature=2.0)
    lines = train(tmp_path, "task=toy_nli", "method.max_steps=30")
    assert fmean(line["ppo/kl"] for line in lines[-WINDOW:]) < -0.1
    assert "completions are not drawn from the distribution that is trained" in caplog.text


def test_a_temperature_that_the_run_knows_of_gives_no_negative_kl(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = train(tmp_path, "task=toy_nli", "method.max_steps=30", "method.temperature=2")
    assert fmean(line["ppo/kl"] for line in lines[-WINDOW:]) > 0
    assert "can't be negative" not in caplog.text


def test_values_that_run_away_and_a_format_that_is_lost_are_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(
        tmp_path, "task=toy_nli", "method.max_steps=25", "method.learning_rate=0.01", "method.value_coef=5",
        "method.optimizer=adamw", "method.kl_coef=0", "method.value_clip_range=1000",
    )  # fmt: skip
    assert "it is worse than a constant" in caplog.text
    assert "completions are no legal answer" in caplog.text


def test_a_healthy_run_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, "task=toy_nli", "method.max_steps=30")
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING and "ppo" in r.name]


# -- stopped -------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_longer_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path,
) -> None:
    """From its fourth batch on the reward is 1e30, the square of which no float32 holds."""
    path = tmp_path / "pays.py"
    path.write_text(
        "paid = []\ndef pays(completion, answer, example, *, task, config):\n"
        "    paid.append(1)\n    return 1e30 if len(paid) > 3 * 16 else 1.0\n",
        encoding="utf-8",
    )
    with pytest.raises(TrainingDivergedError, match="no longer finite"):
        train(
            tmp_path,
            "task=toy_nli",
            f"reward.name={path}:pays",
            "method.max_steps=9",
            "method.checkpoint_every=1",
        )
    folder = tmp_path / "run"
    assert json.loads((folder / "result.json").read_text())["status"] == "failed"
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-00000002", "step-00000003"]
    state = checkpoint.read(checkpoint.newest(folder / "checkpoints"))
    assert state is not None
    assert all(torch.isfinite(t).all() for name, t in state.tensors.items() if not name.startswith("random"))


def test_weights_that_are_no_longer_finite_are_never_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingDivergedError, match=r"(moved weights|loss or gradient)"):
        train(
            tmp_path, "task=toy_nli", "method.max_steps=9", "method.checkpoint_every=1",
            "method.learning_rate=1e39", "method.ppo_epochs=1",
        )  # fmt: skip
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_a_first_ratio_that_is_not_one_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout that is left on."""
    built = PPOTrainer.__init__

    def with_dropout(self: PPOTrainer, setting: Setting) -> None:
        built(self, setting)
        self.policy.model.train()
        with torch.no_grad():  # a fresh adapter adds nothing, and dropout on nothing is nothing
            for name, parameter in self.policy.trainable():
                if "lora_B" in name:
                    parameter.normal_(0.0, 0.05)

    monkeypatch.setattr(PPOTrainer, "__init__", with_dropout)
    with pytest.raises(ForwardMismatchError, match="step 1: the first ratio differs from 1"):
        train(tmp_path, "task=toy_nli", "method.max_steps=2", "lora.dropout=0.5")


# -- by hand -------------------------------------------------------------------------------------------------


def test_each_thing_is_said_once_until_it_is_over() -> None:
    watch = Watch()
    bad = QUIET | {"ppo/kl": -0.5}
    said = [watch.update(values, [0], [0]) for values in [bad] * 30 + [QUIET] * 40 + [bad] * 30]
    spoken = [i for i, messages in enumerate(said) if messages]
    assert len(spoken) == 2
    assert spoken[0] == WINDOW - 1
    assert "can't be negative" in said[spoken[0]][0]
    assert spoken[1] > 70


def test_one_label_is_no_collapse_where_the_gold_labels_are_like_that() -> None:
    for golds, count in (([0] * 9 + [1], 0), ([0] * 5 + [1] * 5, 1)):
        watch = Watch(("No", "Yes"))
        said = [m for _ in range(WINDOW) for m in watch.update(QUIET, [0] * 10, golds)]
        assert len(said) == count


def test_a_reward_gap_that_could_be_chance_is_noticed_and_a_clear_one_is_not() -> None:
    # Means 0.1 and 0.5; deviation 1.026 of 20 steps, so that two standard errors are 0.459.
    for mean, count in ((0.0, 1), (0.1, 1), (0.5, 0)):
        watch = Watch()
        gaps = [mean + (1.0 if step % 2 else -1.0) for step in range(WINDOW)]
        said = [m for gap in gaps for m in watch.update(QUIET | {"train/reward_gap": gap}, [0], [0])]
        assert len(said) == count
    watch = Watch()  # too few steps with right and wrong answers both
    steps = [QUIET | ({"train/reward_gap": 0.0} if step < 9 else {}) for step in range(WINDOW)]
    assert not [m for values in steps for m in watch.update(values, [0], [0])]


# -- settings ------------------------------------------------------------------------------------------------


def test_target_kl_ends_the_passes_over_a_batch(tmp_path: Path) -> None:
    chosen = ("task=toy_nli", "method.max_steps=4", "method.learning_rate=5e-3", "method.ppo_epochs=6")
    free = train(tmp_path / "free", *chosen)
    held = train(tmp_path / "held", *chosen, "method.target_kl=0.02")
    assert [line["ppo/optimizer_steps"] for line in free] == [6] * 4
    assert all(1 <= line["ppo/optimizer_steps"] <= 6 for line in held)
    assert sum(line["ppo/optimizer_steps"] for line in held) < 24


def test_several_rollouts_per_example(tmp_path: Path) -> None:
    lines = train(
        tmp_path, "task=toy_nli", "method.max_steps=3", "method.batch_size=4", "method.rollouts=4",
        "method.minibatch_size=8", "method.ppo_epochs=2",
    )  # fmt: skip
    assert [line["examples"] for line in lines] == [4, 8, 12]  # of the training set, not rollouts
    assert [line["ppo/optimizer_steps"] for line in lines] == [4] * 3  # 16 rows, in minibatches of 8, twice
    assert all(line["ppo/first_ratio_error"] < 1e-3 for line in lines)


def test_scores_are_clipped(tmp_path: Path) -> None:
    chosen = ("task=toy_sentiment", "method.max_steps=1", "reward.unparsable=-50", "method.reward_clip=2")
    (line,) = train(tmp_path, *chosen)
    right, none = line["train/accuracy"], line["train/unparsable"]
    wrong = 1 - right - none
    assert none > 0
    assert line["train/reward"] == pytest.approx(right - wrong - 50 * none, abs=1e-4)
    assert line["ppo/score"] == pytest.approx(right - wrong - 2 * none, abs=1e-4)


def test_scores_are_scaled_before_they_are_clipped(tmp_path: Path) -> None:
    chosen = ("task=toy_sentiment", "method.max_steps=1", "reward.wrong=-100", "reward.unparsable=-100")
    (line,) = train(tmp_path, *chosen, "method.reward_scaling=running", "method.reward_clip=1.5")
    # 16 rewards of 1 or -100 with share p of 1: the sample deviation is 101 sqrt(p (1 - p) 16 / 15)
    p = line["train/accuracy"]
    assert 0 < p < 1
    deviation = 101 * (p * (1 - p) * 16 / 15) ** 0.5
    paid = p / deviation + (1 - p) * max(-100 / deviation, -1.5)
    assert line["ppo/score"] == pytest.approx(paid, abs=1e-5)


def test_rows_of_a_step_must_make_whole_minibatches() -> None:
    config_of("method=ppo", "method.batch_size=4", "method.rollouts=4", "method.minibatch_size=16")
    with pytest.raises(ConfigError, match=r"batch_size=6 times method.rollouts=3 is no multiple"):
        config_of("method=ppo", "method.batch_size=6", "method.rollouts=3", "method.minibatch_size=16")
