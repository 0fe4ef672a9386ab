"""Linear layers with quantized weights against their plain form."""

import pytest
import torch
from torch import nn

from gridwork_kernels import cpu_library, quantized_linear
from gridwork_kernels.quantized_linear import METHODS, QuantizedLinear

pytestmark = pytest.mark.skipif(cpu_library.load() is None, reason="no compiled kernels for this CPU")


def random_layer(in_features: int, out_features: int, bias: bool, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(in_features + out_features)
    return nn.Linear(in_features, out_features, bias=bias, dtype=dtype).requires_grad_(False)


@torch.inference_mode()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "bias"), [((64, 32), False), ((576, 1536), True), ((96, 70), True), ((1024, 33), False)]
)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 9, 65, 130])
def test_equals_the_plain_form(method: str, dtype: torch.dtype, shape: tuple[int, int], bias: bool, rows: int) -> None:
    layer = random_layer(*shape, bias, dtype)
    quantized = QuantizedLinear(layer, method, float32_out=True)
    wide = QuantizedLinear(random_layer(*shape, bias, dtype).float(), method).weight if dtype != torch.float32 else None
    x = torch.randn(rows, shape[0]).to(dtype)
    expected = quantized_linear.reference(x, quantized.weight.float() if wide is None else wide, layer.bias)
    got = quantized(x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(QuantizedLinear(layer, method)(x), got.to(dtype))


@torch.inference_mode()
@pytest.mark.parametrize(("method", "most"), [("int8", 0.005), ("int4", 0.07)])
def test_quantized_weights_are_within_a_step_of_the_scale(method: str, most: float) -> None:
    layer = random_layer(256, 100, False)
    error = (QuantizedLinear(layer, method).weight - layer.weight).abs().max() / layer.weight.abs().max()
    assert error < most


@torch.inference_mode()
def test_int4_keeps_weights_on_sixteen_steps() -> None:
    layer = random_layer(64, 32, False)
    steps = torch.randint(0, 16, (32, 2, 32)).float()
    steps[:, :, 0], steps[:, :, 1] = 0, 15
    layer.weight.copy_((steps * 0.125 - 1).flatten(1))
    assert torch.equal(QuantizedLinear(layer, "int4").weight, layer.weight)


@torch.inference_mode()
@pytest.mark.parametrize("method", METHODS)
def test_a_row_does_not_depend_on_its_batch(method: str) -> None:
    layer = QuantizedLinear(random_layer(576, 200, True), method)
    x = torch.randn(150, 576) * torch.rand(150, 1)
    together = layer(x)
    for rows in (1, 3, 8, 70):
        assert torch.equal(layer(x[:rows]), together[:rows])


@torch.inference_mode()
@pytest.mark.parametrize("method", METHODS)
def test_rows_of_zeros_and_of_extremes(method: str) -> None:
    layer = random_layer(4096, 32, False)
    layer.weight.fill_(1.0)
    layer.weight[::2].fill_(-1.0)
    x = torch.stack([torch.zeros(4096), torch.full((4096,), 3.0), torch.full((4096,), -3.0)])
    expected = x @ layer.weight.T
    torch.testing.assert_close(QuantizedLinear(layer, method)(x), expected, rtol=1e-3, atol=1e-2)


@torch.inference_mode()
@pytest.mark.parametrize("method", METHODS)
def test_nan_and_infinity_reach_the_output(method: str) -> None:
    layer = QuantizedLinear(random_layer(64, 32, False), method)
    x = torch.ones(3, 64)
    x[1, 5], x[2, 7] = torch.nan, torch.inf
    out = layer(x)
    assert out[0].isfinite().all() and not out[1].isfinite().any() and not out[2].isfinite().any()


@torch.inference_mode()
def test_only_layers_of_supported_shapes_are_quantized() -> None:
    model = nn.ModuleDict({"fits": nn.Linear(64, 64), "odd": nn.Linear(20, 64), "head": nn.Linear(64, 100)})
    assert quantized_linear.quantize_linears(model, "int4", model["head"]) == 2
    assert type(model["odd"]) is nn.Linear
    assert model["head"].float32_out and not model["fits"].float32_out
    assert quantized_linear.quantize_linears(nn.ModuleDict({"odd": nn.Linear(20, 64)}), "int8", None) == 0
