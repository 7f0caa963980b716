"""GRPO and RLOO: TRL's steps are those of the papers, on our prompts, completions and rewards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from composing import run_of
from safetensors.torch import load_file

from nlu_ppo.inference.decoder import generate
from nlu_ppo.methods import mixing
from nlu_ppo.models.loading import load_policy
from nlu_ppo.prompting import CLOSE, Prompter
from nlu_ppo.run import execute
from nlu_ppo.tasks.answers import parse_answer
from nlu_ppo.tasks.splits import load_tasks

SMALL = ("task.limit.train=24", "task.limit.eval=6", "task.selection=0", "eval.bootstrap_samples=10",
         "eval.likelihood=false", "tracking=none", "task=toy_nli")  # fmt: skip


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_the_first_step_has_the_gradient_of_the_paper(tmp_path: Path, method: str) -> None:
    """The norm that the run logs is that of a gradient worked out here from the same completions.

    RLOO (arXiv 2402.14740): mean over completions of -(r - mean of the siblings' r) * log p(completion).
    GRPO (arXiv 2402.03300) with DAPO's average over tokens (2503.14476): -(r - mean) / (deviation + 1e-4) for every
    token, over all tokens of the batch. Before the first step, the ratio of new and old policy is 1.
    """
    size = 4
    run = run_of(
        tmp_path / "run", f"method={method}", *SMALL, "method.max_steps=1", "method.rollouts=4",
        "method.micro_batch_size=8",
        f"method.batch_size={size}", "lora.dropout=0.3", "reward.correct=2",
    )  # fmt: skip
    result = execute(run)
    (line,) = logged(run.folder)

    config = run.config
    policy = load_policy(config.model, config.lora, config.seed, "cpu")
    policy.model.eval()
    (data,) = load_tasks(config.task)
    prompter = Prompter(data.task, policy.tokenizer)
    limit = len(prompter.completion_ids("Contradiction" + CLOSE)) + 4
    numbers = mixing.epoch([range(len(data.train))], "proportional", 2.0, config.seed, number=0)[:size]
    examples = [data.train[n] for n in numbers for _ in range(4)]
    prompts = [p.ids for p in prompter.encode(examples)]
    source = torch.Generator().manual_seed(config.seed << 32)
    drawn = generate(policy, prompts, limit, temperature=1.0, generator=source, batch_size=len(prompts))
    rewards = []
    for example, ids in zip(examples, drawn, strict=True):
        text = policy.tokenizer.decode(ids, skip_special_tokens=True)
        answer = parse_answer(data.task, text) if CLOSE in text else None
        rewards.append(-3.0 if answer is None else 2.0 if answer == example.label else -1.0)
    assert line["train/reward"] == pytest.approx(sum(rewards) / len(rewards))
    assert line["train/completion_tokens"] == pytest.approx(sum(map(len, drawn)) / len(drawn))

    groups = torch.tensor(rewards).view(size, 4)
    if method == "rloo":
        advantages = groups - (groups.sum(1, keepdim=True) - groups) / 3
        scale = len(drawn)
    else:
        advantages = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
        scale = sum(map(len, drawn))
    assert advantages.abs().max() > 0
    loss = torch.zeros(())
    for prompt, ids, advantage in zip(prompts, drawn, advantages.flatten(), strict=True):
        logits = policy.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.log_softmax(-1).gather(1, torch.tensor(ids).unsqueeze(1))
        loss = loss - advantage * chosen.sum() / scale
    loss.backward()
    norm = torch.stack([p.grad.norm() for _, p in policy.trainable() if p.grad is not None]).norm()
    assert line["train/grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
    assert result["status"] == "finished"


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_full_fine_tuning_keeps_a_frozen_reference(tmp_path: Path, model_dir: Path, method: str) -> None:
    run = run_of(
        tmp_path / "run", f"method={method}", *SMALL, "method.max_steps=2", "method.kl_coef=0.1", "lora=none",
        "model=local", f"model.path={model_dir}", "method.learning_rate=1e-2",
    )  # fmt: skip
    execute(run)
    first, second = (line[f"{method}/kl"] for line in logged(run.folder))
    assert abs(first) < 1e-6
    assert abs(second) > 1e-4
    assert (run.folder / "adapter" / "model.safetensors").is_file()


def test_the_saved_adapter_is_the_policy_and_nothing_else(tmp_path: Path, model_dir: Path) -> None:
    run = run_of(
        tmp_path / "run", "method=rloo", *SMALL, "method.max_steps=1", "method.init=sft",
        "model=local", f"model.path={model_dir}",
    )  # fmt: skip
    execute(run)
    assert not any(path.is_dir() for path in (run.folder / "adapter").iterdir())
    names = load_file(run.folder / "adapter" / "adapter_model.safetensors").keys()
    assert not any(".ref." in name for name in names)


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_both_run_on_the_benchmark_s_own_files(
    tmp_path: Path, model_dir: Path, shared: Path, method: str
) -> None:
    run = run_of(
        tmp_path / "run", f"method={method}", *SMALL, "task=sst2", "task.source=raw",
        f"task.data_dir={shared / 'data'}", "method.max_steps=2", "model=local", f"model.path={model_dir}",
    )  # fmt: skip
    assert execute(run)["n"] == 6
    assert [line["examples"] for line in logged(run.folder)] == [
        step * run.config.method.batch_size  # type: ignore[attr-defined]
        for step in (1, 2)
    ]
