"""Writes checkpoints in the formats of quantizers, and the plain weights that they represent."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .damage import change_weights, set_config

FP8 = torch.float8_e4m3fn


def save_fp8(folder: Path, block: int, chosen: str = "proj", config: dict[str, Any] | None = None) -> Path:
    """Quantizes the matrices of a folder whose names contain `chosen`, in square blocks. Returns a folder with the
    plain weights that the quantized ones represent."""
    plain = Path(shutil.copytree(folder, folder.with_name(f"{folder.name}-plain")))

    def quantize(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if chosen in name and tensors[name].dim() == 2]:
            tensors[name], tensors[f"{name}_scale_inv"] = in_blocks(tensors[name], block)

    def dequantized(tensors: dict[str, torch.Tensor]) -> None:
        stored = load_file(folder / "model.safetensors")
        for name in tensors:
            if f"{name}_scale_inv" in stored:
                tensors[name] = out_of_blocks(stored[name], stored[f"{name}_scale_inv"], block)

    change_weights(folder, quantize)
    change_weights(plain, dequantized)
    declared = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [block, block]}
    set_config(folder, quantization_config=declared if config is None else config)
    return plain


def in_blocks(weight: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes values to 8 bits; returns them with the scale of each block."""
    rows, columns = (-(-size // block) for size in weight.shape)
    scales = torch.empty(rows, columns)
    for row in range(rows):
        for column in range(columns):
            part = weight[row * block : (row + 1) * block, column * block : (column + 1) * block]
            scales[row, column] = part.abs().max() / torch.finfo(FP8).max
    return (weight / _spread(scales, block, weight)).to(FP8), scales


def out_of_blocks(values: torch.Tensor, scales: torch.Tensor, block: int) -> torch.Tensor:
    """Plain values that 8-bit values and their scales represent."""
    return values.float() * _spread(scales, block, values)


def _spread(scales: torch.Tensor, block: int, like: torch.Tensor) -> torch.Tensor:
    wide = scales.repeat_interleave(block, 0).repeat_interleave(block, 1)
    return wide[: like.shape[0], : like.shape[1]]


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def mxfp4(num_experts: int, outputs: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Makes random blocks `[experts, outputs, inputs / 32, 16]`, their scales, and the plain weights `[experts, inputs,
    outputs]` that they represent."""
    blocks = torch.randint(0, 256, (num_experts, outputs, inputs // 32, 16), dtype=torch.uint8)
    scales = torch.randint(122, 126, (num_experts, outputs, inputs // 32), dtype=torch.uint8)
    codes = torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-2).long()
    values = torch.tensor(E2M1)[codes] * (scales.float() - 127).exp2().unsqueeze(-1)
    return blocks, scales, values.flatten(-2).transpose(1, 2).contiguous()
