"""Shrinks the default config of any model type to that of a tiny model with all kinds of layers.

The rules know no model types. They tell the meaning of an integer from its name, which the families of Transformers
share, and cut per-layer lists to the first layer of every kind.
"""

import re
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel

VOCAB_SIZE = 131

CONTEXT_TOKENS = 256

_MAX_LAYERS = 6

_SIZES: list[tuple[str, int]] = [
    (r"(^|_)vocab_size|^n_words$|^num_embeddings$|_vocab_size$", VOCAB_SIZE),
    (r"per_layer_input$", 16),
    (r"index_topk$", 6),
    (r"index_n_heads$", 16),  # with fewer heads all scores, which are rectified, are often zero
    (
        r"^(max_position_embeddings|n_positions|n_ctx|max_seq_len(gth)?|seq_length|max_target_positions)$",
        CONTEXT_TOKENS,
    ),
    (r"^(max_source_positions|context_length|max_sequence_length|model_max_length)$", CONTEXT_TOKENS),
    (r"^sliding_window(_size)?$|^attention_window_size$|^window_size$|^local_attention$|attention_chunk_size$", 8),
    (r"^local_attention_window_len$|_attn_chunk_length$", 8),
    (r"mamba_(n_heads|num_heads)$|mamba_n_heads$", 8),
    (r"rotary_dim$", 8),
    (r"offset$", 1),
    (r"num_key_value_heads$|num_kv_heads$|^n_head_kv$|num_global_key_value_heads$", 2),
    (r"(^|_)(num_attention_heads|attention_heads|n_heads?|num_heads)$|^nhead$", 4),
    (r"linear_num_(key|value)_heads$", 2),
    (r"(qk_rope_head_dim|rope_head_dim)$", 8),
    (r"(q_lora_rank|kv_lora_rank|o_lora_rank|lora_rank)$", 16),
    (r"head_dim$|d_kv$|head_size$|head_dim_qk$|_d_head$|d_head$|^kv_channels$|attention_key_size$", 16),
    (r"(hidden_size|d_model|n_embd|^dim|embed_dim|embedding_size|hidden_dim|lru_width|word_embed_proj_dim)$", 64),
    (r"^hidden_size_global$|^encoder_cross_output_size$|^adapter_(in|out)_dim$|^adapter_input_size$", 64),
    (r"(intermediate_size|ffn_dim|ffn_hidden_size|d_ff|d_inner|inner_dim|n_inner|ffn_size)$", 96),
    (r"(num|n)_(local_|routed_)?experts$|^moe_num_experts$|num_local_experts$|n_routed_experts$", 4),
    (r"(num_experts_per_tok|moe_top_?k|num_selected_experts|top_k_experts|moe_k|num_experts_per_token)$", 2),
    (r"n_shared_experts$|num_shared_experts$", 1),
    (r"^n_group$|^topk_group$|^num_expert_group$", 1),
    (r"(state_size|d_state|ssm_state_size|dt_rank|time_step_rank)$", 8),
    (r"chunk_size$", 8),
    (r"(period|interval|frequency|every_n_layers|every_n|_step)$", 2),
    (r"first_k_dense_replace$|^num_dense_layers$|^num_hash_layers$", 1),
]
"""Patterns of the names of integers, with the largest value for each. The first match counts."""

_LAYER_COUNTS = (
    r"^(num_hidden_layers|n_layers?|num_layers|num_decoder_layers|encoder_layers|decoder_layers|num_blocks"
    r"|num_encoder_layers|num_encoder_blocks)$"
)


_SHARED_KV = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
}

EXCEPTIONS: dict[str, dict[str, Any]] = {
    # Without these the config has layers of one kind only, or its own model refuses it.
    "bamba": {"attn_layer_indices": [1], "num_hidden_layers": 3},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "num_key_value_heads": 2,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
            "full_attention": None,
        },
    },
    "blt": {"num_hidden_layers": 2},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8}},
    "flint": {"mlp_only_layers": [0]},
    "gemma4_text": _SHARED_KV
    | {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 96},
    "gemma4_unified_text": _SHARED_KV,
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba"], "num_hidden_layers": 3},
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "dots3_note_text": {
        "head_dim": 24,
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 2,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 16,
    },
    "longcat_flash": {"head_dim": 8, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "n_groups": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "hc_lowrank": 16,
        "ple_layer_ids": [1],
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 50,
        "split_ngram_parts": 2,
        "make_ngram_vocab_size_divisible_by": 2,
        "eos_token_id": 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3, "num_dense_layers": 1},
    "gemma3n_text": _SHARED_KV,
    "mllama_text_model": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
    "reformer": {
        "is_decoder": True,
        "hash_seed": 0,  # without one its attention is random
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [16, 16],
        "axial_pos_embds_dim": [32, 32],
    },
    # It rounds its projections up to multiples of 64.
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 6,
        "layers_block_type": ["mamba", "mamba", "hybrid", "mamba", "hybrid", "mamba"],
        "attention_head_dim": 32,
        "attention_hidden_size": 128,
    },
    "zamba2": {
        "num_hidden_layers": 6,
        "layers_block_type": ["mamba", "mamba", "hybrid", "mamba", "hybrid", "mamba"],
        "attention_head_dim": 32,
        "attention_hidden_size": 128,
    },
}
"""Settings by model type that the rules cannot know, wherever a config of this type is nested. A dictionary in the
place of a nested config holds the changes of that config."""


