"""docs/ppo.md walks through one update: every number that it prints is computed again here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nlu_ppo.ppo import maths

PAGE = (Path(__file__).parents[1] / "docs" / "ppo.md").read_text(encoding="utf-8")
LENGTHS = (2, 3)
MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
NUMBER = r"[+-]?\d+\.\d+"


def rows(name: str) -> Tensor:
    """The numbers that the page prints behind `name`, one line for each of the two rows."""
    lines = [line for line in PAGE.splitlines() if re.match(rf"{re.escape(name)}  ", line)]
    assert len(lines) == 2, f"the page has {len(lines)} lines of {name!r}"
    found = torch.zeros(2, 3, dtype=torch.float64)
    for row, (line, length) in enumerate(zip(lines, LENGTHS, strict=True)):
        numbers = [float(n) for n in re.findall(NUMBER, line)]
        assert len(numbers) == length, line
        found[row, :length] = torch.tensor(numbers, dtype=torch.float64)
    return found


def single(name: str) -> float:
    """The number that the page prints for a quantity of the whole batch."""
    found = re.findall(rf"^{re.escape(name)}  +({NUMBER})", PAGE, re.MULTILINE)
    assert len(found) == 1, f"the page has {len(found)} lines of {name!r}"
    return float(found[0])


def agree(computed: Tensor, name: str) -> None:
    torch.testing.assert_close(computed, rows(name), rtol=0, atol=5.1e-5)


def test_every_number_of_the_page() -> None:
    logprobs, reference, values = rows("log p, policy"), rows("log p, reference"), rows("value")
    rewards = maths.token_rewards(
        torch.tensor([1.0, -1.0], dtype=torch.float64), logprobs, reference, MASK, kl_coef=0.2
    )
    agree(rewards, "reward")
    advantages, returns = maths.advantages_and_returns(rewards, values, MASK, gamma=1.0, lam=0.95)
    agree(advantages, "advantage")
    agree(returns, "return")
    white = maths.whiten(advantages, MASK)
    agree(white, "whitened")

    new_logprobs, new_values = rows("log p, new"), rows("value, new")
    ratio = ((new_logprobs - logprobs) * MASK).exp() * MASK
    agree(ratio, "ratio")
    terms = maths.loss_terms(
        new_logprobs, new_values, torch.zeros_like(values), logprobs, values, white, returns, MASK, 0.2, 0.2
    )
    tokens = float(terms.tokens)
    assert tokens == 5
    per_token = torch.maximum(-white * ratio, -white * ratio.clamp(0.8, 1.2)) * MASK
    agree(per_token, "policy loss")
    assert float(terms.policy) / tokens == pytest.approx(single("policy loss, mean"), abs=5.1e-5)
    assert float(terms.value) / tokens == pytest.approx(single("value loss, mean"), abs=5.1e-5)
    total = (float(terms.policy) + 0.1 * float(terms.value)) / tokens
    assert total == pytest.approx(single("loss"), abs=5.1e-5)
    assert float(terms.policy_clipped) / tokens == pytest.approx(single("clip fraction"), abs=5.1e-5)

    kl = maths.kl_k1(logprobs, reference, MASK)
    assert float(kl.mean()) == pytest.approx(single("KL, mean"), abs=5.1e-5)
    controller = maths.KLController(0.2, adaptive=True, target=6.0, horizon=10_000)
    controller.update(float(kl.mean()), samples=2)
    assert controller.coef == pytest.approx(single("KL weight, next"), abs=5.1e-7)
