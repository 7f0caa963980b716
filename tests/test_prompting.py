"""Prompts: the layout, the boundary between prompt and completion, shortening, and words a tokenizer can't say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trl
from models import byte_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nlu_ppo.errors import ModelError
from nlu_ppo.inference.prefix import pad
from nlu_ppo.models.locate import TINY
from nlu_ppo.prompting import CLOSE, OPEN, Prompter, common_prefix_length
from nlu_ppo.tasks import TASKS, Example, Kind, get_task

REVIEW = Example(id="validation-0", fields={"sentence": "a {gripping} film"}, label=1)
CHAT = (
    "{% for m in messages %}{% if m.role == 'system' and no_system %}{{ raise_exception('no system role') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


TEMPLATES = Path(trl.__file__).parent / "chat_templates"
IM, NO_THOUGHTS = "<|im_start|>assistant\n", "<think>\n\n</think>\n\n"
ENDINGS = {  # what opens the assistant's turn
    "llama3": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "llama3_1": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "qwen2_5": IM,
    "qwen3": IM + NO_THOUGHTS,  # thinks unless told not to
    "qwen3_5_think": IM + NO_THOUGHTS,
    "qwen3_instruct_2507": IM,
    "deepseek_r1_distill": "<｜Assistant｜>" + NO_THOUGHTS,  # opens a thinking block whatever it is told
    "gemma": "<start_of_turn>model\n",  # refuses a system turn
    "gemma3": "<start_of_turn>model\n",
    "phi3": "<|assistant|>\n",
}


def load_tokenizer(which: str, shared: Path) -> Any:
    if which == "bytes":
        return byte_tokenizer()
    return AutoTokenizer.from_pretrained(TINY if which == "tiny" else shared / "models" / "stories260K")


@pytest.mark.parametrize("which", ["bytes", "tiny", "sentencepiece"])
@pytest.mark.parametrize("name", [n for n, t in TASKS.items() if t.kind is Kind.CLASSIFY])
def test_the_boundary_token_is_the_same_in_training_and_decoding(shared: Path, which: str, name: str) -> None:
    """Prompt ids end in the open tag, completion ids spell the word, and joined they spell the whole text."""
    tokenizer, task = load_tokenizer(which, shared), get_task(name)
    prompter = Prompter(task, tokenizer)
    fields = dict.fromkeys(task_fields(name), "some words")
    (prompt,) = prompter.encode([Example(id="x", fields=fields, label=0)])
    assert prompt.text.endswith(OPEN)
    assert tokenizer.decode(prompt.ids, skip_special_tokens=True).endswith(OPEN)
    for label, word in enumerate(task.verbalizers):
        completion = prompter.completion_ids(prompter.completion(label))
        assert tokenizer.decode(completion) == word + CLOSE
        assert tokenizer.decode([*prompt.ids, *completion]).endswith(OPEN + word + CLOSE)


def task_fields(name: str) -> list[str]:
    import string

    return [field for _, field, _, _ in string.Formatter().parse(get_task(name).template) if field]


def test_braces_in_a_text_stay_as_they_are() -> None:
    text = Prompter(get_task("sst2"), byte_tokenizer()).render(REVIEW)
    assert "a {gripping} film" in text
    shown = Example(id="train-0", fields={"sentence": "{0} {x!r} {{"}, label=0)
    assert "{0} {x!r} {{" in Prompter(get_task("sst2"), byte_tokenizer(), demonstrations=[shown]).render(
        REVIEW
    )


def test_all_prompts_of_a_task_share_instruction_and_demonstrations() -> None:
    shown = Example(id="train-0", fields={"sentence": "dull"}, label=0)
    prompter = Prompter(get_task("sst2"), byte_tokenizer(), demonstrations=[shown])
    examples = [Example(id=str(i), fields={"sentence": s}, label=0) for i, s in enumerate(("good", "bad"))]
    prompts = prompter.encode(examples)
    shared = prompter.tokenizer.decode(prompts[0].ids[: common_prefix_length([p.ids for p in prompts])])
    assert prompter.instruction in shared
    assert f"dull\n{OPEN}Negative{CLOSE}" in shared


def test_a_long_prompt_loses_the_end_of_its_longest_field_only() -> None:
    task = get_task("rte")
    prompter = Prompter(task, byte_tokenizer(), max_prompt_tokens=400)
    long, short = "word " * 300, "It is short."
    example = Example(id="x", fields=dict(zip(task_fields("rte"), (long, short), strict=True)), label=0)
    (prompt,) = prompter.encode([example])
    assert prompt.shortened
    assert 390 <= len(prompt.ids) <= 400
    assert prompt.text.startswith(prompter.instruction)
    assert prompt.text.endswith(OPEN)
    assert short in prompt.text
    assert (
        prompter.encode([Example(id="y", fields=dict.fromkeys(example.fields, "a"), label=0)])[0].shortened
        is False
    )


def test_an_instruction_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"validation-0.*'sentence'.*method\.k"):
        Prompter(get_task("sst2"), byte_tokenizer(), max_prompt_tokens=40).encode([REVIEW])


def test_words_that_tokenise_to_nothing_are_an_error() -> None:
    inner = Tokenizer(models.WordLevel({"the": 0, "[UNK]": 1, "\n": 2}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for unknown in ("[UNK]", None):
        if unknown is None:
            inner = Tokenizer(models.BPE(vocab={"a": 0, "\n": 1}, merges=[]))  # drops what it doesn't know
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
        with pytest.raises(ModelError, match=r"sst2.*'Positive</Judgement>'.*verbalizers"):
            Prompter(get_task("sst2"), tokenizer).completion_ids("Positive" + CLOSE)


@pytest.mark.parametrize("system_role", [True, False])
def test_chat_layout(system_role: bool) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% set no_system = " + str(not system_role).lower() + " %}" + CHAT
    shown = Example(id="train-0", fields={"sentence": "dull"}, label=0)
    prompter = Prompter(get_task("sst2"), tokenizer, "chat", [shown])
    text = prompter.render(REVIEW)
    assert text.endswith(f"[assistant]{OPEN}")
    assert f"[assistant]{OPEN}Negative{CLOSE}" in text
    assert text.count(prompter.instruction) == 1
    assert text.startswith("[system]" if system_role else "[user]" + prompter.instruction)


def render_chat(template: str, shown: list[Example]) -> tuple[Prompter, str]:
    """A prompt by one of the templates that TRL carries."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    prompter = Prompter(get_task("sst2"), tokenizer, "chat", shown)
    return prompter, prompter.render(REVIEW)


