"""Settings of the part that reads text."""

from transformers import PretrainedConfig


class NestedTextConfig(PretrainedConfig):
    model_type = "nested_text"
    base_config_key = "text_config"

    def __init__(
        self,
        vocab_size=640,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        eos_token_id=0,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.max_position_embeddings = max_position_embeddings
        super().__init__(eos_token_id=eos_token_id, **kwargs)
