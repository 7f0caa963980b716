"""docs/models.md from conf/model/. `python -m nlu_ppo.reference` writes it. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nlu_ppo.choices import Choice, read_groups
from nlu_ppo.markdown import prose, table

OWN = ("local", "openai_compatible", "tiny")  # choices that are no model of the hub


@dataclass(frozen=True)
class Family:
    """What models of one architecture have in common.

    Attributes:
        architecture: transformers' name of it (`model_type`); of what it has no class for, the repository's own.
        sharing: how prefixes are shared. tests/test_architectures.py holds a toy of each to it.
    """

    architecture: str
    sharing: str = "trees"
    gated: bool = False  # the hub asks for an account that has accepted the licence
    own_code: bool = False  # transformers has no class for it


ALIBI = "one prefix (ALiBi)"
WINDOWS = "one prefix (sliding windows)"
UNTRIED = "not tried"
FAMILIES = {
    "llama2": Family("llama", gated=True),
    "llama3": Family("llama", gated=True),
    "smollm2": Family("llama"),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "mistral": Family("mistral"),
    "mpt": Family("mpt", ALIBI),
    "bloom": Family("bloom", ALIBI),
    "gemma2": Family("gemma2", WINDOWS, gated=True),
    "gemma3": Family("gemma3_text", WINDOWS, gated=True),
    "baichuan2": Family("baichuan", UNTRIED, own_code=True),
    "chatglm3": Family("chatglm", UNTRIED, own_code=True),
}

HEAD = (
    "Choice", "Model", "Size", "Architecture", "Layout", "Context", "LoRA targets", "Shared prefixes", "Gated",
    "Revision",
)  # fmt: skip

INTRODUCTION = """\
# Models

<!-- Written by `make docs` from conf/model/ and src/nlu_ppo/models/page.py: edit those, not this page. -->

`model=NAME` chooses one. This project's own machines reach no model hub: what is tried here is every
architecture of the first table, at toy size with random weights and a tokenizer of its family
([tests/test_architectures.py](../tests/test_architectures.py)), and real files of a small Llama in a local
directory.

- **Layout.** `chat` puts prompts into the model's own chat template. The instruction is the system turn;
  where a template refuses or drops that, the instruction opens the first user turn. The assistant's turn
  begins with the open tag: Qwen3 is asked without thinking, and a template that opens a thinking block
  whatever it is asked has it closed at once. A template that leaves texts out is an error. `plain` needs no
  template.
- **Context** in tokens, as the model's config has it, or (BLOOM) the length it was trained with. Longer
  prompts lose the end of their longest text.
- **LoRA targets.** The modules that `lora=paper` adapts: what PEFT chooses for the architecture, as paper A
  has it, so a newer PEFT changes no run. `lora=all_linear` takes all linear layers, `lora.targets=[...]` any
  others.
- **Shared prefixes.** `trees`: every common beginning of prompts is run once. `one prefix`: only what all
  rows of a batch begin with is, because attention that counts the columns of the cache (ALiBi) or sees a
  window of the last tokens can't be told of a tree. Both are exact ([more](concepts.md#shared-prefixes)). A
  run says its way and the reason when it has loaded the model, and `result.json` keeps it as
  `shared_prefixes`.
- **Revision.** The commit of the repository that is loaded, part of a run's key. `model.revision=main` takes
  the newest, which is also what a model that isn't pinned gets.
- **Weights** must be safetensors. **Gated** models, as far as known here, need a hub account that has
  accepted their licence.
- **Memory.** `dtype` is bfloat16 on CUDA and float32 on a CPU, unless `model.dtype` says otherwise.
"""

OWN_CODE = """\
## Models that bring code of their own

