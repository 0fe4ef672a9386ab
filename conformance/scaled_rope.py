"""Configs whose rotary frequencies depend on the length of a sequence, for every type with rotary embeddings."""

import math
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from .shrink import tiny_config

LIMIT = 20
"""Length at which frequencies change. Prompts and answers cross it: see generation.PROMPT_LENGTHS."""

KINDS = ("longrope", "dynamic")


LEFT_OUT: dict[str, str] = {
    "phi4_multimodal": "generate() drops all keys at the limit and continues from the last token alone",
}
"""Types whose own `generate()` is no reference beyond the limit, and why."""


class NotScaledError(Exception):
    """A type has no rotary embeddings that can be scaled in this way; the message gives the reason."""


def scaled(config: PretrainedConfig, kind: str) -> PretrainedConfig:
    """The config with frequencies that change at LIMIT tokens. kind: one of KINDS. Raises NotScaledError."""
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None)
    if not isinstance(parameters, dict) or not parameters:
        raise NotScaledError("no rotary parameters")
    settings = text.to_dict()
    if all(value is None or isinstance(value, dict) for value in parameters.values()):
        own = {name: value and _scaled(config, value, kind) for name, value in parameters.items()}
    else:
        own = _scaled(config, parameters, kind)
    settings["rope_parameters"] = own
    if "rope_scaling" in settings:
        settings["rope_scaling"] = own
    if kind == "dynamic":
        settings["max_position_embeddings"] = LIMIT
    if hasattr(text, "original_max_position_embeddings"):
        settings["original_max_position_embeddings"] = LIMIT
    small = type(text)(**settings)
    if text is config:
        return small
    for name, value in vars(config).items():
        if value is text:
            setattr(config, name, small)
            return config
    raise NotScaledError("no text config of its own")


def _scaled(config: PretrainedConfig, parameters: dict[str, Any], kind: str) -> dict[str, Any]:
    kept = {name: parameters[name] for name in ("rope_theta", "partial_rotary_factor") if name in parameters}
    if kind == "dynamic":
        return kept | {"rope_type": "dynamic", "factor": 4.0}
    count = _num_frequencies(config)
    long = [1 + 19 * i / max(1, count - 1) for i in range(count)]
    return kept | {
        "rope_type": "longrope",
        "short_factor": [1.0] * count,
        "long_factor": long,
        "factor": 8.0,
        "attention_factor": math.sqrt(2),
        "original_max_position_embeddings": LIMIT,
        "short_mscale": 1.0,
        "long_mscale": 1.25,
    }


def _num_frequencies(config: PretrainedConfig) -> int:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    sizes = {b.numel() for name, b in model.named_buffers() if name.endswith("inv_freq") and "original" not in name}
    if len(sizes) != 1:
        raise NotScaledError(f"layers with {sorted(sizes)} frequencies" if sizes else "no frequencies")
    return sizes.pop()


def types() -> list[str]:
    """Names of the causal types with rotary parameters."""
    from transformers.models.auto import modeling_auto

    found: list[str] = []
    for name in sorted(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        try:
            if name not in LEFT_OUT and getattr(tiny_config(name).get_text_config(), "rope_parameters", None):
                found.append(name)
        except Exception:  # no default config, which the causal section reports
            continue
    return found
