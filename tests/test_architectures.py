"""Every architecture of the model zoo, at toy size, from a local directory through the four methods and back."""

from __future__ import annotations

import functools
import gc
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import config_of
from families import TEXTS, TOYS, save, tokenizer_of, train_bpe
from float64 import in_float64
from models import byte_tokenizer
from test_shared_prefix import difference, loss_and_gradients
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForImageTextToText

from nlu_ppo.choices import read_groups
from nlu_ppo.config import Config, LoraConfig, ModelConfig
from nlu_ppo.errors import ModelError
from nlu_ppo.evaluation import evaluate
from nlu_ppo.inference.reading import reads_trees
from nlu_ppo.methods.setting import Part, Setting, TrainingStream
from nlu_ppo.methods.sft import tokenized
from nlu_ppo.models.loading import load_policy, load_trained
from nlu_ppo.models.page import FAMILIES, OWN, family_of, page
from nlu_ppo.models.policy import Policy
from nlu_ppo.prompting import CLOSE, OPEN, Prompter
from nlu_ppo.run import build_run, execute
from nlu_ppo.tasks import Example, get_task
from nlu_ppo.tasks.splits import load_tasks

METHODS = ("zero_shot", "few_shot", "sft", "ppo")
SMALL = (
    "task.limit.train=12", "task.limit.eval=4", "task.selection=4", "eval.bootstrap_samples=10", "tracking=none",
    "lora.r=4", "device=cpu",
)  # fmt: skip
STEPS = ("method.max_steps=2", "method.epochs=9", "method.batch_size=4", "method.select_every=0")
OWN_SETTINGS = {
    "zero_shot": (),
    "few_shot": ("method.k=2",),
    "sft": STEPS,
    "ppo": (*STEPS, "method.minibatch_size=4", "method.ppo_epochs=2", "method.max_new_tokens=6"),
}
REVIEW = Example(id="v", fields={"sentence": "a gripping film"}, label=1)
SHOWN = Example(id="t", fields={"sentence": "dull and slow"}, label=0)


@pytest.fixture(scope="module", autouse=True)
def _cheap_collections() -> Iterator[None]:
    """Runs collect garbage; what was there before them need not be looked through each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    return train_bpe(TEXTS)


@pytest.fixture(scope="session")
def folders(bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("toys")
    return {name: save(name, bpe, place) for name in TOYS}


@functools.cache
def composed(method: str) -> Config:
    """Composed once: nothing may change it."""
    return config_of(f"method={method}", "model=local", "model.path=DIR", *SMALL, *OWN_SETTINGS[method])


def config_for(method: str, name: str, folder: Path) -> Config:
    """What `model=local model.path=<folder> model.layout=... model.lora_targets=[...]` makes of it."""
    config, toy = composed(method), TOYS[name]
    targets = None if toy.targets is None else list(toy.targets)
    layout = "plain" if toy.template is None else "chat"
    model = replace(config.model, name=folder.name, path=str(folder), layout=layout, lora_targets=targets)
    return replace(config, model=model, lora=replace(config.lora, targets=targets))


def answers(config: Config, policy: Policy) -> list[str]:
    """Completions of the run's evaluation examples."""
    (data,) = load_tasks(config.task)
    prompter = Prompter(data.task, policy.tokenizer, config.model.layout)
    part = Part(data, prompter)
    part.leave_room_for_answers(policy, config.eval)
    ((_, examples),) = data.evaluation.items()
    return [p["completion"] for p in evaluate(policy, prompter, examples, config.eval).predictions]