CANNOT_GENERATE: dict[str, str] = {
    "gemma3n": "its vision tower is built with timm and Pillow, not installed here; gemma3n_text is its text part",
    "gemma4_assistant": "an assistant model: it needs another model's hidden states, keys and values",
    "gemma4_unified_assistant": "an assistant model: it needs another model's hidden states, keys and values",
    "musicgen": "its causal model takes the config of its decoder alone, and writes audio codebooks",
    "musicgen_melody": "its causal model takes the config of its decoder alone, and writes audio codebooks",
}
"""Types with which Transformers' own `generate()` makes no text, and why."""


def tiny_config(model_type: str) -> PretrainedConfig:
    """The shrunk default config of a model type."""
    return shrink(CONFIG_MAPPING[model_type]())


def shrink(config: PretrainedConfig, changes: dict[str, Any] | None = None) -> PretrainedConfig:
    """A config of the same class with small sizes. changes: settings besides EXCEPTIONS that the rules cannot know."""
    changes = EXCEPTIONS.get(config.model_type, {}) | (changes or {})
    return type(config)(**_settings(config, changes))


def _settings(config: PretrainedConfig, changes: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the small config: only those that differ from the default. The class derives the rest."""
    settings: dict[str, Any] = {}
    # From vars(), since attributes that differ by layer cannot be read from the config itself.
    values = {
        name: value
        for name, value in vars(config).items()
        if not name.startswith("_") and name not in ("attribute_map", "transformers_version", "model_type")
    }
    num_layers = _num_layers(values)
    keep = _kept_layers(values, num_layers)
    for name, value in values.items():
        if isinstance(value, PretrainedConfig):
            settings[name] = shrink(value, changes.get(name))
        elif name in changes:
            continue
        elif isinstance(value, list | tuple) and num_layers and len(value) == num_layers:
            settings[name] = [_small(name, value[i]) for i in keep]
        elif isinstance(value, bool):
            if name == "is_decoder":
                settings[name] = True  # an encoder's layers look ahead, so that generation has no meaning
        elif isinstance(value, int):
            small = len(keep) if re.search(_LAYER_COUNTS, name) else _small(name, value)
            if name == "head_dim" and value == values.get("qk_rope_head_dim"):
                small = _small("qk_rope_head_dim", value)
            if name == "qk_head_dim" and "qk_nope_head_dim" in values:
                small = sum(_small(part, values[part]) for part in ("qk_nope_head_dim", "qk_rope_head_dim"))
            if name.endswith("num_key_value_heads") and value == values.get("num_attention_heads"):
                small = _small("num_attention_heads", value)
            if re.search(r"_token_id$|_token_index$|_id$", name) and value >= VOCAB_SIZE:
                small = VOCAB_SIZE - 1 - (value % 7)
            if small != value:
                settings[name] = small
        elif value is None and name in ("head_dim", "num_key_value_heads"):
            settings[name] = _small(name, 2**20)
        elif isinstance(value, list) and name.endswith("_token_id"):
            settings[name] = [id % VOCAB_SIZE for id in value]
    return settings | {name: value for name, value in changes.items() if name not in settings}


def _small(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    for pattern, small in _SIZES:
        if re.search(pattern, name):
            return min(value, small)
    return value


def _num_layers(values: dict[str, Any]) -> int:
    for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers"):
        value = values.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return 0


def _kept_layers(values: dict[str, Any], num_layers: int) -> list[int]:
    """Indices of the kept layers: the first of every kind, at least two and at most _MAX_LAYERS."""
    lists = [value for value in values.values() if isinstance(value, list | tuple) and len(value) == num_layers > 0]
    seen: set[str] = set()
    keep = []
    for i in range(num_layers):
        kind = repr([value[i] for value in lists])
        if kind not in seen:
            seen.add(kind)
            keep.append(i)
    for i in range(num_layers):
        if len(keep) >= 2:
            break
        if i not in keep:
            keep.append(i)
    return sorted(keep)[:_MAX_LAYERS]


@torch.no_grad()
def randomise(model: PreTrainedModel, seed: int = 0) -> None:
    """Widens the initial values in place, so that every layer affects the answer. With the usual values the answer
    depends on the last token alone. Parameters of one dimension (biases, norms, gates) get a little noise."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.is_floating_point():
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2 and isinstance(module, nn.Embedding):
                parameter.copy_(noise)
            elif parameter.dim() >= 2 and parameter.std() > 0:
                parameter.copy_(noise * (1.2 / parameter.shape[-1] ** 0.5))
            else:
                parameter.add_(noise * 0.1)
