"""Packed mixtures of experts against their plain form, and the modules that they replace."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.integrations.moe import use_experts_implementation

from gridwork_kernels import cpu_library, experts, packed_linear, quantized_linear

pytestmark = pytest.mark.skipif(cpu_library.load() is None, reason="no compiled kernels for this CPU")

TOLERANCES = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 1e-5}


def random_problem(
    tokens: int, chosen: int, shape: tuple[int, int, int], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x `[tokens, K]`, index `[tokens, chosen]`, weight `[experts, N, K]` and bias `[experts, N]`."""
    num_experts, out_features, in_features = shape
    torch.manual_seed(tokens + in_features)
    weight = (torch.randn(shape) / in_features**0.5).to(dtype)
    index = torch.rand(tokens, num_experts).topk(chosen).indices
    return torch.randn(tokens, in_features).to(dtype), index, weight, torch.randn(num_experts, out_features).to(dtype)


def order_of(index: torch.Tensor) -> torch.Tensor:
    """Pairs in the order of the rows between the two layers."""
    return index.flatten().sort(stable=True).indices


@torch.inference_mode()
@pytest.mark.parametrize("dtype", packed_linear.DTYPES, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(8, 96, 64), (3, 70, 33), (128, 32, 48)], ids=str)
@pytest.mark.parametrize(("tokens", "chosen"), [(1, 1), (1, 3), (5, 2), (40, 3), (150, 2)])
def test_the_first_layer_equals_the_plain_form(
    tokens: int, chosen: int, shape: tuple[int, int, int], with_bias: bool, dtype: torch.dtype
) -> None:
    x, index, weight, bias = random_problem(tokens, chosen, shape, dtype)
    given = bias if with_bias else None
    packed = torch.ops.gridwork_cpu.linear_pack(weight)
    got = torch.ops.gridwork_cpu.experts_in(x, index, packed, None, bias.float() if with_bias else None, shape[1])
    expected = experts.reference(x, index, weight, given).flatten(0, 1)[order_of(index)]
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


@torch.inference_mode()
@pytest.mark.parametrize("dtype", packed_linear.DTYPES, ids=str)
@pytest.mark.parametrize("factors", ["float32", "as x"])
@pytest.mark.parametrize("shape", [(8, 96, 64), (3, 70, 33)], ids=str)
@pytest.mark.parametrize(("tokens", "chosen"), [(1, 1), (1, 3), (40, 3), (150, 2)])
def test_the_second_layer_sums_the_experts_of_a_token(
    tokens: int, chosen: int, shape: tuple[int, int, int], factors: str, dtype: torch.dtype
) -> None:
    _, index, weight, bias = random_problem(tokens, chosen, shape, dtype)
    weights = torch.rand(tokens, chosen).to(torch.float32 if factors == "float32" else dtype)
    order = order_of(index)
    pairs = torch.randn(tokens * chosen, shape[2]).to(dtype)
    packed = torch.ops.gridwork_cpu.linear_pack(weight)
    got = torch.ops.gridwork_cpu.experts_out(pairs, index, weights, packed, None, bias.float(), shape[1])
    one = experts.reference(pairs, index.flatten()[order][:, None], weight, bias)
    back = torch.empty_like(one)
    back[order] = one
    expected = (back.view(tokens, chosen, -1) * weights[..., None]).float().sum(1).to(dtype)
    tolerance = TOLERANCES[dtype] * 2
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", packed_linear.DTYPES, ids=str)
@pytest.mark.parametrize("factors", ["float32", "as x"])
def test_weighted_outputs_are_rounded_to_the_weights_type(factors: str, dtype: torch.dtype) -> None:
    _, index, weight, _ = random_problem(30, 3, (6, 40, 40), dtype)
    packed = torch.ops.gridwork_cpu.linear_pack(torch.eye(40, dtype=dtype).expand_as(weight))
    weights = torch.rand(30, 3).to(torch.float32 if factors == "float32" else dtype)
    pairs, order = torch.randn(90, 40).to(dtype), order_of(index)
    back = torch.empty_like(pairs)
    back[order] = pairs
    products = back.view(30, 3, 40) * weights[..., None]
    expected = torch.zeros(30, 40)
    for which in range(3):
        expected += products[:, which].float()
    got = torch.ops.gridwork_cpu.experts_out(pairs, index, weights, packed, None, None, 40)
    assert torch.equal(got, expected.to(dtype))


