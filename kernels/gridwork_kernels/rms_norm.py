"""RMSNorm, and LayerNorm without a bias, in one pass on x86-64 CPUs. They replace modules whose output shows that they
compute the same."""

import inspect
from enum import IntEnum

import torch
from torch import nn

from gridwork_kernels.program_table import NORMS
from gridwork_kernels.replace import replace_modules, sample_values

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Form(IntEnum):
    """Ways in which normalised values, in float32, are scaled and rounded; values are those of the kernel's table."""

    ROUNDED_FIRST = NORMS["rms"]
    """Rounded to x's dtype, then multiplied by the weight, as in Llama."""
    PLUS_ONE = NORMS["rms_plus_one"]
    """Multiplied by `1 + weight`, then rounded, as in Gemma."""
    ROUNDED_LAST = NORMS["rms_once"]
    """Multiplied by the weight, then rounded, as in OLMo 2."""


def reference(x: torch.Tensor, weight: torch.Tensor, eps: float, form: Form) -> torch.Tensor:
    """The plain form. x: `[..., width]`, weight: `[width]`, the same dtype."""
    wide = x.float()
    normalised = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if form != Form.ROUNDED_FIRST:
        return (normalised * (weight.float() + int(form == Form.PLUS_ONE))).to(x.dtype)
    return weight * normalised.to(x.dtype)


class _FusedNorm(nn.Module):
    """Replaces a module that is a norm with a weight."""

    def __init__(self, plain: nn.Module, eps: float) -> None:
        """plain: the module that is replaced. It keeps the weight, and computes inputs of other dtypes."""
        super().__init__()
        self.plain, self.eps = plain, eps
        self.weight = plain.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: `[..., width]`; returns the same shape and dtype."""
        if x.dtype != self.weight.dtype:
            out: torch.Tensor = self.plain(x)
            return out
        return self.fused(x)

    def fused(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the norm by the kernel."""
        raise NotImplementedError


class FusedRMSNorm(_FusedNorm):
    """Computes `reference` by the kernel."""

    def __init__(self, plain: nn.Module, eps: float, form: Form) -> None:
        super().__init__(plain, eps)
        self.form = form

    def fused(self, x: torch.Tensor) -> torch.Tensor:
        """See _FusedNorm."""
        return torch.ops.gridwork_cpu.rms_norm(x, self.weight, self.eps, self.form)


class FusedLayerNorm(_FusedNorm):
    """`(x - mean) * rsqrt(variance + eps) * weight` in float32, rounded once."""

    def fused(self, x: torch.Tensor) -> torch.Tensor:
        """See _FusedNorm."""
        return torch.ops.gridwork_cpu.layer_norm(x, self.weight, None, self.eps)


@torch.inference_mode()
def fuse_norms(model: nn.Module) -> int:
    """Replaces, in place, every module on the CPU whose output shows that it computes such a norm. Returns their
    number."""
    replaced: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        fused = _fused(module)
        if fused is not None:
            replaced[module] = fused
    replace_modules(model, replaced)
    return len(replaced)


def _fused(module: nn.Module) -> _FusedNorm | None:
    parameters = dict(module.named_parameters(recurse=False))
    weight, eps = parameters.get("weight"), eps_of(module)
    if len(parameters) != 1 or weight is None or eps is None or next(module.children(), None) is not None:
        return None
    if isinstance(module, nn.LayerNorm):  # one operation already
        return None
    if weight.dim() != 1 or weight.dtype not in DTYPES or weight.device.type != "cpu":
        return None
    if module._forward_hooks or module._forward_pre_hooks or len(inspect.signature(module.forward).parameters) != 1:
        return None
    # Rows of many magnitudes, so that a wrong epsilon shows, with a mean.
    x = sample_values(6, weight.numel()) * 1.5 + 0.5
    x = x * torch.tensor([1e-4, 1e-3, 1e-2, 1, 10, 100])[:, None]
    x = x.to(weight.dtype)
    try:
        expected = module(x)
    except (RuntimeError, TypeError, ValueError):
        return None
    for norm in (FusedRMSNorm(module, eps, form) for form in Form):
        if _same(norm.fused(x), expected):
            return norm
    layer = FusedLayerNorm(module, eps)
    # Values near the mean lose precision in the difference.
    return layer if _same(layer.fused(x), expected, 1e-6 * weight.float().abs()) else None


def eps_of(module: nn.Module) -> float | None:
    """The number that a norm adds to its mean, by the names that models give it."""
    for name in ("variance_epsilon", "eps", "epsilon"):
        value = getattr(module, name, None)
        if isinstance(value, float):
            return value
    return None


def _same(got: torch.Tensor, expected: object, slack: torch.Tensor | None = None) -> bool:
    """True if two results are equal except for the order of the sum: a value may differ in its last place, and few may
    in bfloat16. slack: `[width]`, an additional tolerance."""
    if not isinstance(expected, torch.Tensor) or expected.shape != got.shape or expected.dtype != got.dtype:
        return False
    step = 1e-5 if got.dtype == torch.float32 else torch.finfo(got.dtype).eps
    allowed = step * expected.float().abs() + (0 if slack is None else slack)
    close = bool(((got.float() - expected.float()).abs() <= allowed).all())
    return close and (got.dtype == torch.float32 or bool((got != expected).float().mean() < 0.01))
