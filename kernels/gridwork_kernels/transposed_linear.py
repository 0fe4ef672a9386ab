"""Turns linear layers with transposed weights `[in, out]`, such as GPT-2's, into plain `nn.Linear` layers, which can be
packed, quantized and merged.
"""

import inspect

import torch
from torch import nn

from gridwork_kernels.packed_linear import DTYPES, reference
from gridwork_kernels.replace import equal_up_to_rounding, replace_modules, sample_values


@torch.inference_mode()
def make_plain(model: nn.Module) -> int:
    """Replaces, in place, every module on the CPU whose output shows that it computes `x @ weight + bias`. Returns
    their number."""
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
    # With several leading dimensions.
    x = sample_values(1, 2, weight.shape[0]).to(weight.dtype)
    try:
        got = module(x)
    except (RuntimeError, TypeError, ValueError):
        return None
    if not equal_up_to_rounding(got, reference(x, weight.t(), bias), 4):
        return None
    out_features, in_features = weight.shape[1], weight.shape[0]
    linear = nn.Linear(in_features, out_features, device="meta", dtype=weight.dtype)
    linear.weight, linear.bias = nn.Parameter(weight.data.t(), requires_grad=False), module.bias  # type: ignore[assignment]
    return linear.train(module.training)
