"""Tests that the context length follows the scaling of a config's rotary embeddings."""

from typing import Any

import pytest
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig

from gridwork_server.model.context_length import context_tokens

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "max_position_embeddings": 64,
}
_LLAMA_3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LONG = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"rope_type": "default"}, 64),
        ({"rope_type": "linear", "factor": 4.0}, 256),
        ({"type": "dynamic", "factor": 4.0}, 256),
        ({"type": "dynamic", "factor": 1.0}, 64),
        ({"type": "yarn", "factor": 4.0}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        # These already give the length after scaling.
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, 64),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}, 64),
        ({"rope_type": "linear", "factor": 4.0, "original_max_position_embeddings": 16}, 64),
        (_LLAMA_3 | {"factor": 8.0, "original_max_position_embeddings": 16}, 64),
        (_LONG | {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 16}, 64),
    ],
)
def test_context_follows_rope_scaling(scaling: dict[str, Any], expected: int) -> None:
    config: Any = LlamaConfig(**_SIZES, num_hidden_layers=1, rope_scaling=dict(scaling))
    assert context_tokens(config) == expected
    assert context_tokens(config, AutoModelForCausalLM.from_config(config)) == expected


def test_rope_scaling_does_not_extend_a_learned_position_table() -> None:
    config: Any = GPT2Config(
        n_positions=64,
        n_embd=32,
        n_layer=1,
        n_head=2,
        vocab_size=50,
        rope_scaling={"rope_type": "linear", "factor": 4.0},  # type: ignore[call-arg]
    )
    assert context_tokens(config, AutoModelForCausalLM.from_config(config)) == 64


def test_rope_parameters_by_layer_type_do_not_change_the_context() -> None:
    scaling = {"rope_type": "linear", "factor": 8.0}
    config: Any = Gemma3TextConfig(
        **_SIZES, num_key_value_heads=1, head_dim=16, num_hidden_layers=2, rope_scaling=scaling
    )
    assert context_tokens(config, AutoModelForCausalLM.from_config(config)) == 64
