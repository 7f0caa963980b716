"""Which attention kernel a tree takes: one that works is told from one that raises or errs, and what is asked of CUDA's
kernels fits their signatures. The kernels themselves need a GPU; torch's own rules for their shapes don't."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from nlu_ppo.inference.fused import CPU, EFFICIENT, FLASH, ON_CUDA, Kernel, choose, fault_of
from nlu_ppo.inference.tree_attention import WRITTEN_OUT

HERE = torch.device("cpu")
TYPES = [torch.float32, torch.bfloat16]


def by_autograd(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(q k^T scale) v by its definition, and the logarithms of the sums."""
    scores = q @ k.mT * scale
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


@pytest.mark.parametrize("causal", [True, False])
def test_written_out_is_attention(causal: bool) -> None:
    """Forward and backward against autograd through the definition, in float64."""
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(2, 3, 7, 8, dtype=torch.float64) for _ in range(4))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out, logs = by_autograd(*leaves, causal, 0.3)
    out.backward(grad)
    found, sums = WRITTEN_OUT.forward(q, k, v, causal, 0.3)
    assert torch.allclose(found, out, rtol=1e-12)
    assert torch.allclose(sums, logs, rtol=1e-12)
    grads = WRITTEN_OUT.backward(grad, q, k, v, found, sums, causal, 0.3)
    for mine, leaf in zip(grads, leaves, strict=True):
        assert torch.allclose(mine, leaf.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("numbers", [8, 64, 128])
def test_a_right_kernel_is_taken(dtype: torch.dtype, numbers: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert fault_of(WRITTEN_OUT, WRITTEN_OUT, HERE, dtype, numbers) is None
    assert choose([CPU], WRITTEN_OUT, HERE, dtype, numbers) is CPU
    (line,) = caplog.messages
    assert "torch's flash kernel" in line


def _raises(*args: object) -> tuple[Tensor, Tensor]:
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")


def _unscaled(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    return CPU.forward(q, k, v, causal, 1.0)


def _never_causal(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    return CPU.forward(q, k, v, False, scale)


def _in_bits(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    out, logs = CPU.forward(q, k, v, causal, scale)
    return out, logs / torch.log(torch.tensor(2.0))


def _aligned_sums(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    out, logs = CPU.forward(q, k, v, causal, scale)
    return out, torch.nn.functional.pad(logs, (0, -logs.shape[-1] % 32))


def _not_a_number(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    out, logs = CPU.forward(q, k, v, causal, scale)
    return out * torch.nan, logs


def _keys_for_values(*args: object) -> tuple[Tensor, ...]:
    dq, dk, dv = CPU.backward(*args)
    return dq, dv, dk


def _sum_of_this_part(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor, *more: object
):
    """A backward pass that computes its own sums, and so knows nothing of the other parts, nor of padding."""
    return CPU.backward(grad, q, k, v, *CPU.forward(q, k, v, *more), *more)  # type: ignore[arg-type]


WRONG = {
    "raises": (replace(CPU, forward=_raises), "Ampere"),
    "raises in backward": (replace(CPU, backward=_raises), "Ampere"),
    "no scale": (replace(CPU, forward=_unscaled), "off by"),
    "sees too much": (replace(CPU, forward=_never_causal), "causal is off by"),
    "sums in base 2": (replace(CPU, forward=_in_bits), "sum is off by"),
    "sums of another shape": (
        replace(CPU, forward=_aligned_sums),
        r"shape \(2, 3, 64\) in place of \(2, 3, 37\)",
    ),
    "nan": (replace(CPU, forward=_not_a_number), "off by nan"),
    "gradients exchanged": (replace(CPU, backward=_keys_for_values), "gradient of keys"),
    "sums of its own": (replace(CPU, backward=_sum_of_this_part), "gradient of"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("dtype", TYPES)
def test_a_wrong_kernel_is_left_alone(
    wrong: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    kernel, words = WRONG[wrong]
    assert choose([kernel], WRITTEN_OUT, HERE, dtype, 16) is WRITTEN_OUT
    (line,) = caplog.messages
    assert "written out" in line
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(line)
    caplog.clear()
    assert choose([kernel, CPU], WRITTEN_OUT, HERE, dtype, 16) is CPU  # the next one may do


@pytest.mark.parametrize("dtype", ON_CUDA)
def test_cudas_kernels_take_what_they_are_given(dtype: torch.dtype) -> None:
    """Arity, order and shapes by torch's own rules for tensors without data."""
    for kernel in ON_CUDA[dtype]:
        assert kernel in (FLASH, EFFICIENT)
        for queries, keys, causal in ((37, 37, True), (37, 53, False), (64, 8, False)):
            check_shapes(kernel, dtype, queries, keys, causal)


def check_shapes(kernel: Kernel, dtype: torch.dtype, queries: int, keys: int, causal: bool) -> None:
    with FakeTensorMode():
        packed = torch.empty(3, 2, 2 * queries, 16, device="cuda", dtype=dtype)
        q = packed.narrow(2, queries, queries)  # a stretch of a packed row, as trees have them
        k, v = (torch.empty(3, 2, keys, 16, device="cuda", dtype=dtype) for _ in range(2))
        out, logs = kernel.forward(q, k, v, causal, 0.25)
        assert (out.shape, out.dtype, out.device.type) == (q.shape, dtype, "cuda")
        assert (logs.shape, logs.dtype) == (q.shape[:-1], torch.float32)
        whole = torch.empty(3, 2, 2 * queries, device="cuda").narrow(2, queries, queries)
        grads = kernel.backward(torch.empty_like(q), q, k, v, out, whole, causal, 0.25)
        assert [g.shape for g in grads] == [q.shape, k.shape, v.shape]
        assert {g.dtype for g in grads} == {dtype}
