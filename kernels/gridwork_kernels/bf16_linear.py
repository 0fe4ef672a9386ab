"""Linear layers with bfloat16 weights on CPUs that have AVX-512 but no bfloat16 units.

There PyTorch's bfloat16 product runs at a quarter of the speed of a float32 one. This kernel reads the weights as
bfloat16, packed once, and multiplies in float32. A row's result does not depend on the other rows of the batch.
"""

import torch
from torch import nn

from gridwork_kernels import cpu_library

PANEL = 32
"""Output features in a panel of packed weights."""


def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The plain form: x `[..., K]`, weight `[N, K]` and bias `[N]` in bfloat16, summed in float32, rounded once."""
    wide_bias = None if bias is None else bias.float()
    return nn.functional.linear(x.float(), weight.float(), wide_bias).to(x.dtype)


def is_profitable() -> bool:
    """Whether this CPU can run the kernel, and PyTorch has nothing faster for bfloat16 on it."""
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and not torch.cpu._is_avx512_bf16_supported()
        and not torch.cpu._is_amx_tile_supported()
        and cpu_library.load()
    )


class PackedLinear(nn.Module):
    """Stands in for an `nn.Linear` with bfloat16 weights on the CPU."""

    def __init__(self, linear: nn.Linear, float32_out: bool = False) -> None:
        """float32_out: give the sums as they are, instead of rounding them to bfloat16."""
        super().__init__()
        self.float32_out = float32_out
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("packed", torch.ops.gridwork_cpu.bf16_linear_pack(linear.weight.data.contiguous()))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.data.contiguous())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: bfloat16 `[..., in_features]`; returns `[..., out_features]`, bfloat16 unless `float32_out`."""
        return torch.ops.gridwork_cpu.bf16_linear(x, self.packed, self.bias, self.out_features, self.float32_out)

    @property
    def weight(self) -> torch.Tensor:
        """`[out_features, in_features]`, unpacked anew at every call: for code that looks at its dtype or values."""
        panels = self.packed.view(-1, self.in_features, PANEL // 2, 2)
        weight = panels.permute(0, 3, 2, 1).reshape(-1, self.in_features)
        return weight[: self.out_features]


def pack_linears(model: nn.Module, head: nn.Module | None = None) -> int:
    """Replaces every plain bfloat16 `nn.Linear` on the CPU by its packed form, in place. Returns how many.

    head: the layer that gives logits. It gives them in float32: at the size of logits, rounding to bfloat16 makes ties
    of tokens that the model tells apart.

    Subclasses of `nn.Linear` are left alone, since they may do something else; so are layers smaller than a panel.
    """
    replaced: dict[nn.Linear, PackedLinear] = {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() leaves out shared ones
            if type(child) is not nn.Linear or child._forward_hooks or child._forward_pre_hooks:
                continue
            weight = child.weight
            if weight.dtype != torch.bfloat16 or weight.device.type != "cpu" or child.out_features < PANEL:
                continue
            if child not in replaced:
                replaced[child] = PackedLinear(child, float32_out=child is head)
            setattr(parent, name, replaced[child])
    return len(replaced)
