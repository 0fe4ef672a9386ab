"""Linear layers whose weights lie the other way round, `[in, out]`, as plain `nn.Linear` layers.

GPT-2's are such. As plain ones they can be packed, quantized and merged like any other.
"""

import inspect

import torch
from torch import nn

from gridwork_kernels.packed_linear import DTYPES, reference
from gridwork_kernels.replace import replace_modules


@torch.inference_mode()
def make_plain(model: nn.Module) -> int:
    """Replaces every module on the CPU that computes `x @ weight + bias`, in place; whether it does is found by
    computing. Returns how many."""
    replaced: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        plain = _plain(module)
        if plain is not None:
            replaced[module] = plain
    replace_modules(model, replaced)
    return len(replaced)


def _plain(module: nn.Module) -> nn.Linear | None:
    parameters = dict(module.named_parameters(recurse=False))
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if isinstance(module, nn.Linear) or weight is None or bias is None or len(parameters) != 2:
        return None
    if weight.dim() != 2 or bias.shape != weight.shape[1:] or weight.device.type != "cpu":
        return None
    if weight.dtype not in DTYPES or bias.dtype != weight.dtype:
        return None
    if next(module.children(), None) is not None or next(module.buffers(recurse=False), None) is not None:
        return None
    if module._forward_hooks or module._forward_pre_hooks or len(inspect.signature(module.forward).parameters) != 1:
        return None
    # Values as if by chance, without touching anybody's generator; more dimensions than one of rows.
    x = torch.sin(torch.arange(2 * weight.shape[0]).view(1, 2, -1) * 12.9898).to(weight.dtype)
    try:
        got = module(x)
    except (RuntimeError, TypeError, ValueError):
        return None
    if not _same(got, reference(x, weight.t(), bias)):
        return None
    out_features, in_features = weight.shape[1], weight.shape[0]
    linear = nn.Linear(in_features, out_features, device="meta", dtype=weight.dtype)
    linear.weight, linear.bias = nn.Parameter(weight.data.t(), requires_grad=False), module.bias  # type: ignore[assignment]
    return linear.train(module.training)


def _same(got: object, expected: torch.Tensor) -> bool:
    """Equal but for the order of sums and where they are rounded."""
    if not isinstance(got, torch.Tensor) or (got.shape, got.dtype) != (expected.shape, expected.dtype):
        return False
    tolerance = max(1e-5, 4 * torch.finfo(got.dtype).eps)
    largest = float(expected.abs().max())
    return torch.allclose(got.float(), expected.float(), rtol=tolerance, atol=tolerance * largest)
