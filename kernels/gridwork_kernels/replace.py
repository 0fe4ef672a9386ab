"""Replacement of modules in a model, and the comparison of a module's output with its replacement's."""

import math

import torch
from torch import nn


def replace_modules(model: nn.Module, replaced: dict[nn.Module, nn.Module]) -> None:
    """Replaces modules everywhere in a model, in place. A module that is used in several places stays shared."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() omits shared ones
            if child in replaced:
                setattr(parent, name, replaced[child])


def sample_values(*shape: int) -> torch.Tensor:
    """Pseudo-random float32 values between -1 and 1, without a generator."""
    return torch.sin(torch.arange(math.prod(shape)).view(shape) * 12.9898)


def equal_up_to_rounding(got: object, expected: object, steps: int) -> bool:
    """True if two tensors have the same shape and dtype, and are equal except for the order of sums and rounding.
    steps: allowed difference, in rounding steps of the dtype."""
    if not isinstance(got, torch.Tensor) or not isinstance(expected, torch.Tensor):
        return False
    if (got.shape, got.dtype) != (expected.shape, expected.dtype):
        return False
    tolerance = max(1e-5, steps * torch.finfo(got.dtype).eps)
    largest = float(expected.abs().max())
    return torch.allclose(got.float(), expected.float(), rtol=tolerance, atol=tolerance * largest)