@torch.inference_mode()
@pytest.mark.parametrize("dtype", packed_linear.DTYPES, ids=str)
def test_a_token_does_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    x, index, weight, _ = random_problem(120, 4, (16, 256, 96), dtype)
    first = torch.ops.gridwork_cpu.linear_pack(weight)
    second = torch.ops.gridwork_cpu.linear_pack(weight.transpose(1, 2))
    weights = torch.rand(120, 4)

    def run(tokens: slice) -> torch.Tensor:
        pairs = torch.ops.gridwork_cpu.experts_in(x[tokens], index[tokens], first, None, None, 256)
        return torch.ops.gridwork_cpu.experts_out(pairs, index[tokens], weights[tokens], second, None, None, 96)

    together = run(slice(None))
    for begin, end in ((0, 1), (3, 5), (7, 20), (11, 80), (119, 120)):
        assert torch.equal(run(slice(begin, end)), together[begin:end])


@torch.inference_mode()
def test_missing_experts_add_nothing_and_nan_stays_with_its_token() -> None:
    x, index, weight, _ = random_problem(6, 2, (4, 64, 32), torch.float32)
    packed, back = (torch.ops.gridwork_cpu.linear_pack(w) for w in (weight, weight.transpose(1, 2)))

    def run() -> torch.Tensor:
        pairs = torch.ops.gridwork_cpu.experts_in(x, index, packed, None, None, 64)
        return torch.ops.gridwork_cpu.experts_out(pairs, index, torch.ones(6, 2), back, None, None, 32)

    index[:, 1] = torch.tensor([4, -1, 7, 4, 4, 4])
    x[3] = torch.nan
    got = run()
    pairs = experts.reference(x, index[:, :1], weight)
    expected = experts.reference(pairs.flatten(0, 1), index[:, :1], weight.transpose(1, 2))[:, 0]
    assert got[3].isnan().all()
    keep = torch.arange(6) != 3
    torch.testing.assert_close(got[keep], expected[keep], rtol=1e-4, atol=1e-4)
    index[:] = 4
    assert torch.equal(run(), torch.zeros(6, 32))


@pytest.mark.parametrize("dtype", packed_linear.DTYPES, ids=str)
def test_weights_of_any_strides_are_packed_alike(dtype: torch.dtype) -> None:
    weight = torch.randn(3, 70, 40).to(dtype)
    pack = torch.ops.gridwork_cpu.linear_pack
    together = pack(weight.transpose(1, 2).contiguous().transpose(1, 2))
    assert torch.equal(together, pack(weight))
    for one, expected in zip(weight, together, strict=True):
        assert torch.equal(pack(one), expected)


