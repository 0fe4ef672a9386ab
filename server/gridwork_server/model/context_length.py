"""The longest sequence that a model's positions allow, as its config says."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len", "block_size")
"""What configs call the longest sequence that the model's positions allow."""

_STRETCHED = ("linear", "dynamic", "yarn")
"""Rotary embeddings whose `factor` multiplies the context. Of the other types, `max_position_embeddings` is the length
after scaling (longrope, llama3), or nothing is scaled (default, proportional, mrope)."""


def context_tokens(config: "PretrainedConfig", model: "nn.Module | None" = None) -> int:
    """Maximum number of tokens of a sequence; 0 when the config gives no limit.

    It is `max_position_embeddings`, but for rotary embeddings that the config scales with one of `_STRETCHED`:

    - linear, dynamic: `max_position_embeddings` times `factor`;
    - yarn: `original_max_position_embeddings` times `factor`, where the former, when the config leaves it out, is
      `max_position_embeddings`. The result is never less than `max_position_embeddings`: many configs give the scaled
      length there already;
    - linear and dynamic with an `original_max_position_embeddings`: as yarn.

    Where layers have rotary parameters of their own, by type of layer, `max_position_embeddings` stands: some of the
    layers are not scaled. The same holds where no module of `model` rotates in the scaled way: a table of positions
    that was learned ends where it ends, whatever the config says.
    """
    text_config = config.get_text_config()
    # Configs of Transformers' own classes have the first, and may mean something else by the others.
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
    """The rotary parameters of all layers; empty when there are none, or each type of layer has its own."""
    for name in ("rope_parameters", "rope_scaling"):
        found = getattr(config, name, None)
        if isinstance(found, Mapping) and found and not any(isinstance(value, Mapping) for value in found.values()):
            return found
    return {}


def _rotates(model: "nn.Module", kind: str) -> bool:
    """Whether a module computes rotary embeddings of this type: Transformers' modules name it, and those of models
    with code of their own have the type in their class's name, or keep a factor."""
    for module in model.modules():
        if getattr(module, "rope_type", None) == kind:
            return True
        name = type(module).__name__.lower()
        if "rotary" in name and (kind in name or hasattr(module, "scaling_factor")):
            return True
    return False
