"""Activations, alone and with a product, against their plain forms."""

import math

import pytest
import torch
from torch.nn import functional as F

from gridwork_kernels import cpu_library

pytestmark = pytest.mark.skipif(cpu_library.load() is None, reason="no compiled kernels for this CPU")

PLAIN = {
    0: F.silu,
    1: lambda x: F.gelu(x, approximate="tanh"),
    2: F.gelu,
    5: torch.sigmoid,
}


@torch.inference_mode()
@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1536), (7, 21), (130, 100), (0, 16)], ids=str)
def test_equals_the_plain_form(kind: int, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    torch.manual_seed(kind)
    both = (4 * torch.randn(shape[0], 2 * shape[1])).to(dtype)
    gate, up = both.chunk(2, -1)  # halves of one product: rows are not contiguous
    got = torch.ops.gridwork_cpu.gated_activation(gate, up, kind)
    expected = PLAIN[kind](gate) * up
    step = torch.finfo(dtype).eps
    # Results for large negative values are near zero, where PyTorch's forms lose precision.
    torch.testing.assert_close(got, expected, rtol=max(2 * step, 1e-5), atol=1e-5)
    middle = gate.abs() < 2
    if dtype != torch.float32 and middle.any():
        assert (got != expected)[middle].float().mean() < 0.01, "rounded where PyTorch rounds"


@torch.inference_mode()
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_large_values_and_nan(kind: int) -> None:
    gate = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4, torch.nan]])
    got = torch.ops.gridwork_cpu.gated_activation(gate, torch.ones_like(gate), kind)
    assert torch.equal(got[0, :5].abs(), torch.tensor([0.0, 0.0, 0.0, 100.0, 1e4]))
    assert got[0, 5].isnan()


def in_steps(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


@torch.inference_mode()
@pytest.mark.parametrize("kind", range(6))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1536), (7, 21), (1, 130, 100), (0, 16)], ids=str)
def test_a_single_activation_equals_the_plain_form(kind: int, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(kind)
    plain = {**PLAIN, 3: F.relu, 4: in_steps}[kind]
    x = (4 * torch.randn(shape)).to(dtype)
    got, expected = torch.ops.gridwork_cpu.activation(x, kind), plain(x)
    step = torch.finfo(dtype).eps
    # A sum with 1 loses precision, which matters where the result is near zero.
    torch.testing.assert_close(got, expected, rtol=max(2 * step, 1e-5), atol=max(2 * step, 1e-5) if kind == 4 else 1e-5)
    middle = x.abs() < 2
    if dtype != torch.float32 and middle.any():
        assert (got != expected)[middle].float().mean() < 0.01, "rounded where PyTorch rounds"
    if kind != 4:
        return
    # Rows that are not contiguous, large values, and NaN.
    x = torch.tensor([[-1e4, 0.0], [-100.0, 100.0], [1e4, torch.nan]]).to(dtype).t()
    got = torch.ops.gridwork_cpu.activation(x, kind)
    assert torch.equal(got[0].abs(), x[0].clamp_min(0)) and torch.equal(got[1, :2], x[1, :2]) and got[1, 2].isnan()


@torch.inference_mode()
@pytest.mark.parametrize("divide", [False, True], ids=["times", "over"])
@pytest.mark.parametrize("factor", [0.22, 12.0, -1e-3, 3.0e38, 0.1015625, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1536), (7, 21), (1, 130, 100), (0, 16)], ids=str)
def test_a_scaled_tensor_equals_the_plain_form(
    divide: bool, factor: float, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(5)
    x = (4 * torch.randn(shape)).to(dtype)
    for values in (x, x.transpose(-1, -2), torch.tensor([0.0, -0.0, torch.inf, 1e-40, 6e4]).to(dtype)):
        expected = values / factor if divide else values * factor
        got = torch.ops.gridwork_cpu.scale(values, factor, divide)
        # Instructions that round to bfloat16 may take subnormal float32 for 0, including values that would round up to
        # the smallest normal number.
        if dtype == torch.bfloat16:
            small = expected.abs() <= torch.finfo(dtype).tiny
            got, expected = torch.where(small, got * 0, got), torch.where(small, expected * 0, expected)
        assert torch.equal(got, expected) and torch.equal(got.signbit(), expected.signbit()), "bit for bit"
    assert torch.ops.gridwork_cpu.scale(torch.full((3,), torch.nan, dtype=dtype), factor, divide).isnan().all()


@torch.inference_mode()
def test_the_logistic_function_of_large_values_and_nan() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4, torch.nan]]).to(dtype)
        got = torch.ops.gridwork_cpu.activation(x, 5)
        expected = torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]).to(dtype)
        assert torch.allclose(got[0, :5], expected, rtol=0, atol=2e-38) and got[0, 5].isnan()


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_scaled_softplus_equals_the_plain_form(dtype: torch.dtype) -> None:
    x = (6 * torch.randn(9, 11, generator=torch.Generator().manual_seed(0))).to(dtype)[:, 2:9]
    x[0, :3] = torch.tensor([-200.0, 200.0, torch.nan])
    bias, factor = torch.randn(7), torch.randn(7)
    got = torch.ops.gridwork_cpu.softplus_scaled(x, bias, factor)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, factor * F.softplus(x.float() + bias), equal_nan=True, rtol=1e-5, atol=1e-6)
