"""Settings of a recurrent model."""

from transformers import PretrainedConfig


class LeakyConfig(PretrainedConfig):
    model_type = "leaky"

    def __init__(self, vocab_size=640, hidden_size=64, num_hidden_layers=3, use_cache=True, eos_token_id=0, **kwargs):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.use_cache = use_cache
        super().__init__(eos_token_id=eos_token_id, **kwargs)
