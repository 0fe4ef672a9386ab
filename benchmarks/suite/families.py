"""Models of many families with nearly the same sizes and random weights, to compare the speed of their layers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

_COMMON: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "pad_token_id": 0,
}
_HEADS: dict[str, Any] = {
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
}
_SHALLOW = {"num_hidden_layers": 16, **_HEADS, **_COMMON}
_DEEP = {"num_hidden_layers": 24, **_HEADS, **_COMMON}
_OLD: dict[str, Any] = {"vocab_size": 49152, "hidden_size": 576, "bos_token_id": 0}


@dataclass(frozen=True)
class Family:
    model_type: str
    about: str
    settings: dict[str, Any]


FAMILIES = {
    "llama": Family("llama", "Llama shape, 113M", _DEEP),
    "qwen3-5": Family(
        "qwen3_5_text",
        "gated delta nets beside attention, 121M",
        {
            **_DEEP,
            "head_dim": 64,
            "linear_num_key_heads": 4,
            "linear_num_value_heads": 8,
            "linear_key_head_dim": 64,
            "linear_value_head_dim": 64,
        },
    ),
    "granite-hybrid": Family(
        "granitemoehybrid",
        "Mamba-2 beside attention, 137M",
        {
            **_DEEP,
            "shared_intermediate_size": 1536,
            "num_local_experts": 0,
            "mamba_n_heads": 18,
            "mamba_d_head": 64,
            "mamba_d_state": 64,
            "mamba_n_groups": 1,
            "layer_types": ["attention" if i % 6 == 5 else "mamba" for i in range(24)],
        },
    ),
    "mamba2": Family(
        "mamba2",
        "Mamba-2 alone, 62M",
        {
            **_OLD,
            "num_hidden_layers": 16,
            "num_heads": 18,
            "head_dim": 64,
            "state_size": 64,
            "n_groups": 1,
            "expand": 2,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
        },
    ),
    "lfm2": Family(
        "lfm2",
        "short convolutions beside attention, 76M",
        {**_SHALLOW, "layer_types": ["conv", "conv", "full_attention"] * 5 + ["conv"]},
    ),
    "deepseek-v3": Family(
        "deepseek_v3",
        "latent attention and 8 experts, 163M",
        {
            **_SHALLOW,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "q_lora_rank": 192,
            "kv_lora_rank": 128,
            "qk_rope_head_dim": 32,
            "qk_nope_head_dim": 64,
            "v_head_dim": 64,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 512,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "n_shared_experts": 1,
        },
    ),
    "gpt-oss": Family(
        "gpt_oss",
        "sinks and 8 experts, 156M",
        {**_SHALLOW, "head_dim": 64, "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 512},
    ),
    "llama4": Family(
        "llama4_text",
        "attention in chunks and 4 experts, 113M",
        {
            **_SHALLOW,
            "head_dim": 64,
            "num_local_experts": 4,
            "intermediate_size": 512,
            "intermediate_size_mlp": 1536,
            "attention_chunk_size": 4096,
        },
    ),
    "gemma3n": Family(
        "gemma3n_text",
        "several streams and per-layer inputs, 137M",
        {
            **_SHALLOW,
            "head_dim": 64,
            "num_kv_shared_layers": 4,
            "vocab_size_per_layer_input": 49152,
            "hidden_size_per_layer_input": 64,
            "sliding_window": 512,
            "activation_sparsity_pattern": [0.0] * 16,
            "altup_num_inputs": 2,
            "laurel_rank": 16,
        },
    ),
    "stablelm": Family("stablelm", "partial rotary positions, 83M", _SHALLOW),
    "falcon": Family(
        "falcon",
        "fused projections, 82M",
        {
            **_OLD,
            "num_hidden_layers": 16,
            "num_attention_heads": 9,
            "new_decoder_architecture": False,
            "multi_query": True,
        },
    ),
    "bloom": Family("bloom", "ALiBi, 92M", {**_OLD, "n_layer": 16, "n_head": 9}),
}


def save(name: str, folder: Path) -> None:
    """Saves a family's model with the same random bfloat16 weights every time."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    family = FAMILIES[name]
    settings: dict[str, Any] = {**family.settings, "eos_token_id": 2}
    config = CONFIG_MAPPING[family.model_type](**settings)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
