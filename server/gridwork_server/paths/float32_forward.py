"""Runs a 16-bit model in float32 for a while, with the same weights but without rounding between operations."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from gridwork_kernels.experts import PackedExperts
from gridwork_kernels.packed_linear import PackedLinear
from gridwork_kernels.quantized_linear import QuantizedLinear
from gridwork_kernels.replace import replace_modules

_HALF_DTYPES = (torch.bfloat16, torch.float16)

_WIDE_SHARE = 0.5
"""Largest share of the free memory for float32 copies of all weights. Beyond it, modules are widened one at a time."""


@contextlib.contextmanager
def in_float32(model: nn.Module, free_bytes: int) -> Iterator[None]:
    """Makes the model compute in float32 with its own weights, for the duration of a `with` block.

    All weights become float32 at once if free_bytes, of the device's memory, has room for them. Otherwise a module's
    weights become float32 before its `forward()` and are dropped after it, which needs room for the largest module
    only.
    """
    replaced: dict[nn.Module, nn.Module] = {}
    has_room = _wide_bytes(model) <= free_bytes * _WIDE_SHARE
    for module in model.modules():
        if isinstance(module, PackedLinear | QuantizedLinear):
            replaced[module] = _WideLinear(module, keep=has_room)
        elif isinstance(module, PackedExperts):
            replaced[module] = _WideExperts(module)
    replace_modules(model, replaced)
    owners = [module for module in model.modules() if _half_tensors(module)]
    try:
        if has_room:
            with _widen_all(owners):
                yield
        else:
            with _widen_each_call(owners):
                yield
    finally:
        replace_modules(model, {wide: packed for packed, wide in replaced.items()})


def _wide_bytes(model: nn.Module) -> int:
    """Size of float32 copies of all weights, without those of experts, which are widened one at a time."""
    sizes = {id(tensor): tensor.numel() * 4 for module in model.modules() for _, _, tensor in _half_tensors(module)}
    linears = (module for module in model.modules() if isinstance(module, PackedLinear | QuantizedLinear))
    return sum(sizes.values()) + sum(module.in_features * module.out_features * 4 for module in linears)


def _half_tensors(module: nn.Module) -> list[tuple[dict[str, Any], str, torch.Tensor]]:
    """A module's own 16-bit parameters and buffers, and the dictionaries that hold them."""
    return [
        (kept, name, tensor)
        for kept in (module._parameters, module._buffers)
        for name, tensor in kept.items()
        if tensor is not None and tensor.dtype in _HALF_DTYPES
    ]


@contextlib.contextmanager
def _widen_all(owners: list[nn.Module]) -> Iterator[None]:
    restore = []
    wide: dict[int, torch.Tensor] = {}  # tied tensors stay tied
    try:
        for module in owners:
            for kept, name, tensor in _half_tensors(module):
                if id(tensor) not in wide:
                    wide[id(tensor)] = _widened(tensor)
                restore.append((kept, name, tensor))
                kept[name] = wide[id(tensor)]
        yield
    finally:
        for kept, name, tensor in restore:
            kept[name] = tensor


@contextlib.contextmanager
def _widen_each_call(owners: list[nn.Module]) -> Iterator[None]:
    restore: dict[nn.Module, list[list[tuple[dict[str, Any], str, torch.Tensor]]]] = {}
    handles = []

    def widen(module: nn.Module, *_arguments: Any) -> None:
        found = _half_tensors(module)
        restore.setdefault(module, []).append(found)
        for kept, name, tensor in found:
            kept[name] = _widened(tensor)

    def narrow(module: nn.Module, *_arguments: Any) -> None:
        for kept, name, tensor in restore[module].pop():
            kept[name] = tensor

    try:
        for module in owners:
            handles.append(module.register_forward_pre_hook(widen, prepend=True))
            handles.append(module.register_forward_hook(narrow, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, unfinished in restore.items():
            while unfinished:
                narrow(module)


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    wide = tensor.detach().float()
    return nn.Parameter(wide, requires_grad=False) if isinstance(tensor, nn.Parameter) else wide


class _WideLinear(nn.Module):
    """A packed or quantized layer that computes in float32 with its own weights."""

    def __init__(self, packed: PackedLinear | QuantizedLinear, keep: bool) -> None:
        """keep: keep the unpacked weights instead of unpacking them at every call."""
        super().__init__()
        self._packed = [packed]  # a list keeps it from becoming a child module
        self._keep = keep
        self._weight: torch.Tensor | None = None
        self.in_features, self.out_features = packed.in_features, packed.out_features
        self.bias = packed.bias

    @property
    def weight(self) -> torch.Tensor:
        """The unpacked weight, float32 `[out_features, in_features]`."""
        weight = self._packed[0].weight.float() if self._weight is None else self._weight
        if self._keep:
            self._weight = weight
        return weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: `[..., in_features]`; returns float32 `[..., out_features]`."""
        return nn.functional.linear(x.float(), self.weight, self.bias)


class _WideExperts(nn.Module):
    """Packed experts that compute in float32 with their own weights."""

    def __init__(self, packed: PackedExperts) -> None:
        super().__init__()
        self._packed = [packed]

    def forward(self, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Computes as PackedExperts does, and unpacks one expert at a time."""
        packed = self._packed[0]
        between: Callable[[torch.Tensor], torch.Tensor]
        between = packed.plain._apply_gate if packed.plain.has_gate else packed.plain.act_fn
        wide = x.float()
        out = torch.zeros_like(wide)
        for expert in index.unique().tolist():
            tokens, nth = torch.where(index == expert)
            first, first_bias = packed.layer("first", expert, wide.shape[1])
            pairs = between(nn.functional.linear(wide[tokens], first, first_bias))
            second, second_bias = packed.layer("second", expert, pairs.shape[1])
            results = nn.functional.linear(pairs, second, second_bias) * weights[tokens, nth, None].float()
            out.index_add_(0, tokens, results)
        return out
