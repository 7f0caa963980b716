"""Encoders with a new head: the same command, the same evaluation, the same files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from composing import config_of, run_of
from models import save_random_bert
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from nlu_ppo.errors import ConfigError
from nlu_ppo.identity import run_key
from nlu_ppo.models.classifier import load_classifier
from nlu_ppo.run import Recorder, build_run, execute
from nlu_ppo.tasks import TASKS
from nlu_ppo.tasks.record import Example
from nlu_ppo.tasks.toy import generate

SMALL = ("task.limit.train=200", "task.limit.eval=40", "task.selection=8", "eval.bootstrap_samples=10",
         "tracking=none", "method=sft", "model=local", "model.kind=encoder")  # fmt: skip


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights, and a tokenizer of letters that writes [CLS] a [SEP] b [SEP]."""
    return save_random_bert(tmp_path_factory.mktemp("bert"))


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_classifier_trains_and_is_scored_as_all_others_are(tmp_path: Path, bert: Path) -> None:
    run = run_of(
        tmp_path / "run", *SMALL, f"model.path={bert}", "task=toy_nli", "method.max_steps=6",
        "method.select_every=3", "method.learning_rate=1e-3",
    )  # fmt: skip
    result = execute(run)
    predictions = lines(run.folder / "predictions.jsonl")
    assert len(predictions) == result["n"] == 40
    assert result["score"] == pytest.approx(100 * sum(bool(p["correct"]) for p in predictions) / 40)
    assert (result["unparsable"], result["likelihood_score"], result["lora"]) == (0, None, None)
    words = TASKS["toy_nli"].verbalizers
    assert all(p["completion"] == words[p["label"]] for p in predictions)  # type: ignore[index]
    assert {"id", "prompt_sha", "completion", "label", "reference", "correct"} <= predictions[0].keys()
    assert [line["step"] for line in lines(run.folder / "metrics.jsonl") if "select/score" in line] == [
        0,
        3,
        6,
    ]
    # what was saved answers so without us
    saved = AutoModelForSequenceClassification.from_pretrained(run.folder / "adapter")
    assert saved.config.id2label == dict(enumerate(TASKS["toy_nli"].labels))
    assert (run.folder / "adapter" / "model.safetensors").is_file()


def test_labels_are_learned(tmp_path: Path, bert: Path) -> None:
    """Two labels that a letter tells apart: a linear head over a random BERT can learn that."""
    data = tmp_path / "letters.csv"
    rows = [f"{'a' * 6},thumbs up" if i % 2 else f"{'z' * 6},thumbs down" for i in range(120)]
    data.write_text("customer review,verdict\n" + "\n".join(rows) + "\n")
    own = ("task=example_csv", f"task.record.files.train={data}", f"task.record.files.validation={data}")
    config = config_of(
        *SMALL, f"model.path={bert}", *own, f"outputs={tmp_path}", "method.max_steps=40", "method.epochs=9",
        "method.warmup=0.3",
        "method.learning_rate=1e-3", "task.selection=0",
    )  # fmt: skip
    assert execute(build_run(config, tmp_path / "run"))["score"] == 100.0


def test_micro_batches_change_no_loss(tmp_path: Path, bert: Path) -> None:
    """The trainer would add up their means if one let it."""
    losses = []
    for micro in (4, 24):
        run = run_of(
            tmp_path / str(micro), *SMALL, f"model.path={bert}", "task=toy_nli", "method.max_steps=2",
            "task.selection=0", f"method.micro_batch_size={micro}",
        )  # fmt: skip
        execute(run)
        losses.append([line["train/loss"] for line in lines(run.folder / "metrics.jsonl")])
    # dropout differs; three labels of which the model knows nothing
    assert losses[0] == pytest.approx([1.1, 1.1], abs=0.15)
    assert losses[1] == pytest.approx([1.1, 1.1], abs=0.15)


def test_numbers_are_learned_and_held_within_the_scale(tmp_path: Path, bert: Path, shared: Path) -> None:
    run = run_of(
        tmp_path / "run", *SMALL, f"model.path={bert}", "task=stsb", "task.source=raw",
        f"task.data_dir={shared / 'data'}", "method.max_steps=3", "method.learning_rate=1e-1",
    )  # fmt: skip
    result = execute(run)
    assert {"pearson", "spearman"} <= result["metrics"].keys()
    predictions = lines(run.folder / "predictions.jsonl")
    assert all(0 <= p["label"] <= 5 for p in predictions)  # type: ignore[operator]
    assert all(float(p["completion"]) == pytest.approx(p["label"], abs=1e-4) for p in predictions)  # type: ignore[arg-type]


