"""The fused LayerNorm against PyTorch's."""

import pytest
import torch
from torch.nn import functional as F

from gridwork_kernels import cpu_library

pytestmark = pytest.mark.skipif(cpu_library.load() is None, reason="no compiled kernels for this CPU")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(1, 1, 16), (4, 21), (1, 300, 768), (3, 5), (0, 32)]


@torch.inference_mode()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("affine", ["", "weight", "weight, bias"])
def test_equals_pytorch(dtype: torch.dtype, shape: tuple[int, ...], affine: str) -> None:
    torch.manual_seed(1)
    x = (3 * torch.randn(shape) + 5).to(dtype)
    weight = torch.randn(shape[-1]).to(dtype) if "weight" in affine else None
    bias = torch.randn(shape[-1]).to(dtype) if "bias" in affine else None
    got = torch.ops.gridwork_cpu.layer_norm(x, weight, bias, 1e-5)
    wide = [None if each is None else each.float() for each in (weight, bias)]
    expected = F.layer_norm(x.float(), shape[-1:], *wide, 1e-5).to(dtype)
    assert (got.shape, got.dtype) == (x.shape, dtype)
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(got, expected, rtol=max(1e-5, 2 * step), atol=1e-5 if dtype == torch.float32 else step)
    if dtype != torch.float32 and expected.numel():
        assert (got != expected).float().mean() < 0.01, "rounded once"


@torch.inference_mode()
def test_nan_and_rows_without_variance() -> None:
    x = torch.randn(6, 40)
    x[2, 7], x[4] = torch.nan, 3.0
    got = torch.ops.gridwork_cpu.layer_norm(x, None, None, 1e-5)
    assert got[2].isnan().all() and torch.equal(got[4], torch.zeros(40))
    keep = [0, 1, 3, 5]
    torch.testing.assert_close(got[keep], F.layer_norm(x[keep], (40,)), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sum_and_norm_equal_separate_operations(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(2)
    x, residual, weight, bias = (torch.randn(*size).to(dtype) for size in (shape, shape, shape[-1:], shape[-1:]))
    total, out = torch.ops.gridwork_cpu.add_layer_norm(x, residual, weight, bias, 1e-5)
    assert torch.equal(total, x + residual)
    assert torch.equal(out, torch.ops.gridwork_cpu.layer_norm(total, weight, bias, 1e-5))
