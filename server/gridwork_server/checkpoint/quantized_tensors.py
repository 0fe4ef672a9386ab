"""Refuses weights that are quantized in a way that the folder does not declare, or that loading did not fully undo.

It judges by the dtypes of the stored tensors, and by the names of the tensors that the model does not use.
"""

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gridwork_server.errors import ModelError

if TYPE_CHECKING:
    from gridwork_server.checkpoint.quantized_checkpoint import QuantizedCheckpoint

PLAIN_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "C64"})
"""Dtypes that hold plain values of floating-point parameters, as safetensors names them."""

_COMPANION = re.compile(
    r"(weight|input|output|activation|act|qscale)_(scale|zero|zp)\w*|scale_inv|\w*_scale_inv|qscale_\w+"
    r"|(weight_)?(scales|zeros|zero_points?|zeropoints?|codes?|codebooks?|blocks|g_idx|packed)"
    r"|\w+_(scales|zeros|zero_points?|codes|codebooks?|blocks)"
    r"|q(weight|zeros|scales|groups|map)|q_(weight|scale|scale_max|groups|group_map|perm|invperm)|weight_shape"
    r"|(nested_)?(absmax|quant_map|quant_state)|nested_offset|SCBt?|CB|weight_format|W_q|_data|_scale|_zero_?point"
    r"|trellis|su[hv]|_?amax|scb",
    re.IGNORECASE,
)
"""Names that quantizers give to a layer's codes, and to the tensors that they store beside them."""

_SAYS_SCALE = re.compile(r"(^|_|\d)(scales?|zeros?|zero_?points?|blocks?|codes?|codebooks?)(_|\d|$)", re.IGNORECASE)

_ORDINARY = re.compile(
    r"(\w*_)?(q|k|v|kv|qk|prob|attn|attention|logit|layer|embed|output_q|output_k|output_v)_scale(_\w+)?", re.IGNORECASE
)
"""Scales of ordinary models, and of an 8-bit KV cache; answers without the latter are more exact."""

_CACHE_PROJECTION = re.compile(r"(^|\.)[kv]_proj\.output_scale$")


def check_dtypes(stored: Iterable[tuple[str, str]], targets: Callable[[str], list[torch.Tensor]], folder: Path) -> None:
    """Raises ModelError when a floating-point parameter would be made of integers or 8-bit numbers. stored: names and
    dtypes of the tensors in the files. targets: gives the model's tensors that are made from a stored tensor."""
    for name, dtype in stored:
        if dtype not in PLAIN_DTYPES and any(target.is_floating_point() for target in targets(name)):
            raise ModelError(
                f"{name} in {folder} is stored as {dtype}, and the model computes with floating-point numbers there: "
                "the weights are quantized, and nothing in config.json says how; use the unquantized model"
            )


def check_unused(
    unused: Iterable[str],
    stored: Iterable[str],
    model: Any,
    folder: Path,
    declared: "QuantizedCheckpoint | None" = None,
    something_is_missing: bool = False,
) -> None:
    """Raises ModelError for tensors that only quantized weights have, when they belong to a module that the model uses.
    unused: tensors that the model does not use. stored: all tensors in the files."""
    suspects = sorted(name for name in unused if says_quantized(name))
    if not suspects:
        return
    unused = set(unused)
    modules = {_parent(name) for name in model.state_dict()} | {_parent(name) for name in stored if name not in unused}
    parents = _with_ancestors(modules)
    for name in suspects:
        parent = _owner(name)
        is_companion = _is_companion(name)
        if parent in modules or (is_companion and (something_is_missing or _parent(parent) in parents)):
            raise ModelError(_message(name, folder, declared))


def _message(name: str, folder: Path, declared: "QuantizedCheckpoint | None") -> str:
    if declared is not None:
        return (
            f"{name} in {folder} is not used, and the weights cannot be read correctly without it: {declared}, in a "
            "form that this version does not read; use the unquantized model"
        )
    return (
        f"{name} in {folder} is a part of quantized weights, and nothing in config.json says how they are quantized; "
        "use the unquantized model"
    )


def says_quantized(name: str) -> bool:
    """Tells whether a tensor is named like a scale, a zero point, blocks or codes of a quantizer."""
    if _CACHE_PROJECTION.search(name):
        return False
    leaf = _leaf(name)
    return _is_companion(name) or (bool(_SAYS_SCALE.search(leaf)) and not _ORDINARY.fullmatch(leaf))


def _is_companion(name: str) -> bool:
    leaf = _leaf(name)
    # bitsandbytes and TorchAO append several to the parameter's own name.
    return bool(_COMPANION.fullmatch(leaf)) and not _ORDINARY.fullmatch(leaf)


def _leaf(name: str) -> str:
    name = name.partition(".quant_state.")[0] + (".quant_state" if ".quant_state." in name else "")
    return name.rpartition(".")[2]


def _owner(name: str) -> str:
    """Path of the module that a tensor belongs to; `w.weight.absmax` belongs to `w`, as `w.weight` does."""
    parent = _parent(name.partition(".quant_state.")[0])
    return parent.removesuffix(".weight")


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _with_ancestors(modules: Collection[str]) -> set[str]:
    found = set(modules) | {""}
    for name in modules:
        while name := _parent(name):
            if name in found and name not in modules:
                break
            found.add(name)
    return found
