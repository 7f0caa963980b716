"""Times the three ways to run prompts: plain padded rows, one shared prefix, the tree of prefixes.

    python benchmarks/tree_forward.py [--rounds 5] [--only TEXT] [--model tiny] [--raw DIR]

PPO's forward and backward over a micro-batch; with `--raw`, a folder with the benchmarks' own files, also the
evaluation of MultiRC and ReCoRD, answers and likelihoods. The model is a random Llama (hidden 512, 8 layers, 8 heads,
vocabulary 32,000) with LoRA r=16 on q and v, or the shipped tiny one; float32, one CPU thread. The ways take turns,
and the median of the processor's seconds is printed, which other programs on the machine disturb least.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from nlu_ppo.config import TaskConfig
from nlu_ppo.inference.decoder import generate, score_answers
from nlu_ppo.inference.reading import reads_trees
from nlu_ppo.models.locate import resolve_path
from nlu_ppo.models.policy import Policy
from nlu_ppo.ppo.forward import score_completions
from nlu_ppo.prompting import Prompter
from nlu_ppo.tasks import get_task
from nlu_ppo.tasks.splits import load_task

Rows = tuple[list[list[int]], list[list[int]]]  # prompts and completions
VOCABULARY = 32_000
TINY = resolve_path("tiny")


def model() -> Policy:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=1024,
    )
    return adapted(LlamaForCausalLM(config))


def tiny() -> Policy:
    return adapted(AutoModelForCausalLM.from_pretrained(TINY))


def adapted(base: PreTrainedModel) -> Policy:
    lora = get_peft_model(base.requires_grad_(False), LoraConfig(r=16, target_modules=["q_proj", "v_proj"]))
    policy = Policy(lora.eval(), AutoTokenizer.from_pretrained(TINY), 1024)
    policy.add_value_head()
    return policy


def rows(common: int, lengths: list[int], answer: int = 6) -> Rows:
    """Prompts of these lengths that begin alike, and completions."""
    generator = torch.Generator().manual_seed(1)

    def draw(n: int) -> list[int]:
        return torch.randint(3, 1700, (n,), generator=generator).tolist()

    first = draw(common)
    return [first + draw(n - common) for n in lengths], [draw(answer) for _ in lengths]


def nested(instruction: int, passages: int, passage: int, answers: int, own: int) -> Rows:
    """Instruction, then passages, then answers to each of them."""
    generator = torch.Generator().manual_seed(2)

    def draw(n: int) -> list[int]:
        return torch.randint(3, 1700, (n,), generator=generator).tolist()

    first = draw(instruction)
    texts = [first + draw(passage) for _ in range(passages)]
    prompts = [text + draw(own) for text in texts for _ in range(answers)]
    return prompts, [draw(4) for _ in prompts]


CASES: dict[str, Callable[[], Rows]] = {
    "reference: prompt 128, 90 common, 8 rows": lambda: rows(90, [128] * 8),
    "reference: prompt 128, 90 common, 16 rows": lambda: rows(90, [128] * 16),
    "ragged suffixes, 90 common, 8 rows": lambda: rows(90, [100, 107, 114, 121, 128, 135, 142, 149]),
    "prompt 256, 90 common, 8 rows": lambda: rows(90, [256] * 8),
    "prompt 256, 180 common, 8 rows": lambda: rows(180, [256] * 8),
    "nothing common, prompt 128, 8 rows": lambda: rows(0, [128] * 8),
    "nothing common, ragged, 8 rows": lambda: rows(0, [60, 80, 100, 120, 140, 160, 180, 200]),
    "one row of 256": lambda: rows(0, [256]),
    "reference, 64 rows": lambda: rows(90, [128] * 64),
    "passages: 60 + 2 x (300 + 8 x 25)": lambda: nested(60, 2, 300, 8, 25),
    "rollouts: 4 prompts of 128, 90 common, 4 each": lambda: nested(90, 4, 38, 4, 0),
}


def step(policy: Policy, batch: Rows, share: bool) -> None:
    scored = score_completions(policy, *batch, share_prefix=share)
    (scored.logprobs.sum() + scored.values.sum() + scored.entropy.sum()).backward()


def compare(policy: Policy, ways: dict[str, Callable[[], object]], rounds: int) -> str:
    """Median seconds of each way, and what the tree takes of the other ones' time."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    able = reads_trees(policy)
    for _ in range(rounds + 1):
        for name, run in ways.items():
            policy.reads_trees = able and name == "tree"
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    policy.reads_trees = able
    median = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    shown = [f"{name} {value:7.3f} s" for name, value in median.items()]
    shown += [f"tree/{name} {median['tree'] / value:.2f}" for name, value in median.items() if name != "tree"]
    return "  ".join(shown)


def training(policy: Policy, batch: Rows, rounds: int) -> str:
    ways = {"plain": False, "prefix": True, "tree": True}
    return compare(
        policy, {n: functools.partial(step, policy, batch, share) for n, share in ways.items()}, rounds
    )


def evaluation(policy: Policy, name: str, raw: Path, rounds: int) -> str:
    """Greedy answers to the first examples of a task, and the likelihoods of all legal ones."""
    task = get_task(name)
    examples = load_task(task, TaskConfig(name=name, source="raw", data_dir=str(raw))).evaluation[
        "validation"
    ]
    prompter = Prompter(task, AutoTokenizer.from_pretrained(TINY))
    prompter.max_prompt_tokens = policy.context_length - 32
    few = examples[:48]
    prompts = [p.ids for p in prompter.encode(few)]
    answers = [[prompter.completion_ids(prompter.close(a)) for a in task.answers(e)] for e in few]

    def run() -> None:
        generate(policy, prompts, 8, batch_size=16)
        score_answers(policy, prompts, answers, batch_size=32)

    return compare(policy, {"prefix": run, "tree": run}, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="cases with this in their names")
    parser.add_argument("--model", choices=("random", "tiny"), default="random")
    parser.add_argument("--raw", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy = model() if options.model == "random" else tiny()
    for name, make in CASES.items():
        if options.only in name:
            print(f"{name:48s} {training(policy, make(), options.rounds)}", flush=True)
    for name in ("multirc", "record") if options.raw else ():
        if options.only in name:
            print(
                f"{'evaluation of ' + name:48s} {evaluation(policy, name, options.raw, options.rounds)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
