"""RMSNorm with a gate, in one pass on x86-64 CPUs. It replaces modules whose output shows what they compute."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from gridwork_kernels.program_table import ACTIVATIONS
from gridwork_kernels.replace import equal_up_to_rounding, replace_modules, sample_values
from gridwork_kernels.rms_norm import DTYPES, eps_of


@dataclass(frozen=True)
class Form:
    """The kind of a norm with a gate."""

    gate_first: bool
    """True if the gate multiplies the values before the norm; else it multiplies the result."""
    activation: int
    """The gate's activation: the number of SiLU or of the logistic function in the kernels' table."""
    width: int
    """Number of consecutive values that are normalised together."""
    float32_out: bool
    """True if float32 values give a float32 result; else the result has the gate's dtype."""


def reference(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float, form: Form) -> torch.Tensor:
    """The plain form. x: `[..., W]`, float32 or of the gate's dtype; gate: the same shape; weight: `[W]`."""
    activation = torch.sigmoid if form.activation == ACTIVATIONS["sigmoid"] else nn.functional.silu
    wide, gates = x.float(), activation(gate.float())
    if form.gate_first:
        wide = wide * gates
    groups = wide.unflatten(-1, (-1, form.width))
    normalised = (groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + eps)).flatten(-2)
    result = weight * normalised.to(x.dtype)
    if not form.gate_first:
        result = result * gates
    return result.to(_result_dtype(x, gate, form))


def _result_dtype(x: torch.Tensor, gate: torch.Tensor, form: Form) -> torch.dtype:
    return torch.float32 if form.float32_out and x.dtype == torch.float32 else gate.dtype


class FusedGatedNorm(nn.Module):
    """Computes `reference` by the kernel."""

    def __init__(self, plain: nn.Module, eps: float, form: Form) -> None:
        """plain: the module that is replaced. It keeps the weight, and computes inputs of other dtypes."""
        super().__init__()
        self.plain, self.eps, self.form = plain, eps, form
        self.weight = plain.weight

    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        """See `reference`."""
        if gate is None or gate.dtype != self.weight.dtype or x.dtype not in (torch.float32, gate.dtype):
            out: torch.Tensor = self.plain(x, gate)
            return out
        return self.fused(x, gate)

    def fused(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Computes the norm by the kernel."""
        width, form = x.shape[-1], self.form
        float32_out = _result_dtype(x, gate, form) == torch.float32
        rows = (tensor.reshape(-1, 1, width) for tensor in (x, gate))
        out = torch.ops.gridwork_cpu.gated_norm(
            *rows, self.weight, self.eps, form.width, form.gate_first, form.activation, float32_out
        )
        return out.view(x.shape)


@torch.inference_mode()
def fuse_gated_norms(model: nn.Module) -> int:
    """Replaces, in place, every module on the CPU whose output shows that it computes such a norm. Returns their
    number."""
    replaced: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        fused = _fused(module)
        if fused is not None:
            replaced[module] = fused
    replace_modules(model, replaced)
    return len(replaced)


def _fused(module: nn.Module) -> FusedGatedNorm | None:
    parameters = dict(module.named_parameters(recurse=False))
    weight, eps = parameters.get("weight"), eps_of(module)
    if len(parameters) != 1 or weight is None or eps is None or next(module.children(), None) is not None:
        return None
    if weight.dim() != 1 or weight.dtype not in DTYPES or weight.device.type != "cpu":
        return None
    if module._forward_hooks or module._forward_pre_hooks or len(inspect.signature(module.forward).parameters) != 2:
        return None
    width = len(weight)
    # Rows of many magnitudes, so that a wrong epsilon shows.
    x = (sample_values(6, width) * 1.5 + 0.5) * torch.tensor([1e-3, 1e-2, 0.1, 1, 10, 100])[:, None]
    gate = (sample_values(6, width + 1)[:, 1:] * 3).contiguous().to(weight.dtype)
    samples = [x[None]] if weight.dtype == torch.float32 else [x[None], x[None].to(weight.dtype)]
    try:
        expected = [module(sample, gate[None]) for sample in samples]
    except (RuntimeError, TypeError, ValueError):
        return None
    for form in _forms(module, width):
        fused = FusedGatedNorm(module, eps, form)
        pairs = zip(samples, expected, strict=True)
        if all(equal_up_to_rounding(fused.fused(sample, gate[None]), result, 2) for sample, result in pairs):
            return fused
    return None


def _forms(module: nn.Module, width: int) -> Iterator[Form]:
    """Every form that a module of this width may have."""
    group = getattr(module, "group_size", None)
    widths = {width, group} if isinstance(group, int) and group > 0 and width % group == 0 else {width}
    for activation in (ACTIVATIONS["silu"], ACTIVATIONS["sigmoid"]):
        for gate_first in (True, False):
            for own in sorted(widths):
                yield from (Form(gate_first, activation, own, float32_out) for float32_out in (True, False))
