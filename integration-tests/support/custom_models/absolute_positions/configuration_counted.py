"""Settings in the style of GPT-2."""

from transformers import PretrainedConfig


class CountedConfig(PretrainedConfig):
    model_type = "counted"
    attribute_map = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    }

    def __init__(self, vocab_size=640, n_positions=1024, n_embd=64, n_layer=3, n_head=4, use_cache=True, **kwargs):
        self.vocab_size = vocab_size
        self.n_positions = n_positions
        self.n_embd = n_embd
        self.n_layer = n_layer
        self.n_head = n_head
        self.use_cache = use_cache
        super().__init__(**kwargs)