@pytest.mark.parametrize("name", TOYS)
def test_all_methods_run_and_what_they_train_comes_back(
    name: str, folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Zero-shot, few-shot, SFT and PPO on a generated task; then the saved adapter answers as the run did."""
    toy = TOYS[name]
    caplog.set_level("INFO")
    for method in METHODS:
        folder = tmp_path / method
        run = build_run(replace(config_for(method, name, folders[name]), outputs=str(tmp_path)), folder)
        result = execute(run)
        assert (result["status"], result["n"], result["model"]) == ("finished", 4, folders[name].name)
        assert result["shared_prefixes"].startswith(toy.sharing)
        assert f"prefixes that prompts share: {toy.sharing}" in caplog.text
        if method not in ("sft", "ppo"):
            continue
        adapter = json.loads((folder / "adapter" / "adapter_config.json").read_text())
        assert toy.targets is None or set(adapter["target_modules"]) == set(toy.targets)
        trained = load_trained(run.config.model, folder / "adapter", "cpu")
        moved = [p.abs().sum() for n, p in trained.model.named_parameters() if "lora_B" in n]
        assert min(moved) > 0
        lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        assert answers(run.config, trained) == [json.loads(line)["completion"] for line in lines]
    logged = [json.loads(line) for line in (tmp_path / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert max(line.get("ppo/first_ratio_error", 0) for line in logged) < 1e-3


@pytest.mark.parametrize("name", TOYS)
def test_shared_prefixes_give_the_loss_and_gradients_of_plain_rows(
    name: str, folders: dict[str, Path]
) -> None:
    """Prompts in the family's own layout, in float64: shared, plain, and each row by the model's own forward."""
    config = config_for("ppo", name, folders[name])
    loaded = load_policy(config.model, config.lora, seed=0, device="cpu")
    policy = Policy(loaded.model.double().eval(), loaded.tokenizer, loaded.context_length)
    policy.add_value_head()
    assert policy.value_head is not None
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        policy.value_head.double().linear.weight.normal_(generator=generator)
        for parameter_name, parameter in policy.model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(0.0, 0.1, generator=generator)
    prompter = Prompter(get_task("sst2"), policy.tokenizer, config.model.layout)
    texts = ("a gripping film", "dull", "a gripping and clever film", "no")
    prompts = [
        list(p.ids) for p in prompter.encode(Example(id=t, fields={"sentence": t}, label=0) for t in texts)
    ]
    completions = [list(prompter.completion_ids(prompter.completion(i % 2))) for i in range(len(texts))]
    assert reads_trees(policy) == (TOYS[name].sharing == "trees")
    with in_float64():
        plain, alone = (loss_and_gradients(policy, prompts, completions, share) for share in (False, None))
        shared = loss_and_gradients(policy, prompts, completions, True)
    for loss, gradients in (shared, plain):
        assert loss == pytest.approx(alone[0], rel=1e-10)
        assert difference(gradients, alone[1]) < 1e-8


@pytest.mark.parametrize("name", [name for name, toy in TOYS.items() if toy.template is not None])
@pytest.mark.parametrize("shown", [(), (SHOWN,)], ids=["alone", "demonstration"])
def test_chat_prompts_are_the_templates_own(name: str, shown: tuple[Example, ...], bpe: Tokenizer) -> None:
    """The template's rendering of the turns, then the open tag; and its tokens end where completions begin."""
    tokenizer = tokenizer_of(TOYS[name], bpe)
    prompter = Prompter(get_task("sst2"), tokenizer, "chat", shown)
    (prompt,) = prompter.encode([REVIEW])
    turns = [("user", "Review: a gripping film")]
    if shown:
        turns = [("user", "Review: dull and slow"), ("assistant", f"{OPEN}Negative{CLOSE}"), *turns]
    if name.startswith("mistral") or name in ("gemma", "gemma2"):  # they have no system turn
        turns[0] = ("user", f"{prompter.instruction}\n\n{turns[0][1]}")
    else:
        turns.insert(0, ("system", prompter.instruction))
    messages = [{"role": role, "content": text} for role, text in turns]
    told: dict[str, Any] = {"enable_thinking": False} if name == "qwen3" else {}
    theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **told)
    assert prompt.text == theirs + OPEN
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, **told)[
        "input_ids"
    ]
    assert list(prompt.ids[: len(ids)]) == ids
    assert tokenizer.decode(prompt.ids[len(ids) :]) == OPEN
    if tokenizer.bos_token is not None:
        assert prompt.ids.count(tokenizer.bos_token_id) == 1
    completion = prompter.completion_ids(prompter.completion(1))
    assert tokenizer.decode(completion) == "Positive" + CLOSE
    assert tokenizer.decode([*prompt.ids, *completion]) == prompt.text + "Positive" + CLOSE


def test_training_rows_and_drawn_rows_begin_with_the_same_tokens(folders: dict[str, Path]) -> None:
    """What SFT learns from is the prompt that is decoded, then the completion's own tokens."""
    for name in ("llama", "llama3", "qwen3", "gemma"):
        config = config_for("sft", name, folders[name])
        policy = load_policy(config.model, None, 0, "cpu")
        (data,) = load_tasks(config.task)
        part = Part(data, Prompter(data.task, policy.tokenizer, config.model.layout))
        setting = Setting(config, policy, (part,), recorder=None)  # type: ignore[arg-type] # nothing is logged
        stream = TrainingStream(setting)
        numbers = list(range(4))
        rows = tokenized(setting, stream, "completion", numbers=numbers)
        for number, row in zip(numbers, rows, strict=True):
            (prompt,) = part.prompter.encode([stream.example(number)])
            assert row["input_ids"][: len(prompt.ids)] == list(prompt.ids)
            learned = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
            assert learned == row["input_ids"][len(prompt.ids) :]
            word = part.prompter.completion(stream.example(number).label)
            assert policy.tokenizer.decode(learned) == word + policy.tokenizer.eos_token


