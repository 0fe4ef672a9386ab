"""Linear layers with 8-bit and 4-bit weights on x86-64 CPUs, which replace a model's own.

`int8` has a scale for each output feature, `int4` a scale and an offset for each output feature and 32 input features.
Inputs are quantized to 8 bits, each group of 32 values by its largest magnitude, and multiplied as whole numbers.
"""

import torch
from torch import nn

from gridwork_kernels.packed_linear import is_plain, panel_features
from gridwork_kernels.replace import replace_modules

GROUP = 32
"""Number of input values that share a scale, and of weights that share a scale and an offset (`int4`)."""

METHODS = ("int8", "int4")


def quantize_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight: `[N, K]`. Returns int8 values `[N, K]` and float32 scales `[N]`; weight is approximately values *
    scale."""
    wide = weight.float()
    scale = wide.abs().amax(1).clamp(min=1e-30) / 127
    return (wide / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def quantize_int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """weight: `[N, K]`. Returns uint8 values `[N, K]` from 0 to 15, and float16 scales and offsets `[N, K / 32]`;
    weight is approximately values * scale + offset."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    low, high = groups.amin(2), groups.amax(2)
    scale = ((high - low) / 15).clamp(min=1e-7).half()
    offset = low.half()
    values = (groups - offset[..., None].float()) / scale[..., None].float()
    return values.round().clamp(0, 15).to(torch.uint8).flatten(1), scale, offset


def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The plain form, in float32. x: `[..., K]`, which is quantized as by the kernels; weight: float32 `[N, K]`,
    already quantized; bias: `[N]`."""
    groups = x.float().unflatten(-1, (-1, GROUP))
    largest = groups.abs().amax(-1, keepdim=True)
    inverse = torch.full_like(largest, 127).div(largest)  # `127 / largest` would be rounded twice
    quantized = (groups * torch.where(largest > 0, inverse, 0)).round() * (largest / 127)
    out = nn.functional.linear(quantized.flatten(-2), weight)
    return out if bias is None else out + bias.float()


class QuantizedLinear(nn.Module):
    """Replaces an `nn.Linear` on the CPU."""

    def __init__(self, linear: nn.Linear, method: str, float32_out: bool = False) -> None:
        """float32_out: return unrounded sums, not sums in the input's type."""
        super().__init__()
        self.method, self.float32_out = method, float32_out
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype = linear.weight.dtype
        packed, scales = pack(linear.weight.data, method)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.data.float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: `[..., in_features]`; returns `[..., out_features]`, in x's type unless `float32_out`."""
        run = torch.ops.gridwork_cpu.int8_linear if self.method == "int8" else torch.ops.gridwork_cpu.int4_linear
        return run(x, self.packed, self.scales, self.bias, self.out_features, self.float32_out)

    @property
    def weight(self) -> torch.Tensor:
        """`[out_features, in_features]`, as quantized; computed at every access."""
        return unpack(self.packed, self.scales, self.method)[: self.out_features].to(self.dtype)


def can_quantize(module: nn.Module) -> bool:
    """True if a module is a plain linear layer of a shape that the kernels support."""
    return is_plain(module) and module.out_features >= panel_features() and module.in_features % GROUP == 0


@torch.inference_mode()
def quantize_linears(model: nn.Module, method: str, head: nn.Module | None) -> int:
    """Replaces every plain `nn.Linear` of a supported shape by its quantized form, in place. Returns their number.

    head: the layer that gives logits. It returns float32, and has 8 bits with every method: 4 bits in the head alone
    cost more quality than 4 bits in all other layers.
    """
    replaced: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        if can_quantize(module):
            replaced[module] = QuantizedLinear(
                module,  # type: ignore[arg-type]
                "int8" if module is head else method,
                float32_out=module is head,
            )
    replace_modules(model, replaced)
    return len(replaced)


def pack(weight: torch.Tensor, method: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Packs weights `[N, K]` and their scales in the layout of the kernels."""
    return _pack_int8(weight) if method == "int8" else _pack_int4(weight)


def unpack(packed: torch.Tensor, scales: torch.Tensor, method: str) -> torch.Tensor:
    """The quantized weights in float32 `[N, K]`, with rows of zeros up to whole panels."""
    if method == "int8":
        return packed.transpose(1, 2).flatten(2).flatten(0, 1).float() * scales[:, None]
    halves = torch.stack([packed & 15, packed >> 4], 3)  # [panels, K / 8, W, 2, 4]
    values = halves.transpose(1, 2).flatten(2).flatten(0, 1).float().unflatten(1, (-1, GROUP))
    scale, offset = (scales[:, :, i].transpose(1, 2).flatten(0, 1).float() for i in (0, 1))
    return (values * scale[..., None] + offset[..., None]).flatten(1)


def _padded(values: torch.Tensor, panel: int) -> torch.Tensor:
    """Appends rows of zeros up to a whole number of panels."""
    return nn.functional.pad(values, (0, 0, 0, -len(values) % panel))


def _pack_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values, scale = quantize_int8(weight)
    panel = panel_features()
    panels = _padded(values, panel).unflatten(0, (-1, panel)).unflatten(2, (-1, 4))
    return panels.transpose(1, 2).contiguous(), nn.functional.pad(scale, (0, -len(scale) % panel))


def _pack_int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values, scale, offset = quantize_int4(weight)
    panel = panel_features()
    eights = _padded(values, panel).unflatten(0, (-1, panel)).unflatten(2, (-1, 2, 4))  # [panels, W, K / 8, 2, 4]
    packed = eights[:, :, :, 0] | (eights[:, :, :, 1] << 4)
    both = torch.stack([_padded(part, panel).unflatten(0, (-1, panel)).transpose(1, 2) for part in (scale, offset)], 2)
    return packed.transpose(1, 2).contiguous(), both.contiguous()