transformers has no class for these, the base models of paper B: their repositories ship Python code that
would run on your machine. So `model.trust_remote_code` is off, and a run ends with an error that says so,
before any of that code is run. Read the code at the pinned revision; `model.trust_remote_code=true` then runs
it. Nothing of this was tried here. What is known: the code was written for transformers of 2023. Baichuan-2's
tokenizer is reported to fail from 4.34 on ([issue](https://github.com/baichuan-inc/Baichuan2/issues/204)),
ChatGLM3's from 4.45 on ([issue](https://github.com/zai-org/ChatGLM3/issues/1324)), and transformers 5 is
newer still: expect to mend it, or take a conversion to an architecture that transformers has. Baichuan-2 is
published as `pytorch_model*.bin`, which this package doesn't read, since such files can run code: load it
once, `save_pretrained` it, and name that folder.
"""

LOCAL = """\
## A local directory

```
python train.py model=local model.path=DIR task=rte method=ppo
```

takes any directory that `save_pretrained` wrote, model and tokenizer: `config.json`, `*.safetensors` and the
tokenizer's files. Its name in folders and tables is the directory's. Layout, rates and modules are those of a
plain 7B model unless you say more: `model.layout=chat`, `model.learning_rate.ppo=1e-4`,
`model.lora_targets=[query_key_value]`. A copy of a model of the table keeps its settings:
`model=qwen2_5_7b_instruct model.path=DIR`. `model.path=DIR` alone is refused: the default is `model=tiny`,
whose learning rates are those of a toy, and the run would be called so.

`model=tiny` ships with the package. A model that reads more than text (Gemma 3 from 4B on) is refused, and so
is one that keeps a running state (Mamba and its like).
"""

ENCODERS = """\
## Encoders

Baselines with a new head, trained whole by `method=sft` ([more](concepts.md#encoders)).
"""


def family_of(name: str) -> Family:
    """What is known of a choice, by its name up to the first `_`.

    Raises:
        KeyError: nothing.
    """
    return FAMILIES[name.partition("_")[0]]


def page() -> str:
    """The whole page."""
    choices = [choice for choice in read_groups()["model"] if choice.name not in OWN]
    encoders = [choice for choice in choices if "layout" not in choice.values]  # they have no prompt
    decoders = [c for c in choices if c not in encoders]
    own_code = [c for c in decoders if family_of(c.name).own_code]
    parts = [
        INTRODUCTION,
        _decoders([c for c in decoders if c not in own_code]),
        OWN_CODE,
        _decoders(own_code),
    ]
    return "\n".join([*parts, LOCAL, ENCODERS, _encoders(encoders)])


def _decoders(choices: list[Choice]) -> str:
    return table(HEAD, _rows(choices))


def _rows(choices: list[Choice]) -> Iterator[tuple[str, ...]]:
    for choice in choices:
        family, values = family_of(choice.name), choice.values
        yield (
            f"`{choice.name}`",
            _link(values),
            _size(values["path"]),
            family.architecture,
            str(values["layout"]),
            f"{values['context_length']:,}",
            ", ".join(f"`{name}`" for name in values["lora_targets"]),
            family.sharing,
            "yes" if family.gated else "",
            _revision(values),
        )


def _encoders(choices: list[Choice]) -> str:
    rows = [(f"`{c.name}`", _link(c.values), prose(c.about), _revision(c.values)) for c in choices]
    return table(("Choice", "Model", "What it is", "Revision"), rows)


def _link(values: Any) -> str:
    return f"[{values['path'].partition('/')[2]}](https://huggingface.co/{values['path']})"


def _size(path: str) -> str:
    """Parameters, as the name has them: `bloom-7b1` has 7.1 billion."""
    whole, unit, tenth = re.search(r"(\d+(?:\.\d+)?)([bBmM])(\d?)", path.partition("/")[2]).groups()  # type: ignore[union-attr]
    return f"{whole}{'.' * bool(tenth)}{tenth}{unit.upper()}"


def _revision(values: Any) -> str:
    revision = values.get("revision")
    return f"`{revision[:8]}`" if revision else "not pinned"
