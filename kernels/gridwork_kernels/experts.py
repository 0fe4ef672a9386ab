"""Mixtures of experts with packed weights on CPUs, in their own type or in 8 or 4 bits.

Only the chosen experts' weights are read, and a token's result does not depend on the other tokens of the batch.
"""

from typing import Any, NamedTuple

import torch
from torch import nn

from gridwork_kernels.packed_linear import DTYPES
from gridwork_kernels.quantized_linear import GROUP, pack, unpack
from gridwork_kernels.replace import equal_up_to_rounding, replace_modules, sample_values


def reference(
    x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The plain form of one layer of the experts. x: `[tokens, K]`; index: int64 `[tokens, chosen]`; weight: `[experts,
    N, K]`; bias: `[experts, N]`, all but index of one type. Returns `[tokens, chosen, N]`, summed in float32 and
    rounded once."""
    out = torch.einsum("tk,tcnk->tcn", x.float(), weight.float()[index])
    if bias is not None:
        out += bias.float()[index]
    return out.to(x.dtype)


class PackedExperts(nn.Module):
    """Replaces the experts of a layer in Transformers' form: two linear layers for each expert, and the module's own
    computation between them."""

    def __init__(self, plain: Any, method: str | None = None) -> None:
        """plain: see `_is_known`. It is kept without its weights, for the computation between its layers. method: one
        of `quantized_linear.METHODS`, or None."""
        super().__init__()
        first = "gate_up_proj" if plain.has_gate else "up_proj"
        for name, weights in (("first", first), ("second", "down_proj")):
            weight = getattr(plain, weights).data
            if plain.is_transposed:
                weight = weight.transpose(1, 2)
            bias = getattr(plain, f"{weights}_bias").data.float() if plain.has_bias else None
            self.dtype = weight.dtype
            setattr(self, f"{name}_features", weight.shape[1])
            packed, scales = _pack(weight, method)
            self.register_buffer(f"{name}_packed", packed)
            self.register_buffer(f"{name}_scales", scales)
            self.register_buffer(f"{name}_bias", bias)
        self.plain, self.method = plain, method

    def forward(self, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """x: `[tokens, hidden]`; index: integers `[tokens, chosen]`, the experts of each token; weights: `[tokens,
        chosen]`. Computes in the type of the experts' weights, and returns `[tokens, hidden]` in x's type."""
        ops, given, index, x = torch.ops.gridwork_cpu, x.dtype, index.to(torch.int64), x.to(self.dtype)
        if weights.dtype != self.dtype:
            weights = weights.float()
        first = self.first_packed, self.first_scales, self.first_bias, self.first_features
        second = self.second_packed, self.second_scales, self.second_bias, self.second_features
        pairs = ops.experts_in(x, index, *first)
        pairs = self.plain._apply_gate(pairs) if self.plain.has_gate else self.plain.act_fn(pairs)
        out: torch.Tensor = ops.experts_out(pairs, index, weights, *second)
        return out.to(given)

    def layer(self, name: str, expert: int, in_features: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight `[out_features, in_features]` and bias `[out_features]` of one expert in float32, unpacked at every
        call. name: `first` or `second`."""
        packed, scales = getattr(self, f"{name}_packed")[expert], getattr(self, f"{name}_scales")
        if self.method is None:
            weight = packed.transpose(1, 2).flatten(2).flatten(0, 1).float()
        else:
            weight = unpack(packed, scales[expert], self.method)
        bias = getattr(self, f"{name}_bias")
        return weight[: getattr(self, f"{name}_features"), :in_features], None if bias is None else bias[expert]


def _pack(weight: torch.Tensor, method: str | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """weight: `[experts, N, K]`. Experts are quantized one at a time."""
    if method is None:
        return torch.ops.gridwork_cpu.linear_pack(weight), None
    packed, scales = (torch.empty(len(weight), *part.shape, dtype=part.dtype) for part in pack(weight[0], method))
    for i, one in enumerate(weight):
        packed[i], scales[i] = pack(one, method)
    return packed, scales


class Packing(NamedTuple):
    """Numbers of modules with experts that were packed, and that were not, since their output does not match their
    declared layout."""

    packed: int
    refused: int


@torch.inference_mode()
def pack_experts(model: nn.Module, method: str | None = None) -> Packing:
    """Replaces, in place, all experts on the CPU that declare the computation of `PackedExperts`, and whose output
    confirms it.

    method: one of `quantized_linear.METHODS`, for experts of a supported shape, or None to keep the weights' type.
    """
    replaced: dict[nn.Module, nn.Module] = {}
    known = [module for module in model.modules() if _is_known(module) and (method is None or _can_quantize(module))]
    for module in known:
        packed = _packed(module, method)
        if packed is not None:
            replaced[module] = packed
            for name, _ in list(module.named_parameters(recurse=False)):
                delattr(module, name)
    replace_modules(model, replaced)
    return Packing(len(replaced), len(known) - len(replaced))


def _packed(module: Any, method: str | None) -> PackedExperts | None:
    weight = module.down_proj
    num_experts, hidden = weight.shape[0], weight.shape[2 if module.is_transposed else 1]
    # Few experts, since all would take long to read.
    x = sample_values(3, hidden).to(weight.dtype)
    index = torch.tensor([[0, num_experts - 1], [num_experts - 1, 0], [num_experts // 2, 0]])
    weights = torch.tensor([[0.75, 0.25], [0.5, 0.5], [1.0, 0.125]])
    try:
        expected = module(x, index, weights)
        packed = PackedExperts(module, method)
        got = packed(x, index, weights)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return None
    return packed if _same(got, expected, method) else None


def _can_quantize(module: Any) -> bool:
    first = module.gate_up_proj if module.has_gate else module.up_proj
    return all(weight.shape[1 if module.is_transposed else 2] % GROUP == 0 for weight in (first, module.down_proj))


def _is_known(module: Any) -> bool:
    """True if a module declares the layout of its experts' weights by the attributes of Transformers'
    `use_experts_implementation`, and has no other weights."""
    says = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "_is_expert_parallel", "_apply_gate")
    if not all(hasattr(module, name) for name in says) or module.has_post_expert_norm or module._is_expert_parallel:
        return False
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    layers = ["gate_up_proj" if module.has_gate else "up_proj", "down_proj"]
    expected = {name: 3 for name in layers} | ({f"{name}_bias": 2 for name in layers} if module.has_bias else {})
    parameters = dict(module.named_parameters(recurse=False))
    return {name: parameter.dim() for name, parameter in parameters.items()} == expected and all(
        parameter.device.type == "cpu"
        and parameter.dtype == parameters["down_proj"].dtype
        and parameter.dtype in DTYPES
        for parameter in parameters.values()
    )


_ROUNDED = {"int8": 0.05, "int4": 0.3}
"""Maximum relative change by quantizing, as root mean squares."""


def _same(got: torch.Tensor, expected: object, method: str | None) -> bool:
    """True if two results are equal except for the order of sums, rounding, and quantizing by `method`."""
    if method is None:
        return equal_up_to_rounding(got, expected, 8)
    if not isinstance(expected, torch.Tensor) or (got.shape, got.dtype) != (expected.shape, expected.dtype):
        return False
    changed = (got.float() - expected.float()).square().mean().sqrt()
    return bool(changed <= _ROUNDED[method] * expected.float().square().mean().sqrt())
