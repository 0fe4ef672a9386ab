"""Checks, by computing with a small copy of a module, whether its features can be computed independently.

A tensor-parallel plan says which layers are split, but not what the module does with the features in between. It may
split them into gates and values, or normalize over all of them, which a part of the features cannot reproduce.
"""

import copy
from collections.abc import Callable

import torch
from torch import nn

_INPUTS, _FEATURES, _OUTPUTS = 5, 12, 7
"""Sizes of the small copy, all different so that a confusion of two of them shows."""

_PARTS = ((0, 4), (4, 12))
"""Parts of the features: uneven, and multiples of 4 for activations that work in groups."""

_TOLERANCE = 1e-4


@torch.no_grad()
def features_are_independent(module: nn.Module, producers: dict[str, int], consumer: str) -> bool | None:
    """Tells whether parts of the features, computed separately and summed, equal the result of all features together.

    producers: the linear layers that produce the features, by child name, each with the number of packs of features in
    its output. consumer: the child that consumes the features. Returns None when the module cannot be run with other
    sizes than its own, which proves nothing.
    """
    generator = torch.Generator().manual_seed(0)

    def linear(out_features: int, in_features: int, like: nn.Module) -> nn.Linear:
        small = nn.Linear(in_features, out_features, bias=getattr(like, "bias", None) is not None, dtype=torch.float32)
        for parameter in small.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        return small

    whole = {name: linear(packs * _FEATURES, _INPUTS, module.get_submodule(name)) for name, packs in producers.items()}
    whole[consumer] = linear(_OUTPUTS, _FEATURES, module.get_submodule(consumer))
    x = torch.randn(1, 3, _INPUTS, generator=generator)

    def run(part: tuple[int, int]) -> torch.Tensor:
        start, stop = part
        layers = {}
        for name, packs in producers.items():
            rows = torch.cat([torch.arange(start, stop) + pack * _FEATURES for pack in range(packs)])
            layers[name] = _narrowed(whole[name], rows, None)
        layers[consumer] = _narrowed(whole[consumer], None, torch.arange(start, stop))
        if start and layers[consumer].bias is not None:
            layers[consumer].bias.zero_()
        return _with_children(module, layers)(x)

    try:
        expected = run((0, _FEATURES))
        got = torch.stack([run(part) for part in _PARTS]).sum(0)
        return expected.shape == (1, 3, _OUTPUTS) and _same(expected, got)
    except Exception:
        return None


@torch.no_grad()
def gate_layout(experts: nn.Module) -> str | None:
    """Layout of gates and values in the first result of experts: `halves`, or `pairs` of neighbours; `mixed` when a
    feature depends on others. None when the module does not tell."""
    apply_gate: Callable[[torch.Tensor], torch.Tensor] | None = getattr(experts, "_apply_gate", None)
    if apply_gate is None or not getattr(experts, "has_gate", True):
        return None
    x = torch.randn(3, 2 * _FEATURES, generator=torch.Generator().manual_seed(0))
    start, stop = _PARTS[1]
    layouts = {
        "halves": torch.cat([x[:, start:stop], x[:, _FEATURES + start : _FEATURES + stop]], dim=1),
        "pairs": x[:, 2 * start : 2 * stop],
    }
    try:
        expected = apply_gate(x)[:, start:stop]
        return next((name for name, part in layouts.items() if _same(expected, apply_gate(part))), "mixed")
    except Exception:
        return None


def _narrowed(linear: nn.Linear, rows: torch.Tensor | None, columns: torch.Tensor | None) -> nn.Linear:
    part = copy.deepcopy(linear)
    if rows is not None:
        part.weight = nn.Parameter(part.weight[rows])
        if part.bias is not None:
            part.bias = nn.Parameter(part.bias[rows])
    if columns is not None:
        part.weight = nn.Parameter(part.weight[:, columns])
    part.out_features, part.in_features = part.weight.shape
    return part


def _with_children(module: nn.Module, children: dict[str, nn.Linear]) -> nn.Module:
    """A copy of the module with some children replaced. Other children are shared, unless they have parameters: those
    may be on `meta`, so they get a constant value that does not matter."""
    other = copy.copy(module)
    other._modules = {name: child and _with_values(child) for name, child in module._modules.items()} | children
    return other.eval()


def _with_values(module: nn.Module) -> nn.Module:
    if next(module.parameters(), None) is None:
        return module
    other = copy.deepcopy(module)
    for owner in other.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                owner._parameters[name] = nn.Parameter(torch.full(parameter.shape, 0.5))
    return other


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool(torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE * 10))
