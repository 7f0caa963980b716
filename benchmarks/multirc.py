"""The case with real texts: MultiRC's raw files, where neighbouring questions share a passage."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from benchmarks.workload import DATA_CASE, Workload
from nlu_ppo.prompting import Prompter
from nlu_ppo.tasks import get_task, read_split

LONGEST = 768  # tokens of a prompt; longer passages are cut, as a run would


def multirc(data_dir: str | Path, split: str = "validation") -> Workload:
    """One batch of neighbouring items: two or three passages, each with several questions and answers.

    The embedded model's tokenizer gives the ids; the measured model is the reference's, whose vocabulary is
    larger.
    """
    from transformers import AutoTokenizer

    import nlu_ppo.models.tiny as tiny

    made = Workload(
        DATA_CASE,
        f"MultiRC, {split}, 16 neighbouring items, prompts of at most {LONGEST} tokens (the embedded tokenizer's)",
    )
    task = get_task("multirc")
    tokenizer = AutoTokenizer.from_pretrained(Path(tiny.__file__).parent)
    prompter = Prompter(task, tokenizer, max_prompt_tokens=LONGEST)
    examples = list(islice(read_split(task, split, "raw", data_dir), made.batch_size))
    prompts = tuple(tuple(prompt.ids) for prompt in prompter.encode(examples))
    return Workload(made.name, made.about, prompts=prompts)
