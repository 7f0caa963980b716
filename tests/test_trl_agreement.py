"""One batch of PPO, beside TRL 1.12's trainer on the same model, data and draws: advantages, losses, updates.

TRL's trainer runs as it is, in an environment of its own (tests/trl_peer.py). What it drew is given to this
package's engine with the same weights and the same order of minibatches. Where the two define a thing
differently, the difference is named and converted here:

- TRL whitens with the sample variance, n - 1; this package with the population's, as arXiv 1909.08593 does
  (`by_sample_variance`): what is whitened differs by the factor sqrt((n - 1) / n).
- TRL adds 1e-7 to the temperature: ours is set to the same number.
- A completion that stops early is paid by TRL one position behind its last token, at a state of its own with a
  value and a value loss; here at its last token, and the state behind it is worth 0. With gamma = lambda = 1
  advantages are the same all the same. The value loss, and GAE at other gammas and lambdas, are converted in
  `test_completions_that_stop_early`.
- TRL's penalty for a missing end of sequence is a reward like any other here.
- TRL has no gradient clipping in this trainer: `max_grad_norm` is off.

Its approximate KL, 0.5 * mean(log ratio squared) over padding too, has no counterpart: ours is Schulman's k3.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from filelock import FileLock
from float64 import in_float64
from models import byte_tokenizer, random_policy

from benchmarks.contenders import python_of
from nlu_ppo.config import PPOConfig
from nlu_ppo.inference import decoder
from nlu_ppo.methods.optimization import build_optimizer
from nlu_ppo.models.policy import Policy
from nlu_ppo.ppo import maths, rollout
from nlu_ppo.ppo import update as updating
from nlu_ppo.ppo.forward import score_completions
from nlu_ppo.ppo.rollout import Rollouts, collect
from nlu_ppo.prompting import Prompt
from nlu_ppo.tasks.record import Example

ENVIRONMENT = "NLU_PPO_TRL_1_12"  # the folder of an environment with TRL 1.12

ROWS = 8
BASIC = {
    "seed": 3,
    "num_mini_batches": 2,
    "num_ppo_epochs": 2,
    "response_length": 6,
    "temperature": 0.7,
    "kl_coef": 0.2,
    "kl_estimator": "k1",
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.3,
    "gamma": 0.97,
    "lam": 0.9,
    "learning_rate": 0.01,  # so large that ratios and values meet their clips within the batch
    "whiten_rewards": False,
    "missing_eos_penalty": None,
}
STOPPED = BASIC | {"stop_token": "eos", "missing_eos_penalty": 0.5, "response_length": 9, "vf_coef": 0.0}


@dataclass(frozen=True)
class Case:
    """`tolerance` is relative, of losses; and of gradients and updates in the norm of each tensor."""

    settings: dict[str, Any]
    tolerance: float
    float64: bool = True
    rows: int = ROWS


CASES = {
    "float32": Case(BASIC, 1e-4, float64=False),
    "float64": Case(BASIC, 1e-9),
    "whitened rewards": Case(BASIC | {"whiten_rewards": True}, 1e-9, rows=16),
    "stopped": Case(STOPPED | {"gamma": 1.0, "lam": 1.0}, 1e-9),
    "stopped and discounted": Case(STOPPED, 1e-9),
}


WHOLE = [name for name in CASES if name != "stopped and discounted"]  # the engine from end to end


def trl_python() -> Path:
    chosen = os.environ.get(ENVIRONMENT)
    if chosen:
        return Path(chosen) / python_of("trl_1_12").relative_to(python_of("trl_1_12").parents[1])
    return python_of("trl_1_12")


pytestmark = pytest.mark.skipif(
    not trl_python().exists(),
    reason=f"TRL 1.12 is not installed at {trl_python().parents[1]}: `make bench-peers` installs it, or set "
    f"{ENVIRONMENT} to the folder of an environment that has it",
)


def prompts(rows: int) -> list[list[int]]:
    """A common beginning, then 1 to 9 tokens of one's own."""
    draw = torch.Generator().manual_seed(5)
    common = torch.randint(0, 256, (11,), generator=draw).tolist()
    return [common + torch.randint(0, 256, (1 + 5 * i % 9,), generator=draw).tolist() for i in range(rows)]


