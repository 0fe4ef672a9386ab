"""Settings in the style of BLOOM's relatives."""

from transformers import PretrainedConfig

from .settings import adopt


class SlopeConfig(PretrainedConfig):
    model_type = "slope"
    attribute_map = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}

    def __init__(self, bos_token_id=0, eos_token_id=0, **kwargs):
        rest = adopt(self, kwargs, layer_norm_epsilon=1e-5)
        super().__init__(bos_token_id=bos_token_id, eos_token_id=eos_token_id, **rest)
