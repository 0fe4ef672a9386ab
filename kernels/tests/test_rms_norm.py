"""The fused RMSNorm against its plain form, and the modules that it replaces."""

import pytest
import torch
from torch import nn

from gridwork_kernels import cpu_library, rms_norm

pytestmark = pytest.mark.skipif(cpu_library.load() is None, reason="no compiled kernels for this CPU")


class Plain(nn.Module):
    def __init__(
        self, width: int, dtype: torch.dtype, form: rms_norm.Form = rms_norm.Form.ROUNDED_FIRST, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width).to(dtype))
        self.eps, self.form = eps, form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm.reference(x, self.weight, self.eps, self.form)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", rms_norm.DTYPES)
@pytest.mark.parametrize("form", rms_norm.Form)
@pytest.mark.parametrize("shape", [(1, 1, 16), (3, 48), (4, 21), (1, 700, 576), (2, 5, 3, 64), (0, 32)])
def test_equals_the_plain_form(dtype: torch.dtype, form: rms_norm.Form, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    x, weight = (3 * torch.randn(shape)).to(dtype), torch.randn(shape[-1]).to(dtype)
    got = torch.ops.gridwork_cpu.rms_norm(x, weight, 1e-6, form)
    expected = rms_norm.reference(x, weight, 1e-6, form)
    assert (got.shape, got.dtype) == (x.shape, dtype)
    torch.testing.assert_close(got, expected, rtol=max(1e-5, 2 * torch.finfo(dtype).eps), atol=0)


@torch.inference_mode()
def test_rows_with_a_stride_and_nan() -> None:
    x = torch.randn(64, 10).T
    x[3, 5] = torch.nan
    got = torch.ops.gridwork_cpu.rms_norm(x, torch.ones(64), 1e-6, 0)
    assert got[3].isnan().all()
    keep = torch.arange(10) != 3
    torch.testing.assert_close(
        got[keep], rms_norm.reference(x, torch.ones(64), 1e-6, rms_norm.Form.ROUNDED_FIRST)[keep]
    )


@torch.inference_mode()
@pytest.mark.parametrize("dtype", rms_norm.DTYPES)
@pytest.mark.parametrize("form", rms_norm.Form)
def test_rms_norms_are_replaced_and_stay_equal(dtype: torch.dtype, form: rms_norm.Form) -> None:
    torch.manual_seed(2)
    plain = Plain(48, dtype, form)
    model = nn.ModuleDict({"a": plain, "again": plain, "b": Plain(32, dtype, form, eps=1e-3)})
    assert rms_norm.fuse_norms(model) == 2
    assert model["a"] is model["again"]
    x = (1e-3 * torch.randn(7, 48)).to(dtype)
    torch.testing.assert_close(model["a"](x), plain(x), rtol=max(1e-5, 2 * torch.finfo(dtype).eps), atol=0)
    # The module itself computes other dtypes than the weight's.
    wide = x.double()
    assert torch.equal(model["a"](wide), plain(wide))


class WrittenOut(Plain):
    """A layer norm without a bias, as in Cohere's models."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        mean = wide.mean(-1, keepdim=True)
        variance = (wide - mean).pow(2).mean(-1, keepdim=True)
        normalised = (wide - mean) * torch.rsqrt(variance + self.eps)
        return (self.weight.float() * normalised).to(x.dtype)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", rms_norm.DTYPES)
@pytest.mark.parametrize("width", [16, 48, 576, 8192])
def test_layer_norms_without_bias_are_replaced_and_stay_equal(dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(4)
    plain = WrittenOut(width, dtype)
    model = nn.ModuleDict({"norm": plain})
    assert rms_norm.fuse_norms(model) == 1 and isinstance(model["norm"], rms_norm.FusedLayerNorm)
    x = (3 * torch.randn(7, width) + 1).to(dtype)
    torch.testing.assert_close(model["norm"](x), plain(x), rtol=2 * torch.finfo(dtype).eps, atol=2e-6)
    assert torch.equal(model["norm"](x.double()), plain(x.double()))


def test_modules_with_other_output_are_not_replaced() -> None:
    class OtherEpsilon(WrittenOut):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.layer_norm(x, x.shape[-1:], self.weight, None, 2 * self.eps)

    class RoundedTwice(WrittenOut):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            normalised = torch.nn.functional.layer_norm(x.float(), x.shape[-1:], eps=self.eps)
            return self.weight * normalised.to(x.dtype)

    class WrongEpsilon(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return rms_norm.reference(x, self.weight, 2 * self.eps, self.form)

    class TwoInputs(Plain):
        def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
            return super().forward(x)

    hooked = Plain(32, torch.float32)
    hooked.register_forward_hook(lambda _module, _inputs, out: 2 * out)
    model = nn.ModuleDict(
        {
            "layer norm": nn.LayerNorm(32),
            "without bias": nn.LayerNorm(32, bias=False),
            "wrong epsilon": WrongEpsilon(32, torch.float32),
            "layer norm with another epsilon": OtherEpsilon(32, torch.float32),
            "rounded twice": RoundedTwice(32, torch.bfloat16),
            "two inputs": TwoInputs(32, torch.float32),
            "float64": Plain(32, torch.float64),
            "hooked": hooked,
        }
    )
    before = dict(model.items())
    assert rms_norm.fuse_norms(model) == 0
    assert all(model[name] is module for name, module in before.items())


@torch.inference_mode()
@pytest.mark.parametrize("dtype", rms_norm.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 16), (4, 21), (1, 300, 576), (0, 32)])
def test_sum_and_norm_equal_separate_operations(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    x, residual, weight = (torch.randn(*size).to(dtype) for size in (shape, shape, shape[-1:]))
    total, out = torch.ops.gridwork_cpu.add_rms_norm(x, residual, weight, 1e-6, 0)
    assert torch.equal(total, x + residual)
    assert torch.equal(out, torch.ops.gridwork_cpu.rms_norm(total, weight, 1e-6, 0))