def initial_policy(float64: bool) -> Policy:
    """A random Llama with a random adapter and value head, that draws the end of sequence often, padding never."""
    policy = random_policy("llama")
    with torch.no_grad():
        policy.head.weight.mul_(7.0)
        policy.head.weight[policy.tokenizer.eos_token_id] *= 3.0
        policy.head.weight[policy.tokenizer.pad_token_id] = 0.0
    policy.add_value_head()
    with torch.no_grad():
        draw = torch.Generator().manual_seed(3)
        policy.value_head.linear.weight.normal_(0.0, 0.3, generator=draw)
        policy.value_head.linear.bias.fill_(0.1)
    if float64:
        policy.model.double()
        policy.value_head.double()
    return policy


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What TRL computed, by case. Workers share one run of it."""
    base = tmp_path_factory.getbasetemp()  # of one worker, where there are several
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trl_agreement"
    with FileLock(f"{folder}.lock"):
        if not all((folder / f"{name}.pt").exists() for name in CASES):
            run_trl(folder)
    return {name: torch.load(folder / f"{name}.pt", weights_only=False) for name in CASES}


def run_trl(folder: Path) -> None:
    policy = initial_policy(float64=False)
    base, model = folder / "model", policy.model
    model.save_pretrained(base / "adapter")
    policy.tokenizer.save_pretrained(base)
    torch.save(policy.value_head.linear.state_dict(), base / "value_head.pt")
    with model.disable_adapter():
        plain = model.unload()
    plain.save_pretrained(base)
    cases = [
        {"name": name, "float64": case.float64, "prompts": prompts(case.rows), "trl": case.settings}
        for name, case in CASES.items()
    ]
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "OMP_NUM_THREADS": "1"}
    command = [str(trl_python()), str(Path(__file__).with_name("trl_peer.py")), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"TRL's side failed:\n{done.stderr[-4000:]}")


# -- this package's side ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """What TRL drew, as this package holds it."""

    prompts: list[list[int]]
    completions: list[list[int]]
    rewards: list[float]


def drawn(record: dict[str, Any], case: Case) -> Drawn:
    """Completions end behind their stop token; their rewards are worked out from the rule again."""
    tokenizer = byte_tokenizer()
    queries = [[t for t in row if t != tokenizer.pad_token_id] for row in record["queries"].tolist()]
    completions = [
        row[: last + 1]
        for row, last in zip(record["responses"].tolist(), record["sequence_lengths"].tolist(), strict=True)
    ]
    penalty = case.settings["missing_eos_penalty"] or 0.0
    rewards = [
        (1.0 if c[-1] % 2 == 0 else -1.0) - (0.0 if tokenizer.eos_token_id in c else penalty)
        for c in completions
    ]
    return Drawn(queries, completions, rewards)


def our_config(case: Case) -> PPOConfig:
    trl = case.settings
    return PPOConfig(
        name="ppo",
        learning_rate=trl["learning_rate"],
        batch_size=case.rows,
        minibatch_size=case.rows // trl["num_mini_batches"],
        micro_batch_size=3,  # TRL runs a minibatch at once: parts of unequal size must add up to the same
        ppo_epochs=1,  # of one call of `update` here, which is one minibatch
        temperature=trl["temperature"] + 1e-7,
        clip_range=trl["cliprange"],
        value_clip_range=trl["cliprange_value"],
        value_coef=trl["vf_coef"],
        gamma=trl["gamma"],
        lam=trl["lam"],
        whiten_rewards=trl["whiten_rewards"],
    )


def collected(policy: Policy, found: Drawn, case: Case) -> Rollouts:
    """The engine's own rollout, but that TRL's completions are drawn, and scored as in an update."""
    prompts = [Prompt("", tuple(p)) for p in found.prompts]
    drawn = [decoder.Drawn(row, list(ids)) for row, ids in enumerate(found.completions)]
    with torch.no_grad():
        scored = score_completions(
            policy, found.prompts, found.completions, temperature=our_config(case).temperature
        )

    def judge(text: str, example: Example) -> tuple[float, None, bool]:
        return found.rewards[int(example.id)], None, False

    with (
        mock.patch.object(rollout, "draw", return_value=drawn),
        mock.patch.object(rollout, "score_drawn", return_value=scored),
        mock.patch.object(maths, "whiten", by_sample_variance),
    ):
        return collect(
            policy,
            prompts,
            [Example(str(i), {}, None) for i in range(len(found.prompts))],
            judge,
            our_config(case),
            max_new_tokens=case.settings["response_length"],
            kl_coef=case.settings["kl_coef"],
            generator=torch.Generator(),
        )


def by_sample_variance(x: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    """What the engine whitens by the population's variance, by the sample's."""
    n, kept = mask.sum(), 0.0 if shift_mean else maths.masked_mean(x, mask)
    return ((WHITEN(x, mask, shift_mean) - kept) * ((n - 1) / n).sqrt() + kept) * mask


WHITEN = maths.whiten


def float_type(case: Case) -> contextlib.AbstractContextManager[None]:
    return in_float64() if case.float64 else contextlib.nullcontext()


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative, in the norm of the tensor."""
    return ((ours - theirs).norm() / theirs.norm()).item()


