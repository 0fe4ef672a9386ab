"""Settings of the part that reads text."""

from transformers import PretrainedConfig

from .settings import adopt


class NestedTextConfig(PretrainedConfig):
    model_type = "nested_text"
    base_config_key = "text_config"

    def __init__(self, eos_token_id=0, **kwargs):
        rest = adopt(self, kwargs, num_key_value_heads=4, max_position_embeddings=1024)
        super().__init__(eos_token_id=eos_token_id, **rest)
