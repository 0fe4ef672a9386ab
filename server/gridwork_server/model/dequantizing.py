"""Loads checkpoints that Transformers converts to ordinary weights: FP8 in blocks, MXFP8 and MXFP4.

It asks Transformers for the conversion, and checks before and after it for errors that Transformers does not report.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from loguru import logger

from gridwork_server.checkpoint import quantized_tensors
from gridwork_server.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from gridwork_server.errors import ModelError
from gridwork_server.parallel import weight_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_EIGHT_BITS = frozenset({"F8_E4M3", "F8_E5M2", "I8"})
"""Dtypes of quantized weights, as safetensors names them; `I8` holds two 4-bit numbers."""

_BLOCKS = {"fp8": (128, 128), "mxfp8": (1, 32)}
_FP4_BLOCK = (1, 32)


def prepare(
    found: QuantizedCheckpoint | None,
    model_config: "PretrainedConfig",
    model_path: Path,
    dtype: torch.dtype,
    unread: Collection[str] = (),
) -> list[str]:
    """Sets a model's config so that its weights are dequantized on any device. Returns descriptions of what will be
    done.

    unread: patterns of tensors that the model's class does not read. Raises ModelError for scales that do not fit.
    """
    if found is None:
        return []
    if not found.is_dequantized:
        logger.warning(f"{found}; Transformers runs them with a package of its own, slower than Gridwork's layers")
        return [f"weights in {found.method}"]
    if found.method in _BLOCKS:
        _check_scales(found, model_path, unread)
    for config in (model_config, model_config.get_text_config(decoder=True)):
        settings = getattr(config, "quantization_config", None)
        if isinstance(settings, dict):
            settings["dequantize"] = True
    name = str(dtype).removeprefix("torch.")
    logger.warning(f"{found}; they are loaded as {name}, which takes more memory than their files")
    return [f"weights of {found.method} as {name}"]


def check_loaded(model: Any, info: dict[str, Any], model_path: Path, found: QuantizedCheckpoint | None) -> None:
    """Raises ModelError when the weights are quantized in a way that was not undone. info: Transformers' report of
    loading the model."""
    if found is None or found.is_dequantized:
        weight_files.check_dtypes(model_path, model, _EIGHT_BITS if found and found.method in _BLOCKS else frozenset())
    unused = info["unexpected_keys"]
    if not any(quantized_tensors.says_quantized(name) for name in unused):
        return
    stored = [name for name, _dtype in weight_files.stored_dtypes(model_path)]
    incomplete = bool(info["missing_keys"] or info["mismatched_keys"])
    quantized_tensors.check_unused(unused, stored, model, model_path, found, incomplete)


def _check_scales(found: QuantizedCheckpoint, model_path: Path, unread: Collection[str]) -> None:
    """Checks the scales of quantized weights. Transformers would cast weights without a scale as they are. It derives
    the size of a block from the number of scales, which is wrong when the last block is not whole."""
    block = found.settings.get("weight_block_size", _BLOCKS[found.method])
    shapes = {name: (dtype, shape) for name, dtype, shape in weight_files.stored_tensors(model_path)}
    ignored = [re.compile(pattern) for pattern in unread]
    for name, (dtype, shape) in shapes.items():
        if dtype not in _EIGHT_BITS or len(shape) < 2 or any(pattern.search(name) for pattern in ignored):
            continue
        stem = name.removesuffix("weight")
        scales = next((s for s in (f"{name}_scale_inv", f"{stem}scale", f"{stem}qscale_weight") if s in shapes), None)
        if scales is None:
            raise ModelError(
                f"{name} in {model_path} is {dtype} and has no {name}_scale_inv beside it: {found}, in a form that "
                "this version does not read; use the unquantized model"
            )
        size = [shape[-2], shape[-1] * 2] if dtype == "I8" else shape[-2:]
        grid = shapes[scales][1]
        if not _fits(size, grid, _FP4_BLOCK if dtype == "I8" else block):
            raise ModelError(
                f"{scales} in {model_path} has shape {grid}, which does not divide {name} of {shape} into whole blocks "
                f"of {block}: {found}, and Transformers misreads blocks that are not whole; use the unquantized model"
            )


def _fits(size: list[int], grid: list[int], block: Any) -> bool:
    if len(grid) < 2 or grid[-2:] == [1, 1]:
        return len(grid) >= 2 or grid in ([], [1])  # one scale for the whole tensor
    sides = block if isinstance(block, (list, tuple)) and len(block) == 2 else (None, None)
    return all(
        count > 0
        and length % count == 0
        and (side is None or length == count * side or (count == 1 and length <= side))
        for length, count, side in zip(size, grid[-2:], sides, strict=True)
    )
