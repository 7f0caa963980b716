"""Makes the tiny model anew: `python -m nlu_ppo.models.tiny.build [--out DIR] [--steps N]`.

Tokenizer and weights are trained from scratch on the text of `corpus.py`, with fixed seeds. In the end the toy
tasks' validation sets are answered without and with demonstrations, and `report.json` keeps the numbers. The
examples of the toy tasks are never trained on; the build refuses a corpus that contains one.

Two builds with the same number of steps and of threads (`OMP_NUM_THREADS=1` made the shipped weights) on the
same processor give the same weights. `--minutes 1` stops by the clock and gives a quick, bad model.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import Progress
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nlu_ppo.config import EvalConfig, ModelConfig
from nlu_ppo.evaluation import evaluate
from nlu_ppo.methods.few_shot import demonstrations
from nlu_ppo.models.loading import load_policy
from nlu_ppo.models.tiny import PATH
from nlu_ppo.models.tiny.concepts import LATE
from nlu_ppo.models.tiny.corpus import GLOSSARY, documents
from nlu_ppo.prompting import CLOSE, OPEN, Prompter
from nlu_ppo.tasks.toy import TOY_TASKS, generate

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
VOCABULARY, CONTEXT = 1800, 1024
# A capitalised word never swallows the blank before it, so that an answer word is one and the same token
# in the format line and behind the open tag: copying it is then something that a small model can learn.
WORDS = Regex(r"</?[A-Z][a-z]+>|[A-Z][a-z]+| ?[a-z]+| ?[0-9]|\n+| ?[^\sA-Za-z0-9<]+|\s+|.")
ANSWER_WEIGHT, TEXT_WEIGHT, TEXT_SHARE = 1.0, 0.1, 0.2
RATE, STEPS = 2e-3, 4500
# Small batches: within minutes, more steps teach more than smoother ones.
ROWS, LENGTH = 8, 320
LONG_ROWS, LONG = 3, 1000  # every tenth step, so that long prompts work too


# -- tokenizer --------------------------------------------------------------------------------------------


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE on a sample of the corpus: every byte has a token, so nothing is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(WORDS, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The glossary's words are rare in the stream; repeated, they get tokens of their own, not strings of
    # letters.
    tokenizer.train_from_iterator(chain(islice(documents(seed=1), 20000), GLOSSARY * 100), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


# -- model ------------------------------------------------------------------------------------------------


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # The usual start (0.02 everywhere) is far too quiet for so narrow a model: with this one, the answers
        # leave chance level after a third of the steps.
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.1 if "embed" in name else weight.shape[1] ** -0.5)
    return model


def answer_mask(ids: Sequence[int], opening: int, closing: int, line_break: int) -> list[bool]:
    """True at tokens that a model has to produce after an open tag, the closing tag among them. The tag
    of the format line isn't meant: real ones begin a line."""
    mask, inside = [], False
    for before, token in zip((line_break, *ids), ids, strict=False):
        mask.append(inside)
        if token == closing:
            inside = False
        elif token == opening and before == line_break:
            inside = True
    return mask


def rows(
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    length: int,
    shots: Sequence[int],
    done: Callable[[], float],
) -> Iterator[tuple[list[int], list[bool]]]:
    """Documents packed into rows of `length` tokens and one; what doesn't fit is cut, and each row begins a
    document."""
    opening, closing, line_break = (
        tokenizer(mark, add_special_tokens=False)["input_ids"] for mark in (OPEN, CLOSE, "\n")
    )
    assert len(opening) == len(closing) == len(line_break) == 1, "the tags must be single tokens"
    stream = documents(seed, shots, done)
    while True:
        ids: list[int] = []
        while len(ids) <= length:
            ids += [*tokenizer(next(stream))["input_ids"], tokenizer.eos_token_id]
        ids = ids[: length + 1]
        yield ids, answer_mask(ids, opening[0], closing[0], line_break[0])


