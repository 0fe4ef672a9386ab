"""Compares every encoder type of the installed Transformers on Gridwork's paths with plain `forward()`.

The types are those that Transformers maps to masked language models, and those that it maps to sequence classifiers but
not to causal language models. Each gets a tiny random model from its own default config. The hidden states of the path
that the shard would choose are compared with those of one sequence at a time. To run this section alone:

    python -m conformance --section encoders [TYPE ...]
"""

import gc
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from gridwork_server.encoder.batch import SequenceBatch
from gridwork_server.encoder.paths import SinglePath
from gridwork_server.encoder.selection import num_tokens, select
from gridwork_server.errors import ModelError
from gridwork_server.model.task import Task
from transformers.models.auto import modeling_auto

#: Absolute differences below this count as equal, in float32.
LARGEST_DIFFERENCE = 1e-5

VOCAB_SIZE = 160

#: Settings that a type needs beside the general shrinking, and why.
EXCEPTIONS: dict[str, dict[str, Any]] = {
    # The sizes of its embedding axes must add up to the hidden size, and its position axes must multiply to the length.
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16], "attn_layers": ["local", "lsh"]},
    # Its number of layers follows from its blocks.
    "funnel": {"block_sizes": [1, 1]},
    # Its attention heads are divided by a ratio, which must leave at least one.
    "convbert": {"head_ratio": 2},
    # Its default config has no vocabulary.
    "esm": {"vocab_size": VOCAB_SIZE, "pad_token_id": 1, "mask_token_id": 2},
    # Its heads times their size must equal the hidden size.
    "esmc": {"head_dim": 8},
    # Its layout has six coordinates, between which the hidden size is divided.
    "lilt": {"hidden_size": 48},
    # It has an expert for each language, and one language must be the default.
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}

#: Types that are left out, and why.
LEFT_OUT = {
    "canine": "takes the code points of characters, and has no vocabulary",
    "layoutlmv2": "needs pictures of pages",
    "layoutlmv3": "needs pictures of pages",
    "mistral4": "a decoder, whose type Transformers maps to another class to generate with",
    "perceiver": "takes bytes through its own preprocessor, without a hidden state for each token",
    "t5gemma2": "an encoder and a decoder, without a class for the encoder by itself",
    "tapas": "needs the cells of a table for each token",
}


@dataclass(frozen=True)
class Row:
    """One type's result."""

    model_type: str
    path: str
    """`flat`, `padded`, `single`, `left out` or `failed`."""
    difference: float | None
    """Largest absolute difference of the hidden states; None when nothing was compared."""
    reason: str
    """Reason why no faster path is chosen, or what failed."""

    @property
    def is_right(self) -> bool:
        """True if the type is served with the right results."""
        return self.difference is not None and self.difference < LARGEST_DIFFERENCE


def encoder_types() -> list[str]:
    """Names of all encoder types."""
    masked = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    classifiers = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return sorted(set(masked) | {name for name in classifiers if name not in causal})


