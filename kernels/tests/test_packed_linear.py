"""The packed linear layer against its plain form."""

import pytest
import torch
from torch import nn

from gridwork_kernels import cpu_library, packed_linear

needs_library = pytest.mark.skipif(cpu_library.load() is None, reason="no compiled kernels for this CPU")


def random_layer(in_features: int, out_features: int, bias: bool, dtype: torch.dtype = torch.bfloat16) -> nn.Linear:
    torch.manual_seed(in_features + out_features)
    return nn.Linear(in_features, out_features, bias=bias, dtype=dtype).requires_grad_(False)


@needs_library
@pytest.mark.parametrize("dtype", packed_linear.DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(576, 1536), (64, 32), (33, 70), (1, 100), (1000, 130), (4096, 300)])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 7, 12, 13, 64, 100, 200, 400])
def test_equals_the_plain_product_up_to_one_rounding(
    shape: tuple[int, int], rows: int, bias: bool, dtype: torch.dtype
) -> None:
    layer = random_layer(*shape, bias, dtype)
    x = torch.randn(rows, shape[0]).to(dtype)
    expected = packed_linear.reference(x, layer.weight, layer.bias)
    tolerance = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(packed_linear.PackedLinear(layer)(x), expected, rtol=tolerance, atol=tolerance / 4)


@needs_library
@pytest.mark.parametrize("dtype", packed_linear.DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1, 1e-37], ids=["", "products-too-small-for-normal-numbers"])
@pytest.mark.parametrize("shape", [(1000, 530), (96, 70), (2048, 100), (4096, 300)], ids=str)
def test_a_row_does_not_depend_on_its_batch(dtype: torch.dtype, scale: float, shape: tuple[int, int]) -> None:
    packed = packed_linear.PackedLinear(random_layer(*shape, scale == 1, dtype))
    x = (torch.randn(400, shape[0]) * scale).to(dtype)
    together = packed(x)
    for rows in (1, 2, 5, 12, 31, 99):
        assert torch.equal(packed(x[:rows]), together[:rows])


@needs_library
def test_leading_dimensions_and_strides_are_kept() -> None:
    layer = random_layer(64, 96, False)
    x = torch.randn(2, 64, 5).bfloat16().transpose(1, 2)
    assert not x.is_contiguous()
    out = packed_linear.PackedLinear(layer)(x)
    assert out.shape == (2, 5, 96)
    torch.testing.assert_close(out, packed_linear.reference(x, layer.weight, None), rtol=2**-7, atol=1e-3)


@needs_library
def test_nan_stays_in_its_row_and_infinity_is_kept() -> None:
    packed = packed_linear.PackedLinear(random_layer(64, 64, False))
    x = torch.ones(3, 64).bfloat16()
    x[1, 0] = float("nan")
    out = packed(x)
    assert out[1].isnan().all() and not out[0].isnan().any() and not out[2].isnan().any()


@needs_library
@pytest.mark.parametrize("dtype", packed_linear.DTYPES, ids=str)
def test_the_weight_can_be_read_back(dtype: torch.dtype) -> None:
    layer = random_layer(33, 70, False, dtype)
    assert torch.equal(packed_linear.PackedLinear(layer).weight, layer.weight)


@needs_library
def test_only_plain_layers_are_replaced() -> None:
    class Special(nn.Linear):
        pass

    shared = random_layer(64, 64, False)
    model = nn.ModuleDict(
        {
            "plain": shared,
            "again": shared,
            "special": Special(64, 64, dtype=torch.bfloat16),
            "float64": nn.Linear(64, 64, dtype=torch.float64),
            "small": random_layer(64, 8, False),
        }
    )
    assert packed_linear.pack_linears(model) == 1
    assert model["plain"] is model["again"]
    assert [type(model[name]) for name in ("special", "float64", "small")] == [Special, nn.Linear, nn.Linear]


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=needs_library)])
def test_a_widened_head_gives_float32(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not packed:
        monkeypatch.setattr(cpu_library, "load", lambda: None)
    model = nn.ModuleDict({"body": random_layer(64, 64, False), "head": random_layer(64, 100, True)})
    head = model["head"]
    weight, bias = head.weight.float(), head.bias.float()
    assert packed_linear.widen_head(model, head)
    assert type(model["head"]) is (packed_linear.PackedLinear if packed else packed_linear.Float32Linear)
    x = torch.randn(3, 64).bfloat16()
    assert model["body"](x).dtype == torch.bfloat16
    torch.testing.assert_close(model["head"](x), x.float() @ weight.T + bias, rtol=1e-5, atol=1e-5)
    assert not packed_linear.widen_head(model, nn.Linear(64, 64))