def loss_on(model: LlamaForCausalLM, ids: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Cross-entropy on all answer tokens and, at a lower weight, on a fifth of the others (the head is a
    good part of the cost, and the others teach less)."""
    hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state
    wanted, is_answer = ids[:, 1:], answers[:, 1:]
    chosen = is_answer | (torch.rand(wanted.shape) < TEXT_SHARE)
    losses = F.cross_entropy(model.lm_head(hidden[chosen]), wanted[chosen], reduction="none")
    on_answer = is_answer[chosen]
    # A batch may hold no answer at all, and the mean of nothing is NaN.
    return (
        ANSWER_WEIGHT * losses[on_answer].sum() / max(1, int(on_answer.sum()))
        + TEXT_WEIGHT * losses[~on_answer].mean()
    )


def schedule(step: int, done: float) -> float:
    """Learning-rate factor: a short warm-up, then a decay before the last things come in, and another after."""
    if done < LATE:
        return min(1.0, step / 50 + 0.02) * min(1.0, (1 - done / LATE) / 0.4 + 0.02)
    return 0.6 * min(1.0, (1 - done) / (1 - LATE) / 0.5 + 0.02)


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int, minutes: float | None = None
) -> int:
    """Trains until the steps (or the minutes, if given) are used up; returns the tokens seen."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    begin, step, seen, smooth, done = time.monotonic(), 0, 0, 0.0, 0.0
    short = rows(tokenizer, 2, LENGTH, (0, 0, 4, 8), lambda: done)
    long = rows(tokenizer, 3, LONG, (8, 12, 16), lambda: done)
    model.train()
    with Progress() as bar:
        task = bar.add_task("training", total=1.0)
        while done < 1.0:
            batch = list(islice(long, LONG_ROWS) if step % 10 == 9 else islice(short, ROWS))
            ids, answers = torch.tensor([b[0] for b in batch]), torch.tensor([b[1] for b in batch])
            loss = loss_on(model, ids, answers)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.param_groups[0]["lr"] = RATE * schedule(step, done)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step, seen = step + 1, seen + ids.numel()
            smooth = loss.item() if step == 1 else 0.99 * smooth + 0.01 * loss.item()
            done = (time.monotonic() - begin) / (60 * minutes) if minutes else step / steps
            bar.update(task, completed=done, description=f"step {step}, loss {smooth:.3f}")
    return seen


# -- report -----------------------------------------------------------------------------------------------


def evaluate_on_toys(folder: Path, draws: int = 3) -> dict[str, Any]:
    """Both toy tasks' validation sets, zero-shot and few-shot, percent.

    Few-shot numbers are means over several draws of the demonstrations: with a single draw they would say
    more about the draw than about the model.
    """
    policy = load_policy(
        ModelConfig(name="tiny", path=str(folder), dtype="float32"), None, seed=0, device="cpu"
    )
    report: dict[str, Any] = {}
    for name, task in TOY_TASKS.items():
        examples, train, report[name] = generate(name, "validation"), generate(name, "train"), {}
        for shots in (0, 4, 8):
            found = []
            for draw in range(draws if shots else 1):
                shown = demonstrations(train, shots, "balanced", draw) if shots else []
                prompter = Prompter(task, policy.tokenizer, demonstrations=shown)
                found.append(evaluate(policy, prompter, examples, EvalConfig(bootstrap_samples=10)))
            report[name][f"{shots}_shot"] = {
                "score": round(mean(f.score for f in found), 1),
                "likelihood": round(mean(f.likelihood or 0.0 for f in found), 1),
                "unparsable": round(mean(100 * f.unparsable / f.n for f in found), 1),
            }
    return report


def check_corpus(documents_to_check: int = 20000) -> None:
    """No text of a toy task may occur in what the model reads."""
    lines = {line for text in islice(documents(2), documents_to_check) for line in text.split("\n")}
    texts = {line.partition(": ")[2] for line in lines}
    for name in TOY_TASKS:
        for split in ("train", "validation", "test"):
            for example in generate(name, split):
                if next(iter(example.fields.values())) in texts:
                    raise ValueError(f"{name}: the text of {example.id} is in the corpus")


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, saves and reports."""
    parser = argparse.ArgumentParser(description="train the tiny model from scratch")
    parser.add_argument("--out", type=Path, default=PATH, help="where to put weights, tokenizer and report")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps")
    parser.add_argument("--minutes", type=float, default=None, help="training time, in place of steps")
    arguments = parser.parse_args(argv)
    check_corpus()
    tokenizer = train_tokenizer()
    model = new_model(tokenizer)
    begin = time.monotonic()
    seen = train(model, tokenizer, arguments.steps, arguments.minutes)
    minutes = (time.monotonic() - begin) / 60
    arguments.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    report = {
        "steps": arguments.steps if arguments.minutes is None else None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": seen,
        "minutes": round(minutes, 1),
        "threads": torch.get_num_threads(),
        "validation": evaluate_on_toys(arguments.out),
    }
    (arguments.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
