"""Reads from a config the longest sequence that the model's positions allow."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len", "block_size")
"""Names that configs use for the longest sequence that the model's positions allow."""

_STRETCHED = ("linear", "dynamic", "yarn")
"""Types of rotary embeddings whose `factor` multiplies the context. For other types, `max_position_embeddings` is the
length after scaling (longrope, llama3), or nothing is scaled (default, proportional, mrope)."""


def context_tokens(config: "PretrainedConfig", model: "nn.Module | None" = None) -> int:
    """Maximum number of tokens of a sequence; 0 when the config gives no limit.

    It is `max_position_embeddings`, except for rotary embeddings that the config scales with a type in `_STRETCHED`:

    - linear, dynamic: `max_position_embeddings` times `factor`;
    - yarn: `original_max_position_embeddings` times `factor`. The original defaults to `max_position_embeddings`. The
      result is never less than `max_position_embeddings`: many configs already give the scaled length there;
    - linear and dynamic with an `original_max_position_embeddings`: as yarn.

    When each type of layer has its own rotary parameters, `max_position_embeddings` applies, since some layers are not
    scaled. It also applies when no module of `model` rotates in the scaled way: a learned table of positions does not
    grow, whatever the config says.
    """
    text_config = config.get_text_config()
    # Configs of Transformers' own classes have the first name, and may use the others for something else.
    names = _NAMES if type(config).is_remote_code() else _NAMES[:1]
    limits = (getattr(text_config, name, None) for name in names)
    limit = next((limit for limit in limits if isinstance(limit, int) and limit > 0), 0)
    if limit == 0:
        return 0
    scaling = _scaling(text_config)
    kind = str(scaling.get("rope_type", scaling.get("type", "")))
    if kind not in _STRETCHED or (model is not None and not _rotates(model, kind)):
        return limit
    factor = scaling.get("factor")
    if not isinstance(factor, (int, float)) or not math.isfinite(factor) or factor <= 1:
        return limit
    original = scaling.get("original_max_position_embeddings")
    if not isinstance(original, int) or original <= 0:
        original = limit
    return max(limit, int(original * factor))


def _scaling(config: Any) -> Mapping[str, Any]:
    """Rotary parameters of all layers; empty when there are none, or when each type of layer has its own."""
    for name in ("rope_parameters", "rope_scaling"):
        found = getattr(config, name, None)
        if isinstance(found, Mapping) and found and not any(isinstance(value, Mapping) for value in found.values()):
            return found
    return {}


def _rotates(model: "nn.Module", kind: str) -> bool:
    """Tells whether a module computes rotary embeddings of this type. Transformers' modules name the type; modules of a
    model's own code have it in their class name, or keep a factor."""
    for module in model.modules():
        if getattr(module, "rope_type", None) == kind:
            return True
        name = type(module).__name__.lower()
        if "rotary" in name and (kind in name or hasattr(module, "scaling_factor")):
            return True
    return False
