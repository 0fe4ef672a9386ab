"""Depthwise causal convolutions over the tokens of each sequence, with their last inputs in a pool."""

import torch

from gridwork_kernels.states import has_kernels, sequences

_SIZES = range(2, 9)
"""Sizes that there are kernels for."""


def reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    silu: bool,
    starts: torch.Tensor,
    slots: torch.Tensor,
    fresh: torch.Tensor,
    pool: torch.Tensor,
) -> torch.Tensor:
    """The plain form of `causal_conv`."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for tokens, slot, past in sequences(starts, slots, fresh, pool):
        inputs = torch.cat((past, x[tokens.start : tokens.stop]))
        result = torch.nn.functional.conv1d(inputs.T[None], weight[:, None], bias, groups=len(weight))[0].T
        out[tokens.start : tokens.stop] = torch.nn.functional.silu(result) if silu else result
        pool[slot] = inputs[len(inputs) - len(past) :]
    return out


def causal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    silu: bool,
    starts: torch.Tensor,
    slots: torch.Tensor,
    fresh: torch.Tensor,
    pool: torch.Tensor,
) -> torch.Tensor:
    """Sets each channel to the sum of its last inputs, times weights, plus a bias; then, with `silu`, to its SiLU.

    x: `[T, C]`; weight: `[C, size]`, of an output's inputs, the oldest first; bias: `[C]`; pool: `[slots, size - 1,
    C]`, changed in place; all of one dtype. For the others see `states.py`. Returns `[T, C]`.
    """
    if weight.shape[1] in _SIZES and weight.is_contiguous() and has_kernels(x, weight, bias, pool):
        out: torch.Tensor = torch.ops.gridwork_cpu.causal_conv(x, weight, bias, silu, starts, slots, fresh, pool)
        return out
    return reference(x, weight, bias, silu, starts, slots, fresh, pool)
