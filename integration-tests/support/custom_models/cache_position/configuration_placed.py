"""Settings of a decoder as they were published in 2024."""

from transformers import PretrainedConfig

from .settings import adopt


class PlacedConfig(PretrainedConfig):
    model_type = "placed"

    def __init__(self, eos_token_id=0, tie_word_embeddings=False, **kwargs):
        rest = adopt(
            self,
            kwargs,
            intermediate_size=96,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            rms_norm_eps=1e-6,
            rope_theta=10000.0,
        )
        super().__init__(eos_token_id=eos_token_id, tie_word_embeddings=tie_word_embeddings, **rest)
