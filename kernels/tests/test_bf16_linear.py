"""The packed bfloat16 linear layer against its plain form."""

import pytest
import torch
from torch import nn

from gridwork_kernels import bf16_linear, cpu_library

needs_avx512 = pytest.mark.skipif(
    not cpu_library.has_avx512(), reason="the CPU lacks AVX-512 or the library was not built"
)


def random_layer(in_features: int, out_features: int, bias: bool) -> nn.Linear:
    torch.manual_seed(in_features + out_features)
    return nn.Linear(in_features, out_features, bias=bias, dtype=torch.bfloat16).requires_grad_(False)


@needs_avx512
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(576, 1536), (64, 32), (33, 70), (1, 100), (128, 1000)])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 7, 12, 13, 64, 65, 200])
def test_equals_the_plain_product_up_to_one_rounding(shape: tuple[int, int], rows: int, bias: bool) -> None:
    layer = random_layer(*shape, bias)
    x = torch.randn(rows, shape[0]).bfloat16()
    expected = bf16_linear.reference(x, layer.weight, layer.bias)
    torch.testing.assert_close(bf16_linear.PackedLinear(layer)(x), expected, rtol=2**-7, atol=1e-3)


@needs_avx512
def test_a_row_does_not_depend_on_its_batch_mates() -> None:
    packed = bf16_linear.PackedLinear(random_layer(576, 1536, True))
    x = torch.randn(100, 576).bfloat16()
    together = packed(x)
    for rows in (1, 2, 5, 12, 31):
        assert torch.equal(packed(x[:rows]), together[:rows])


@needs_avx512
def test_leading_dimensions_and_strides_are_kept() -> None:
    layer = random_layer(64, 96, False)
    x = torch.randn(2, 64, 5).bfloat16().transpose(1, 2)
    assert not x.is_contiguous()
    out = bf16_linear.PackedLinear(layer)(x)
    assert out.shape == (2, 5, 96)
    torch.testing.assert_close(out, bf16_linear.reference(x, layer.weight, None), rtol=2**-7, atol=1e-3)


@needs_avx512
def test_nan_stays_in_its_row_and_infinity_is_kept() -> None:
    packed = bf16_linear.PackedLinear(random_layer(64, 64, False))
    x = torch.ones(3, 64).bfloat16()
    x[1, 0] = float("nan")
    out = packed(x)
    assert out[1].isnan().all() and not out[0].isnan().any() and not out[2].isnan().any()


@needs_avx512
def test_the_weight_can_be_read_back() -> None:
    layer = random_layer(33, 70, False)
    assert torch.equal(bf16_linear.PackedLinear(layer).weight, layer.weight)


@needs_avx512
def test_only_plain_bfloat16_layers_are_replaced() -> None:
    class Special(nn.Linear):
        pass

    shared = random_layer(64, 64, False)
    model = nn.ModuleDict(
        {
            "plain": shared,
            "again": shared,
            "special": Special(64, 64, dtype=torch.bfloat16),
            "float32": nn.Linear(64, 64),
            "small": random_layer(64, 8, False),
        }
    )
    assert bf16_linear.pack_linears(model) == 1
    assert model["plain"] is model["again"]
    assert [type(model[name]) for name in ("special", "float32", "small")] == [Special, nn.Linear, nn.Linear]


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=needs_avx512)])
def test_a_widened_head_gives_float32(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_library, "has_avx512", lambda: packed)
    model = nn.ModuleDict({"body": random_layer(64, 64, False), "head": random_layer(64, 100, True)})
    head = model["head"]
    weight, bias = head.weight.float(), head.bias.float()
    assert bf16_linear.widen_head(model, head)
    assert type(model["head"]) is (bf16_linear.PackedLinear if packed else bf16_linear.Float32Linear)
    x = torch.randn(3, 64).bfloat16()
    assert model["body"](x).dtype == torch.bfloat16
    torch.testing.assert_close(model["head"](x), x.float() @ weight.T + bias, rtol=1e-5, atol=1e-5)
    assert not bf16_linear.widen_head(model, nn.Linear(64, 64))


@needs_avx512
def test_larger_batches_are_left_to_the_plain_layer() -> None:
    model = nn.ModuleDict({"layer": random_layer(64, 96, True)})
    plain = model["layer"]
    calls: list[int] = []
    assert bf16_linear.pack_linears(model, max_rows=4) == 1
    plain.register_forward_hook(lambda _module, inputs, _out: calls.append(inputs[0].shape[-2]))
    for rows in (1, 4, 5, 9):
        x = torch.randn(2, rows, 64).bfloat16()[:1]
        torch.testing.assert_close(model["layer"](x), bf16_linear.reference(x, plain.weight, plain.bias))
    assert calls == [5, 9]


@needs_avx512
@pytest.mark.parametrize(("plain_s", "expected"), [([0.0], 0), ([9.0, 9.0, 9.0, 0.0], 4), ([9.0] * 9, None)])
def test_the_number_of_rows_from_which_the_plain_layer_is_faster_is_measured(
    plain_s: list[float], expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(plain_s)
    monkeypatch.setattr(
        bf16_linear, "_best_seconds", lambda layer, _x: next(times) if type(layer) is nn.Linear else 1.0
    )
    model = nn.ModuleDict({"small": random_layer(64, 32, False), "layer": random_layer(64, 64, False)})
    assert bf16_linear.rows_until_plain_is_faster(model) == expected
