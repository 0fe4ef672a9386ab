"""Saves tiny random models of many architectures as folders, and runs them with Transformers itself."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB = 131

TINY: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "initializer_range": 0.3}
"""Sizes of generating models and of encoders."""
_COMMON: dict[str, Any] = TINY | {
    "vocab_size": VOCAB,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Architecture:
    """A configuration class and the settings for it."""

    config_class: str
    settings: dict[str, Any] = field(default_factory=dict)


ARCHITECTURES = {
    "llama": Architecture("LlamaConfig", {"head_dim": 16}),
    "gpt2": Architecture(
        "GPT2Config",
        {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512, "initializer_range": 0.3},
    ),
    "qwen2": Architecture("Qwen2Config", {"tie_word_embeddings": True, "hidden_size": 96}),
    "qwen3": Architecture("Qwen3Config", {"head_dim": 16}),
    "mistral": Architecture("MistralConfig", {"head_dim": 16, "sliding_window": 9}),
    "gemma": Architecture("GemmaConfig", {"head_dim": 32, "num_key_value_heads": 1}),
    "gemma2": Architecture(
        "Gemma2Config",
        {
            "head_dim": 16,
            "sliding_window": 9,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 10.0,
            "query_pre_attn_scalar": 16,
        },
    ),
    "gemma3": Architecture(
        "Gemma3TextConfig",
        {
            "head_dim": 16,
            "sliding_window": 9,
            "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gpt_neox": Architecture("GPTNeoXConfig", {"rotary_pct": 0.5}),
    "phi3": Architecture("Phi3Config", {"partial_rotary_factor": 0.5}),
    "phi": Architecture("PhiConfig", {"partial_rotary_factor": 0.5}),
    "olmo2": Architecture("Olmo2Config"),
    "exaone4": Architecture(
        "Exaone4Config",
        {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "glm4": Architecture("Glm4Config", {"head_dim": 16}),
    "cohere": Architecture("CohereConfig"),
    "granite": Architecture(
        "GraniteConfig",
        {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
            "attention_multiplier": 0.2,
        },
    ),
    "opt": Architecture("OPTConfig", {"ffn_dim": 80, "word_embed_proj_dim": 48}),
    "granite_swa": Architecture("GraniteSWAConfig", {"sliding_window": 9}),
    "qwen3_moe": Architecture(
        "Qwen3MoeConfig",
        {
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "mlp_only_layers": [0],
        },
    ),
    "deepseek_v2": Architecture(
        "DeepseekV2Config",
        {
            "num_key_value_heads": 6,
            "q_lora_rank": 20,
            "kv_lora_rank": 24,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 12,
            "v_head_dim": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "first_k_dense_replace": 1,
        },
    ),
}

_MAMBA2: dict[str, Any] = {"mamba_n_heads": 6, "mamba_d_head": 16, "mamba_d_state": 16}

HYBRIDS = {
    "qwen3_5": Architecture(
        "Qwen3_5TextConfig",
        {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 8,
        },
    ),
    "granitemoehybrid": Architecture(
        "GraniteMoeHybridConfig",
        _MAMBA2
        | {
            "shared_intermediate_size": 80,
            "num_local_experts": 0,
            "mamba_n_groups": 2,
            "layer_types": ["mamba", "attention", "mamba"],
        },
    ),
    "lfm2": Architecture("Lfm2Config", {"layer_types": ["conv", "full_attention", "conv"]}),
    "falcon_h1": Architecture("FalconH1Config", _MAMBA2 | {"mamba_n_groups": 1, "mamba_d_ssm": 96}),
    "jamba": Architecture(
        "JambaConfig",
        {
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
    ),
    "mamba": Architecture("MambaConfig", {"state_size": 8}),
    "mamba2": Architecture("Mamba2Config", {"num_heads": 6, "head_dim": 16, "state_size": 16, "n_groups": 1}),
}
"""Models with recurrent states, one for each kind of state."""


def save(name: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Saves a random model of an architecture in float32 into a folder. Returns the folder."""
    architecture = (ARCHITECTURES | HYBRIDS)[name]
    settings = architecture.settings if name == "gpt2" else _COMMON | architecture.settings
    config = getattr(transformers, architecture.config_class)(**(settings | changes))
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    # Biases and norms start at 0 and 1, which would hide errors in them.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


def plain(folder: Path) -> Any:
    """The model as Transformers runs it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


@torch.inference_mode()
def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """Exactly `count` tokens that `generate()` gives, by a decoder or an encoder-decoder."""
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, -count:].tolist()


def prompts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    """Random prompts of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in lengths]
