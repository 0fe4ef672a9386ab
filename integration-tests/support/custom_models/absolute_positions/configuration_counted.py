"""Settings in the style of GPT-2."""

from transformers import PretrainedConfig

from .settings import adopt


class CountedConfig(PretrainedConfig):
    model_type = "counted"
    attribute_map = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    }

    def __init__(self, **kwargs):
        rest = adopt(self, kwargs, max_position_embeddings=1024)
        super().__init__(**rest)