def test_pairs_are_read_as_pairs_and_cut_at_their_longer_end(bert: Path) -> None:
    config = config_of(*SMALL, f"model.path={bert}", "model.context_length=24").model
    reader = load_classifier(config, TASKS["rte"], 0, torch.device("cpu"))
    names = (
        ("sentence1", "sentence2") if "{sentence1}" in TASKS["rte"].template else ("premise", "hypothesis")
    )
    short = Example("x", dict(zip(names, ("ab", "cd"), strict=True)), 0)
    row, cut = reader.encode(TASKS["rte"], short)
    assert reader.tokenizer.convert_ids_to_tokens(row["input_ids"]) == [
        "[CLS]", "a", "##b", "[SEP]", "c", "##d", "[SEP]",
    ]  # fmt: skip
    assert row["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    assert not cut
    long = Example("y", dict(zip(names, ("a" * 60, "cd"), strict=True)), 0)
    row, cut = reader.encode(TASKS["rte"], long)
    assert cut
    assert len(row["input_ids"]) == 24
    assert reader.tokenizer.decode(row["input_ids"]).endswith("[SEP] cd [SEP]")
    # of more than two texts, the rest stands together
    wic = Example("z", {"word": "a", "sentence1": "b", "sentence2": "c"}, 0)
    row, _ = reader.encode(TASKS["wic"], wic)
    assert reader.tokenizer.decode(row["input_ids"]) == "[CLS] a [SEP] b [SEP] c [SEP]"


def test_an_interrupted_run_ends_as_if_it_had_not_been(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = (*SMALL, f"model.path={bert}", "method.max_steps=5", "method.checkpoint_every=2",
              "method.learning_rate=1e-3", "method.batch_size=8")  # fmt: skip
    execute(run_of(tmp_path / "whole", *chosen))
    original = Recorder.log

    def stop(self: Recorder, step: int, examples: int, values: dict[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt
        original(self, step, examples, values)

    monkeypatch.setattr(Recorder, "log", stop)
    with pytest.raises(KeyboardInterrupt):
        execute(run_of(tmp_path / "broken", *chosen))
    monkeypatch.setattr(Recorder, "log", original)
    execute(run_of(tmp_path / "broken", *chosen))
    whole, broken = (
        (tmp_path / name / "adapter" / "model.safetensors").read_bytes() for name in ("whole", "broken")
    )
    assert whole == broken


# -- what makes no sense -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["bert_base", "bert_large", "deberta_v3_large"])
@pytest.mark.parametrize("method", ["zero_shot", "few_shot", "ppo", "grpo", "rloo"])
def test_methods_that_need_text_are_refused_when_composed(model: str, method: str) -> None:
    with pytest.raises(ConfigError, match=f"method={method} needs a model that writes.*method=sft"):
        config_of(f"model={model}", f"method={method}")


@pytest.mark.parametrize(
    ("chosen", "why"),
    [
        (["task=glue"], "one head: take them one by one, task=cola,sst2"),
        (["task=record"], "answered in words"),
        (["task=squad"], "answered in words"),
        (["task=toy_nli", "eval.also=[toy_sentiment]"], "toy_sentiment has other answers than toy_nli"),
        (["eval=sample"], "eval.decoding=sample needs a language model"),
        (["eval=wikitext"], "eval.perplexity needs a language model"),
    ],
)
def test_tasks_that_one_head_cannot_answer_are_refused(chosen: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        build_run(config_of("model=bert_base", "method=sft", *chosen), Path("nowhere"))


def test_the_key_has_what_an_encoder_uses() -> None:
    def key(*more: str) -> str:
        return run_key(config_of("model=bert_base", "method=sft", *more))

    assert key() == key("lora=none") == key("model.layout=chat") == key("method.loss_on=all")
    assert key() == key("eval.likelihood=false")
    assert len({key(), key("model.kind=decoder"), key("model.context_length=64"), key("seed=1")}) == 4


# -- as reward models ----------------------------------------------------------------------------------------


def test_an_encoder_judges_a_policy_of_another_model(tmp_path: Path, bert: Path) -> None:
    """PPO of the tiny model, rewarded by a BERT that is trained first; what it says is the saved model's own logit."""
    run = run_of(
        tmp_path / "run", "method=ppo", "reward=label_sensitive", "+model@reward.model=bert_base",
        f"reward.model.path={bert}", "reward.label_model.loss=last_token", "reward.label_model.max_steps=3",
        "reward.label_model.batch_size=8", "task.limit.train=24", "task.limit.eval=8", "task.selection=0",
        "eval.bootstrap_samples=10", "eval.likelihood=false", "tracking=none", "method.max_steps=1",
    )  # fmt: skip
    assert execute(run)["status"] == "finished"
    (found,) = (tmp_path / "reward_models").glob("toy_sentiment/bert_base/reward_model/*")
    told = json.loads((found / "result.json").read_text())
    assert (told["n"], told["lora"], told["model"]) == (8, None, "bert_base")
    saved = AutoModelForSequenceClassification.from_pretrained(found / "adapter")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(found / "adapter")
    texts = {e.id: e.fields for e in generate("toy_sentiment", "validation")}
    for line in lines(found / "predictions.jsonl"):
        (text,) = texts[str(line["id"])].values()
        row = tokenizer(text, str(line["chosen"]), return_tensors="pt")
        assert row["token_type_ids"].sum() > 0  # the completion is BERT's second segment
        with torch.no_grad():
            assert saved(**row).logits.item() == pytest.approx(line["reward_chosen"], abs=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["reward=label_sensitive"],
            r"reward\.label_model\.loss=divergence .* use reward\.label_model\.loss=last",
        ),
        (["reward=label_agreement"], "asks no reward model"),
    ],
)
def test_an_encoder_scores_no_tokens(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_run(config_of("method=ppo", *overrides, "+model@reward.model=bert_base"), Path("nowhere"))
    with pytest.raises(ConfigError, match=r"method\.loss=divergence"):
        config_of("method=reward_model", "model=bert_base", "method.loss=divergence")


def test_the_base_of_the_reward_model_counts(bert: Path) -> None:
    chosen = ("method=ppo", "reward=label_sensitive", "reward.label_model.loss=last_token")
    encoder = (*chosen, "+model@reward.model=bert_base", f"reward.model.path={bert}")
    keys = {
        run_key(config_of(*words))
        for words in (chosen, encoder, (*encoder, "reward.model.context_length=64"))
    }
    assert len(keys) == 3
    assert run_key(config_of(*encoder)) == run_key(config_of(*encoder, "reward.model.micro_batch_size=1"))
