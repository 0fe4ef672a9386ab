"""Settings in the style of BLOOM's relatives."""

from transformers import PretrainedConfig


class SlopeConfig(PretrainedConfig):
    model_type = "slope"
    attribute_map = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}

    def __init__(
        self,
        vocab_size=640,
        hidden_size=64,
        n_layer=3,
        n_head=4,
        layer_norm_epsilon=1e-5,
        use_cache=True,
        bos_token_id=0,
        eos_token_id=0,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.n_layer = n_layer
        self.n_head = n_head
        self.layer_norm_epsilon = layer_norm_epsilon
        self.use_cache = use_cache
        super().__init__(bos_token_id=bos_token_id, eos_token_id=eos_token_id, **kwargs)
