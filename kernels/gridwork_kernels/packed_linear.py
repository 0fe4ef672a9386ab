"""Linear layers with packed weights on CPUs.

Weights are packed once, in their own type, and sums are in float32. A row's result does not depend on the other rows of
the batch.
"""

from typing import TypeGuard

import torch
from torch import nn

from gridwork_kernels import cpu_library
from gridwork_kernels.replace import replace_modules

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The plain form: x `[..., K]`, weight `[N, K]` and bias `[N]` in one type, summed in float32, rounded once."""
    wide_bias = None if bias is None else bias.float()
    return nn.functional.linear(x.float(), weight.float(), wide_bias).to(x.dtype)


def panel_features() -> int:
    """Number of output features in a panel of packed weights."""
    return int(torch.ops.gridwork_cpu.linear_panel())


class PackedLinear(nn.Module):
    """Replaces an `nn.Linear` on the CPU."""

    def __init__(self, linear: nn.Linear, float32_out: bool = False) -> None:
        """float32_out: return unrounded sums, not sums in the weights' type."""
        super().__init__()
        self.float32_out = float32_out
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("packed", torch.ops.gridwork_cpu.linear_pack(linear.weight.data))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.data.float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: `[..., in_features]`; returns `[..., out_features]`, in x's type unless `float32_out`."""
        return torch.ops.gridwork_cpu.linear(x, self.packed, self.bias, self.out_features, self.float32_out)

    @property
    def weight(self) -> torch.Tensor:
        """`[out_features, in_features]`, unpacked at every access, for code that reads its dtype or values."""
        rows = self.packed.transpose(1, 2).flatten(2).flatten(0, 1)
        return rows[: self.out_features, : self.in_features]


class Float32Linear(nn.Module):
    """An `nn.Linear` that computes and returns float32: the plain form of `PackedLinear` with `float32_out`."""

    def __init__(self, linear: nn.Linear) -> None:
        """Keeps a float32 copy of the weights."""
        super().__init__()
        self.register_buffer("weight", linear.weight.data.float())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.data.float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: `[..., in_features]`; returns float32 `[..., out_features]`."""
        return nn.functional.linear(x.float(), self.weight, self.bias)


def pack_linears(model: nn.Module) -> int:
    """Replaces every plain `nn.Linear` on the CPU by its packed form, in place. Returns their number.

    Subclasses of `nn.Linear`, which may compute something else, and layers smaller than a panel stay as they are.
    """
    replaced: dict[nn.Module, nn.Module] = {}
    for child in model.modules():
        if is_plain(child) and child.out_features >= panel_features():
            replaced[child] = PackedLinear(child)
    replace_modules(model, replaced)
    return len(replaced)


def widen_head(model: nn.Module, head: nn.Module) -> bool:
    """Makes the head return logits in float32, in place: rounded to bfloat16, logits of tokens that the model tells
    apart would tie. Returns False for a head that is not a plain 16-bit `nn.Linear` on the CPU."""
    if not is_plain(head) or head.weight.dtype == torch.float32:
        return False
    packable = cpu_library.load() is not None and head.out_features >= panel_features()
    replace_modules(model, {head: PackedLinear(head, float32_out=True) if packable else Float32Linear(head)})
    return True


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """True if a module is exactly an `nn.Linear`, without hooks, on the CPU."""
    return (
        type(module) is nn.Linear
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and module.weight.dtype in DTYPES
        and module.weight.device.type == "cpu"
    )