class Plain(nn.Module):
    """Experts in the form of Transformers' models."""

    def __init__(
        self, config: Any, transposed: bool, bias: bool, gate: bool, dtype: torch.dtype, shape: tuple[int, int]
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        hidden, width = shape
        first = ("gate_up_proj", 2 * width) if gate else ("up_proj", width)
        layers = {first[0]: (first[1], hidden), "down_proj": (hidden, width)}
        for name, (rows, columns) in layers.items():
            shape = (5, columns, rows) if transposed else (5, rows, columns)
            setattr(self, name, nn.Parameter((torch.randn(shape) / columns**0.5).to(dtype)))
            if bias:
                setattr(self, f"{name}_bias", nn.Parameter(torch.randn(5, rows).to(dtype)))
        self.num_experts = 5
        self.act_fn = nn.SiLU()

    def forward(self, hidden_states: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError  # one of Transformers' own functions is called


def plain_experts(
    transposed: bool = False,
    bias: bool = False,
    gate: bool = True,
    dtype: torch.dtype = torch.float32,
    shape: tuple[int, int] = (32, 48),
) -> Any:
    made = use_experts_implementation(
        type("Experts", (Plain,), {}), is_transposed=transposed, has_bias=bias, has_gate=gate
    )
    return made(SimpleNamespace(_experts_implementation="grouped_mm"), transposed, bias, gate, dtype, shape)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", packed_linear.DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gate", [False, True])
def test_experts_are_replaced_and_stay_equal(transposed: bool, bias: bool, gate: bool, dtype: torch.dtype) -> None:
    plain = plain_experts(transposed, bias, gate, dtype)
    x, weights = torch.randn(20, 32).to(dtype), torch.rand(20, 2)
    index = torch.rand(20, 5).topk(2).indices
    expected = plain(x, index, weights)
    model = nn.ModuleDict({"a": plain})
    assert experts.pack_experts(model) == (1, 0)
    assert not list(plain.parameters()), "its weights are freed"
    tolerance = max(1e-5, 8 * torch.finfo(dtype).eps)
    torch.testing.assert_close(model["a"](x, index, weights), expected, rtol=tolerance, atol=tolerance)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", packed_linear.DTYPES, ids=str)
@pytest.mark.parametrize("method", quantized_linear.METHODS)
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_quantized_experts_equal_quantized_layers_one_by_one(method: str, tokens: int, dtype: torch.dtype) -> None:
    x, index, weight, bias = random_problem(tokens, 2, (5, 70, 96), dtype)
    packed, scales = experts._pack(weight, method)
    got = torch.ops.gridwork_cpu.experts_in(x, index, packed, scales, bias.float(), 70)
    layers = [nn.Linear(96, 70) for _ in weight]
    for layer, one, more in zip(layers, weight, bias, strict=True):
        layer.weight, layer.bias = nn.Parameter(one), nn.Parameter(more)
    run = [quantized_linear.QuantizedLinear(layer, method) for layer in layers]
    order = order_of(index)
    tokens_of, experts_of = order // 2, index.flatten()[order]
    expected = torch.stack([run[expert](x[token]) for token, expert in zip(tokens_of, experts_of, strict=True)])
    assert torch.equal(got, expected)


@torch.inference_mode()
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("method", "most"), [("int8", 0.02), ("int4", 0.2)])
def test_experts_are_quantized_in_place(method: str, most: float, transposed: bool) -> None:
    plain = plain_experts(transposed, shape=(64, 96))
    x, weights, index = torch.randn(20, 64), torch.rand(20, 2), torch.rand(20, 5).topk(2).indices
    expected = plain(x, index, weights)
    model = nn.ModuleDict({"a": plain})
    assert experts.pack_experts(model, method) == (1, 0)
    got = model["a"](x, index, weights)
    assert 0 < (got - expected).norm() <= most * expected.norm()


def test_experts_of_unsupported_shapes_are_not_quantized() -> None:
    model = nn.ModuleDict({"a": plain_experts()})  # 48 values are no whole number of groups
    assert experts.pack_experts(model, "int8") == (0, 0)
    assert experts.pack_experts(model) == (1, 0)


@torch.inference_mode()
def test_inputs_of_other_types_are_converted() -> None:
    plain = plain_experts(dtype=torch.bfloat16)
    x, weights, index = torch.randn(20, 32).bfloat16(), torch.rand(20, 2), torch.rand(20, 5).topk(2).indices
    model = nn.ModuleDict({"a": plain})
    assert experts.pack_experts(model) == (1, 0)
    expected = model["a"](x, index, weights)
    got = model["a"](x.float(), index.int(), weights.double())
    assert got.dtype == torch.float32
    assert torch.equal(got, expected.float())


@torch.inference_mode()
def test_experts_keep_their_own_gate() -> None:
    plain = plain_experts()
    type(plain)._apply_gate = lambda self, both: both[..., ::2].sigmoid() * (both[..., 1::2] + 1)
    x, weights, index = torch.randn(9, 32), torch.rand(9, 2), torch.rand(9, 5).topk(2).indices
    expected = plain(x, index, weights)
    model = nn.ModuleDict({"a": plain})
    assert experts.pack_experts(model) == (1, 0)
    torch.testing.assert_close(model["a"](x, index, weights), expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_experts_with_other_output_are_not_replaced() -> None:
    hooked, parallel, normed, more, other = (plain_experts() for _ in range(5))
    hooked.register_forward_hook(lambda _module, _inputs, out: 2 * out)
    parallel._is_expert_parallel = True
    normed.has_post_expert_norm, normed.post_expert_norm = True, nn.Identity()
    more.scale = nn.Parameter(torch.ones(5))
    type(other).forward = lambda self, x, index, weights: 2 * x
    model = nn.ModuleDict({"hooked": hooked, "parallel": parallel, "normed": normed, "more": more, "other": other})
    before = dict(model.items())
    assert experts.pack_experts(model) == (0, 1)  # only of `other` it takes computing to know
    assert all(model[name] is module for name, module in before.items())
    assert all(list(module.parameters()) for module in before.values())
