"""Linear layers with 8-bit and 4-bit weights on x86-64 CPUs, in the place of a model's own.

`int8`: a scale for each output feature; `int4`: a scale and an offset for each feature and 32 input features. Inputs
are quantized to 8 bits on the way, each 32 values by the largest of them, and multiplied as whole numbers.
"""

import torch
from torch import nn

from gridwork_kernels.packed_linear import is_plain, panel_features
from gridwork_kernels.replace import replace_modules

GROUP = 32
"""Values of the input that share a scale, and weights that share a scale and an offset (`int4`)."""

METHODS = ("int8", "int4")


def quantize_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight: `[N, K]`. Returns int8 `[N, K]` and float32 `[N]`: weight is about values * scale."""
    wide = weight.float()
    scale = wide.abs().amax(1).clamp(min=1e-30) / 127
    return (wide / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def quantize_int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """weight: `[N, K]`. Returns uint8 `[N, K]` of 0 to 15, and float16 `[N, K / 32]` twice: weight is about values *
    scale + offset."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    low, high = groups.amin(2), groups.amax(2)
    scale = ((high - low) / 15).clamp(min=1e-7).half()
    offset = low.half()
    values = (groups - offset[..., None].float()) / scale[..., None].float()
    return values.round().clamp(0, 15).to(torch.uint8).flatten(1), scale, offset


def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The plain form, in float32. x: `[..., K]`, quantized as the kernels do; weight: float32 `[N, K]`, as it is after
    quantizing; bias: `[N]`."""
    groups = x.float().unflatten(-1, (-1, GROUP))
    largest = groups.abs().amax(-1, keepdim=True)
    inverse = torch.full_like(largest, 127).div(largest)  # `127 / largest` would be rounded twice
    quantized = (groups * torch.where(largest > 0, inverse, 0)).round() * (largest / 127)
    out = nn.functional.linear(quantized.flatten(-2), weight)
    return out if bias is None else out + bias.float()


class QuantizedLinear(nn.Module):
    """Stands in for an `nn.Linear` on the CPU."""

    def __init__(self, linear: nn.Linear, method: str, float32_out: bool = False) -> None:
        """float32_out: give the sums as they are, instead of rounding them to the input's type."""
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
        """`[out_features, in_features]`, as it is after quantizing; made anew at every call."""
        return unpack(self.packed, self.scales, self.method)[: self.out_features].to(self.dtype)


def can_quantize(module: nn.Module) -> bool:
    """Whether a module is a plain linear layer of a shape that the kernels can do."""
    return is_plain(module) and module.out_features >= panel_features() and module.in_features % GROUP == 0


@torch.inference_mode()
def quantize_linears(model: nn.Module, method: str, head: nn.Module | None) -> int:
    """Replaces every plain `nn.Linear` of a fitting shape by its quantized form, in place. Returns how many.

    head: the layer that gives logits. It gives them in float32, and has 8 bits at least: rounding it to 4 was seen to
    cost more than rounding all other layers together.
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
    """Weights `[N, K]` and their scales as the kernels read them."""
    return _pack_int8(weight) if method == "int8" else _pack_int4(weight)


def unpack(packed: torch.Tensor, scales: torch.Tensor, method: str) -> torch.Tensor:
    """What `pack` was given, as it is after quantizing: float32 `[N, K]`, with rows of zeros up to whole panels."""
    if method == "int8":
        return packed.transpose(1, 2).flatten(2).flatten(0, 1).float() * scales[:, None]
    halves = torch.stack([packed & 15, packed >> 4], 3)  # [panels, K / 8, W, 2, 4]
    values = halves.transpose(1, 2).flatten(2).flatten(0, 1).float().unflatten(1, (-1, GROUP))
    scale, offset = (scales[:, :, i].transpose(1, 2).flatten(0, 1).float() for i in (0, 1))
    return (values * scale[..., None] + offset[..., None]).flatten(1)


def _padded(values: torch.Tensor, panel: int) -> torch.Tensor:
    """More rows of zeros, up to a whole number of panels."""
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
