"""PPO's formulas against numbers worked out by hand, and against plain loops."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from nlu_ppo.ppo import maths

ONES = torch.ones(1, 3)


def close(got: torch.Tensor, expected: list, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(got, tensor(expected, dtype=got.dtype), rtol=0, atol=tolerance)


def test_score_lands_on_the_last_token_and_the_penalty_on_every_token() -> None:
    mask_BT = tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    logprobs = tensor([[-1.0, -2.0, 0.0], [-0.5, 0.0, 0.0], [-1.0, -1.0, -1.0]])
    reference = tensor([[-1.5, -1.0, 0.0], [-0.5, 0.0, 0.0], [-2.0, -1.0, 0.0]])
    got = maths.token_rewards(tensor([1.0, -3.0, 2.0]), logprobs, reference, mask_BT, kl_coef=0.2)
    # row 0: -0.2*(0.5), -0.2*(-1)+1; row 1, a one-token answer: -0.2*0-3; row 2: -0.2*1, 0, -0.2*(-1)+2
    close(got, [[-0.1, 1.2, 0.0], [-3.0, 0.0, 0.0], [-0.2, 0.0, 2.2]])


def test_advantages_of_three_tokens_by_hand() -> None:
    rewards, values = tensor([[0.0, 0.0, 1.0]]), tensor([[0.5, 0.4, 0.8]])
    # gamma 0.9, lambda 0.5: deltas 0.9*0.4-0.5=-0.14, 0.9*0.8-0.4=0.32, 1-0.8=0.2
    # A2=0.2, A1=0.32+0.45*0.2=0.41, A0=-0.14+0.45*0.41=0.0445
    advantages, returns = maths.advantages_and_returns(rewards, values, ONES, gamma=0.9, lam=0.5)
    close(advantages, [[0.0445, 0.41, 0.2]])
    close(returns, [[0.5445, 0.81, 1.0]])


def test_advantages_ignore_what_stands_on_padding() -> None:
    rewards, values = tensor([[1.0, 99.0, 99.0]]), tensor([[0.25, 99.0, 99.0]])
    advantages, returns = maths.advantages_and_returns(rewards, values, tensor([[1.0, 0.0, 0.0]]), 1.0, 0.95)
    close(advantages, [[0.75, 0.0, 0.0]])
    close(returns, [[1.0, 0.0, 0.0]])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 1000),
)
def test_advantages_equal_the_definition(lengths: list[int], gamma: float, lam: float, seed: int) -> None:
    """Against the sum over l of (gamma*lambda)^l * delta_{t+l}, written out; also rows of padding only."""
    width = max(*lengths, 1)
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(len(lengths), width, generator=generator, dtype=torch.float64)
    values = torch.randn(len(lengths), width, generator=generator, dtype=torch.float64)
    mask = tensor([[1.0 if t < n else 0.0 for t in range(width)] for n in lengths], dtype=torch.float64)
    got, returns = maths.advantages_and_returns(rewards, values, mask, gamma, lam)
    for b, n in enumerate(lengths):
        value = [values[b, t].item() if t < n else 0.0 for t in range(width + 1)]
        delta = [rewards[b, t].item() + gamma * value[t + 1] - value[t] for t in range(n)]
        for t in range(width):
            expected = sum((gamma * lam) ** k * delta[t + k] for k in range(n - t)) if t < n else 0.0
            assert got[b, t].item() == pytest.approx(expected, abs=1e-9)
            assert returns[b, t].item() == pytest.approx(expected + value[t] if t < n else 0.0, abs=1e-9)


def test_whitening_by_hand() -> None:
    x, mask = tensor([[1.0, 1.0], [1.0, 0.0]]), torch.ones(2, 2)
    # mean 0.75, population variance 0.1875, deviation 0.4330
    close(maths.whiten(x, mask), [[0.57735, 0.57735], [0.57735, -1.73205]], 1e-4)
    close(maths.whiten(x, mask, shift_mean=False), [[1.32735, 1.32735], [1.32735, -0.98205]], 1e-4)


@pytest.mark.parametrize("x", [[[2.0, 7.0]], [[3.0, 3.0]]])
def test_whitening_one_valid_token_or_equal_ones_is_zero_not_nan(x: list) -> None:
    mask = tensor([[1.0, 0.0]]) if x == [[2.0, 7.0]] else torch.ones(1, 2)
    close(maths.whiten(tensor(x), mask), [[0.0, 0.0]], 1e-3)
    assert torch.isfinite(maths.whiten(tensor(x), torch.zeros(1, 2))).all()


def test_losses_by_hand() -> None:
    """Ratio inside the clip, above it with a positive advantage, below it with a negative one."""
    old = tensor([[0.0, 0.0, 0.0]])
    ratio = tensor([[1.1, 1.5, 0.5]])
    advantages = tensor([[2.0, 1.0, -1.0]])
    values, old_values, returns = (
        tensor([[1.0, 2.0, 0.0]]),
        tensor([[1.0, 1.0, 1.0]]),
        tensor([[2.0, 3.0, 0.0]]),
    )
    terms = maths.loss_terms(
        ratio.log(), values, tensor([[0.3, 0.2, 0.1]]), old, old_values, advantages, returns, ONES, 0.2, 0.2
    )
    # policy: -2*1.1, max(-1.5, -1.2), max(0.5, 0.8)
    assert terms.policy.item() == pytest.approx(-2.2 - 1.2 + 0.8, abs=1e-6)
    # value: errors 1, 1, 0; clipped values 1.0, 1.2, 0.8 -> errors 1, 3.24, 0.64; the larger ones, halved
    assert terms.value.item() == pytest.approx(0.5 * (1 + 3.24 + 0.64), abs=1e-6)
    assert terms.entropy.item() == pytest.approx(0.6, abs=1e-6)
    assert (terms.policy_clipped.item(), terms.value_clipped.item(), terms.tokens.item()) == (2, 2, 3)
    k3 = sum(r - 1 - math.log(r) for r in (1.1, 1.5, 0.5))
    assert terms.approx_kl.item() == pytest.approx(k3, abs=1e-5)


def test_losses_leave_padding_out() -> None:
    mask = tensor([[1.0, 0.0, 0.0]])
    wild = tensor([[0.0, 50.0, -50.0]])
    terms = maths.loss_terms(wild, wild, wild * 0, wild * 0, wild * 0, wild, wild, mask, 0.2, 0.2)
    assert all(
        math.isfinite(v.item()) and v.item() == 0 for v in (terms.policy, terms.value, terms.approx_kl)
    )


def test_losses_of_micro_batches_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    arguments = [torch.randn(6, 4, generator=generator) for _ in range(7)]
    mask = (torch.rand(6, 4, generator=generator) > 0.3).float()
    whole = maths.loss_terms(*arguments, mask, 0.2, 0.2)
    parts = [
        maths.loss_terms(*(a[rows] for a in arguments), mask[rows], 0.2, 0.2)
        for rows in ([0, 1], [2, 3, 4], [5])
    ]
    for name in ("policy", "value", "entropy", "tokens"):
        total = sum(getattr(p, name).item() for p in parts)
        assert total == pytest.approx(getattr(whole, name).item(), rel=1e-5)


def test_kl_estimators_by_hand() -> None:
    logprobs, reference = tensor([[-1.0, -2.0]]), tensor([[-1.5, -1.0]])
    mask = torch.ones(1, 2)
    close(maths.kl_k1(logprobs, reference, mask), [-0.5])
    expected = (math.exp(-0.5) - 1 + 0.5) + (math.exp(1.0) - 1 - 1.0)
    close(maths.kl_k3(logprobs, reference, mask), [expected])


def test_kl_estimators_agree_with_the_exact_kl_in_the_mean() -> None:
    """Samples from p against KL(p || q) summed over the whole vocabulary."""
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(8, generator=generator).log_softmax(0)
    q = torch.randn(8, generator=generator).log_softmax(0)
    exact = (p.exp() * (p - q)).sum().item()
    drawn = torch.multinomial(p.exp(), 200_000, replacement=True, generator=generator).unsqueeze(1)
    mask = torch.ones_like(drawn, dtype=torch.float32)
    for estimator in (maths.kl_k1, maths.kl_k3):
        assert estimator(p[drawn], q[drawn], mask).mean().item() == pytest.approx(exact, rel=0.02)


def test_explained_variance() -> None:
    returns = tensor([[1.0, 2.0, 3.0]])
    assert maths.explained_variance(returns, returns, ONES) == pytest.approx(1.0)
    assert maths.explained_variance(torch.zeros(1, 3), returns, ONES) == pytest.approx(0.0)
    assert maths.explained_variance(-returns, returns, ONES) == pytest.approx(-3.0)
    assert maths.explained_variance(returns, torch.ones(1, 3), ONES) == 0.0


def test_adaptive_kl_weight_by_hand() -> None:
    controller = maths.KLController(0.2, adaptive=True, target=6.0, horizon=10_000)
    controller.update(12.0, 16)  # relative error 1, clipped to 0.2
    assert controller.coef == pytest.approx(0.2 * (1 + 0.2 * 16 / 10_000))
    controller.update(0.0, 100)  # relative error -1, clipped to -0.2
    assert controller.coef == pytest.approx(0.2 * (1 + 0.2 * 16 / 10_000) * (1 - 0.2 * 100 / 10_000))
    fixed = maths.KLController(0.2, adaptive=False, target=6.0, horizon=10_000)
    fixed.update(12.0, 16)
    assert fixed.coef == 0.2


def test_rewards_scaled_by_their_running_deviation_by_hand() -> None:
    scaler = maths.RewardScaler("running")
    # 1, 3: mean 2, sample variance ((1-2)^2 + (3-2)^2) / 1 = 2
    assert scaler([1.0, 3.0]) == pytest.approx([1 / math.sqrt(2), 3 / math.sqrt(2)])
    # 1, 3, 5, 7: mean 4, sample variance (9 + 1 + 1 + 9) / 3 = 20/3; the new ones only are scaled
    assert scaler([5.0, 7.0]) == pytest.approx([5 / math.sqrt(20 / 3), 7 / math.sqrt(20 / 3)])
    standardized = maths.RewardScaler("standardized")
    standardized([1.0, 3.0])
    assert standardized([5.0, 7.0]) == pytest.approx([1 / math.sqrt(20 / 3), 3 / math.sqrt(20 / 3)])
    assert maths.RewardScaler("none")([1.0, 3.0]) == [1.0, 3.0]


def test_rewards_that_never_differed_are_not_divided() -> None:
    assert maths.RewardScaler("running")([-3.0]) == [-3.0]
    scaler = maths.RewardScaler("running")
    assert [scaler([-3.0, -3.0]) for _ in range(3)] == [[-3.0, -3.0]] * 3
    assert maths.RewardScaler("standardized")([-3.0, -3.0]) == [0.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=5), min_size=1, max_size=6))
def test_running_moments_equal_those_of_all_numbers(batches: list[list[float]]) -> None:
    moments = maths.RunningMoments()
    for batch in batches:
        moments.update(batch)
    numbers = [x for batch in batches for x in batch]
    assert moments.mean == pytest.approx(statistics.fmean(numbers), abs=1e-9)
    expected = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    assert moments.deviation == pytest.approx(expected, rel=1e-6, abs=1e-6)