def conformance_encoders(only: list[str] | None = None) -> Iterator[Row]:
    """Computes the rows of all types, or of `only` these, one after another."""
    for model_type in encoder_types():
        if only and model_type not in only:
            continue
        if model_type in LEFT_OUT:
            yield Row(model_type, "left out", None, LEFT_OUT[model_type])
            continue
        try:
            yield _row(model_type)
        except Exception as error:
            yield Row(model_type, "failed", None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        gc.collect()


def _row(model_type: str) -> Row:
    model = tiny_model(model_type)
    try:
        selection = select(model, Task.EMBED)
    except ModelError as error:
        return Row(model_type, "failed", None, str(error))
    has_types = (getattr(model.config, "type_vocab_size", None) or 0) > 1
    plain = SinglePath(model, has_types, model.config._attn_implementation)
    if model.config._attn_implementation == "gridwork_flat":
        plain = SinglePath(model, has_types, "eager")
    generator = torch.Generator().manual_seed(1)
    capacity = selection.positions.capacity or 64
    lengths = tuple(min(length, capacity) for length in (17, 3, 40, 17, 1, 29) if _runs(plain, length))
    token_ids = torch.randint(10, num_tokens(model), (sum(lengths),), generator=generator)
    types = torch.cat([torch.arange(length) % 2 for length in lengths]) if has_types else None
    batch = SequenceBatch(token_ids, types, lengths)
    with torch.inference_mode():
        expected = plain.hidden_states(batch)
        got = selection.path.hidden_states(batch)
    difference = float((got - expected).abs().max())
    return Row(model_type, selection.path.name, difference, selection.reason)


def _runs(plain: SinglePath, length: int) -> bool:
    """True if the model takes sequences of this length. Some models fail on very short ones."""
    try:
        with torch.inference_mode():
            plain.hidden_states(SequenceBatch.of([[10] * length]))
    except (RuntimeError, IndexError):
        return False
    return True


def tiny_model(model_type: str) -> Any:
    """A random float32 model of a type, from its default config with small sizes."""
    config_class = transformers.CONFIG_MAPPING[model_type]
    config = config_class(**(_shrunk(config_class()) | EXCEPTIONS.get(model_type, {})))
    text_encoding: Any = modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING
    found: Any = transformers.AutoModel._model_mapping[config_class]
    model_class = found[0] if isinstance(found, tuple) else found
    torch.manual_seed(0)
    if config.is_encoder_decoder and config_class in text_encoding:
        config.is_encoder_decoder = False
        model = text_encoding[config_class](config)
    else:
        model = model_class(config)
    with torch.no_grad():
        # Larger weights make attention differ between tokens, and norms differ from one.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() == 1 else 0.15))
        # Trained models have zeros for padding.
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0
    return model.float().eval()


#: Patterns of the names of integer settings, with the largest value for each.
_SIZES: list[tuple[str, int]] = [
    (r"(^|_)vocab_size$", VOCAB_SIZE),
    (r"(^|_)(type_vocab_size|num_token_types)$", 2),
    (r"^(hidden_size|d_model|dim|emb_dim|embedding_size|hidden_dim_model|true_hidden_size|bottleneck_size)$", 32),
    (r"^(emb_size|input_embedding_size|intra_bottleneck_size|embedding_dim|rotary_dim|d_embed)$", 32),
    (r"(intermediate_size|ffn_dim|d_ff|d_inner|feed_forward_size|hidden_dim|n_inner)$", 48),
    (r"^(num_attention_heads|n_heads|n_head|num_heads|(en|de)coder_attention_heads|attention_heads)$", 4),
    (r"^(head_dim|d_kv|d_head|attention_head_size)$", 16),
    (r"^(max_position_embeddings|max_seq_length|n_positions|seq_len)$", 128),
    (r"(local_attention|sliding_window|window_size)$", 8),
]

_LAYERS = r"^(num_hidden_layers|num_layers|n_layers|n_layer|(en|de)coder_layers|num_(en|de)coder_layers|layers)$"


def _shrunk(config: Any) -> dict[str, Any]:
    """Settings for a tiny model of this config that keeps every kind of layer."""
    settings: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, transformers.PretrainedConfig):
            settings[name] = _shrunk(value)
        elif isinstance(value, bool) or not isinstance(value, int):
            continue
        elif re.search(_LAYERS, name):
            settings[name] = min(value, _num_layers(config))
        elif name == "num_key_value_heads":
            settings[name] = 4 if value == getattr(config, "num_attention_heads", None) else 2
        elif name.endswith("_token_id") and value >= VOCAB_SIZE:
            # Special tokens stay distinct, and below the tokens of the comparison.
            settings[name] = value % 7 + 1
        else:
            size = next((size for pattern, size in _SIZES if re.search(pattern, name)), None)
            if size is not None:
                settings[name] = min(value, size)
    if "layer_types" in vars(config) and isinstance(config.layer_types, list):
        settings["layer_types"] = config.layer_types[: _num_layers(config)]
    return settings


def _num_layers(config: Any) -> int:
    """Two layers, or more until every kind of layer has occurred."""
    kinds = getattr(config, "layer_types", None)
    if not isinstance(kinds, list):
        return 2
    needed = max(kinds.index(kind) for kind in set(kinds)) + 1
    return max(2, needed)