# -- what can't be taken --------------------------------------------------------------------------------------


def test_a_model_that_reads_images_is_refused(bpe: Tokenizer, tmp_path: Path) -> None:
    text = {**TOYS["gemma3_text"].shape, "vocab_size": 500}
    vision = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16,
        "patch_size": 8,
    }  # fmt: skip
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=1)
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    tokenizer_of(TOYS["gemma3_text"], bpe).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="reads more than text"):
        load_policy(ModelConfig("toy", str(tmp_path)), None, 0, "cpu")


def with_own_code(folder: Path, body: str) -> Path:
    """A directory whose model is of a class that it brings itself, and which leaves a trace where it runs."""
    folder.mkdir()
    (folder / "configuration_odd.py").write_text(
        "from pathlib import Path\nfrom transformers import PretrainedConfig\n"
        f"Path({str(folder / 'ran')!r}).touch()\n{body}\n"
        "class OddConfig(PretrainedConfig):\n    model_type = 'odd'\n"
    )
    config = {"model_type": "odd", "auto_map": {"AutoConfig": "configuration_odd.OddConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_code_that_a_model_brings_runs_only_if_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = with_own_code(tmp_path / "odd", "from transformers.pytorch_utils import left_out_long_ago")
    with pytest.raises(
        ModelError, match=r"model\.path=.*no class for this model.*model\.trust_remote_code=true"
    ):
        load_policy(ModelConfig("odd", str(folder)), None, 0, "cpu")
    assert not (folder / "ran").exists()
    with pytest.raises(
        ModelError, match=r"code that comes with the model.*transformers \d.*left_out_long_ago"
    ):
        load_policy(ModelConfig("odd", str(folder), trust_remote_code=True), None, 0, "cpu")
    assert (folder / "ran").exists()


def test_weights_that_are_no_safetensors_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["llama"].iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"who knows what it runs")
    with pytest.raises(ModelError, match=r"no safetensors.*save_pretrained"):
        load_policy(ModelConfig("toy", str(tmp_path)), None, 0, "cpu")


def test_modules_that_a_model_lacks_are_named_with_those_that_it_has(folders: dict[str, Path]) -> None:
    lora = LoraConfig("paper", targets=["Wqkv"])
    with pytest.raises(ModelError, match=r"lora\.targets=\['Wqkv'\].*LlamaForCausalLM.*k_proj.*q_proj"):
        load_policy(ModelConfig("toy", str(folders["llama"])), lora, 0, "cpu")
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel.*c_attn"):
        load_policy(ModelConfig("toy", str(folders["gpt2"])), lora, 0, "cpu")


# -- the choices of conf/model --------------------------------------------------------------------------------

HUB = {c.name: c for c in read_groups()["model"] if c.name not in OWN}
DECODERS = {name: c for name, c in HUB.items() if "layout" in c.values}


def test_every_choice_says_what_a_run_needs_to_know() -> None:
    wanted = {"name", "path", "revision", "layout", "dtype", "attention", "context_length", "lora_targets"}
    assert {family_of(name).architecture for name in DECODERS} == {f.architecture for f in FAMILIES.values()}
    for name, choice in DECODERS.items():
        assert choice.values.keys() == wanted, name
        config = config_of(f"model={name}", "task=rte").model
        assert not config.trust_remote_code
        assert config.name == name
        assert config.context_length
        gated = "Gated on the hub" in choice.about
        assert gated == family_of(name).gated, name
    for name, choice in HUB.items():
        revision = choice.values.get("revision")
        assert revision is None or re.fullmatch("[0-9a-f]{40}", revision), name
        assert f"| `{name}` |" in page()


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if not f.own_code])
def test_the_page_says_how_a_toy_of_the_family_shares_prefixes(name: str, folders: dict[str, Path]) -> None:
    family = FAMILIES[name]
    toys = [toy for toy in TOYS.values() if toy.model_type == family.architecture]
    words = {"trees": "trees", "one prefix (ALiBi)": "one prefix: ALiBi"}
    assert toys[0].sharing.startswith(words.get(family.sharing, "one prefix: some layers see a window"))
    for choice in DECODERS.values():
        if family_of(choice.name) is family:
            assert choice.values["lora_targets"] == list(toys[0].targets or ())