@pytest.mark.parametrize("template", ENDINGS)
@pytest.mark.parametrize("demonstrations", [0, 2])
def test_chat_templates_as_they_are_published(template: str, demonstrations: int) -> None:
    """Instruction first and once, all turns in order, and an assistant's turn that begins with the open tag."""
    shown = [Example(id=f"t{i}", fields={"sentence": w}, label=0) for i, w in enumerate(("dull", "slow"))]
    prompter, text = render_chat(template, shown[:demonstrations])
    assert text.endswith(ENDINGS[template] + OPEN)
    assert text.count(prompter.instruction) == 1
    parts = [prompter.instruction]
    for example in shown[:demonstrations]:
        parts += [prompter.query(example), f"{OPEN}Negative{CLOSE}"]
    place = 0
    for part in (*parts, prompter.query(REVIEW)):
        place = text.index(part, place) + len(part)  # behind those before
    assert text.count(f"{OPEN}Negative{CLOSE}") == demonstrations


def test_a_date_in_a_template_is_not_todays() -> None:
    assert "Today Date: 26 Jul 2024" in render_chat("llama3_2", [])[1]


@pytest.mark.parametrize("template", ["idefics3", "smolvlm", "llava_next"])
def test_a_template_that_leaves_texts_out_is_an_error(template: str) -> None:
    """They write the blocks of a turn, and ours are plain texts."""
    with pytest.raises(ModelError, match=r"chat template.*model\.layout=plain"):
        render_chat(template, [])


def test_chat_layout_needs_a_template() -> None:
    with pytest.raises(ModelError, match=r"chat template.*model\.layout=plain"):
        Prompter(get_task("sst2"), byte_tokenizer(), "chat")


def test_padding_sides() -> None:
    import torch

    device = torch.device("cpu")
    ids, mask = pad([[1, 2], [3]], 9, "left", device)
    assert (ids.tolist(), mask.tolist()) == ([[1, 2], [9, 3]], [[1, 1], [0, 1]])
    ids, mask = pad([[1, 2], [3]], 9, "right", device)
    assert (ids.tolist(), mask.tolist()) == ([[1, 2], [3, 9]], [[1, 1], [1, 0]])
