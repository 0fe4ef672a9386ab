"""Settings of a decoder as they were published in the first half of 2023."""

from transformers import PretrainedConfig

from .settings import adopt


class PackedConfig(PretrainedConfig):
    model_type = "packed"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(self, pad_token_id=0, eos_token_id=0, tie_word_embeddings=False, **kwargs):
        rest = adopt(self, kwargs, intermediate_size=96, rms_norm_eps=1e-6, max_position_embeddings=1024)
        super().__init__(
            pad_token_id=pad_token_id, eos_token_id=eos_token_id, tie_word_embeddings=tie_word_embeddings, **rest
        )