def on_tokens(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """TRL fills padding with 1 or leaves what came there."""
    return x[:, : mask.shape[1]] * mask


@pytest.mark.parametrize("name", CASES)
def test_log_probabilities_and_values(name: str, records: dict[str, dict[str, Any]]) -> None:
    """TRL takes its log-probabilities from decoding and runs padded rows for the others; here it is the tree."""
    case, record = CASES[name], records[name]
    found, policy = drawn(record, case), initial_policy(case.float64)
    assert found.rewards == record["scores"].tolist()
    with float_type(case):
        rollouts = collected(policy, found, case)
    assert rollouts.logprobs.dtype == record["logprobs"].dtype
    assert (rollouts.mask.sum(1) == record["sequence_lengths"] + 1).all()
    for part in ("logprobs", "ref_logprobs", "values"):
        theirs = on_tokens(record[part], rollouts.mask)
        assert theirs.abs().max() > 0.1
        assert difference(getattr(rollouts, part), theirs) < (1e-12 if case.float64 else 1e-5), part
    assert difference(rollouts.ref_logprobs, rollouts.logprobs) > 0.1


@pytest.mark.parametrize("name", WHOLE)
def test_advantages_and_returns(name: str, records: dict[str, dict[str, Any]]) -> None:
    case, record = CASES[name], records[name]
    found, policy = drawn(record, case), initial_policy(case.float64)
    with float_type(case):
        rollouts = collected(policy, found, case)
    for part in ("advantages", "returns"):
        theirs = on_tokens(record[part], rollouts.mask)
        assert difference(getattr(rollouts, part), theirs) < case.tolerance, part


@pytest.mark.parametrize("name", WHOLE)
def test_losses_gradients_and_updates(name: str, records: dict[str, dict[str, Any]]) -> None:
    """Minibatch after minibatch of the batch, each from the weights that the one before it left.

    The first update is AdamW's first, which is little more than the gradient's sign: gradients are compared too.
    """
    case, record = CASES[name], records[name]
    found, policy, config = drawn(record, case), initial_policy(case.float64), our_config(case)
    optimizer = build_optimizer([p for _, p in policy.trainable()], config)
    clipped = [record[f"{which}_clipfrac_stats"].flatten() for which in ("pg", "vf")]
    assert len(record["steps"]) == case.settings["num_ppo_epochs"] * case.settings["num_mini_batches"]
    assert all(fractions.max() > 0.1 for fractions in clipped)
    close = partial(pytest.approx, rel=case.tolerance, abs=case.tolerance)
    with float_type(case):
        rollouts = collected(policy, found, case)
        for number, step in enumerate(record["steps"]):
            rows, before = step["mini_batch_inds"].tolist(), policy.state_dict()
            with mock.patch.object(updating, "_minibatches", return_value=[rows]):
                values = updating.update(policy, optimizer, rollouts, config, torch.Generator())
            after = policy.state_dict()
            assert values["ppo/loss"] == close(step["loss"].item())
            assert values["ppo/policy_loss"] == close(step["pg_loss"].item())
            assert values["ppo/clip_fraction"] == close(clipped[0][number].item())
            if name != "stopped":  # there TRL has one more state: see the next test
                assert values["ppo/value_loss"] == close(step["vf_loss"].item())
                assert values["ppo/value_clip_fraction"] == close(clipped[1][number].item())
                assert values["ppo/entropy"] == close(record["entropy_stats"].flatten()[number].item())
            if number == 0:
                assert values["ppo/first_ratio_error"] < (1e-12 if case.float64 else 1e-5)
            for parameter, value in policy.trainable():
                theirs = step["gradients"][parameter]
                if case.settings["vf_coef"] == 0.0 and parameter.startswith("value_head"):
                    assert value.grad.norm() == theirs.norm() == 0.0
                    continue
                assert difference(value.grad, theirs) < case.tolerance, parameter
                moved = step["after"][parameter] - step["before"][parameter]
                assert moved.abs().max() > 1e-3
                assert difference(after[parameter] - before[parameter], moved) < case.tolerance, parameter


@pytest.mark.parametrize("name", ["stopped", "stopped and discounted"])
def test_completions_that_stop_early(name: str, records: dict[str, dict[str, Any]]) -> None:
    """With TRL's state behind the last token, GAE, returns and the first value loss are TRL's."""
    case, record = CASES[name], records[name]
    found, policy, trl = drawn(record, case), initial_policy(case.float64), case.settings
    width = trl["response_length"]
    with in_float64(), torch.no_grad():
        # the value behind a completion's last token is that of the next one, whatever it is
        longer = [[*c, 0] if len(c) < width else c for c in found.completions]
        scored = score_completions(policy, found.prompts, longer, temperature=trl["temperature"] + 1e-7)
        lengths = torch.tensor([len(c) for c in found.completions])
        states, places = scored.mask, torch.arange(width)
        mask = (places < lengths.unsqueeze(1)).to(states.dtype)
        assert states.sum() - mask.sum() == (lengths < width).sum() >= 3
        torch.testing.assert_close(scored.values, record["values"], rtol=1e-12, atol=1e-12)
        penalty = maths.token_rewards(
            torch.zeros(case.rows), record["logprobs"], record["ref_logprobs"], mask, 0.2
        )
        rewards = penalty + torch.tensor(found.rewards).unsqueeze(1) * maths.last_token_mask(states)
        torch.testing.assert_close(rewards, record["rewards"], rtol=1e-12, atol=1e-12)
        advantages, returns = maths.advantages_and_returns(
            rewards, scored.values, states, trl["gamma"], trl["lam"]
        )
        advantages = by_sample_variance(advantages, mask)
        torch.testing.assert_close(advantages, record["advantages"], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(returns * states, record["returns"], rtol=1e-12, atol=1e-12)
        first = record["steps"][0]
        rows = first["mini_batch_inds"].tolist()
        nothing = torch.zeros_like(states[rows])
        terms = maths.loss_terms(
            *[nothing, scored.values[rows], nothing, nothing, scored.values[rows], nothing, returns[rows]],
            states[rows],
            trl["cliprange"],
            trl["cliprange_value"],
        )
        assert (terms.value / terms.tokens).item() == pytest.approx(first["vf_loss"].item(), rel=1e-9)
