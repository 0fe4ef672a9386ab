"""A minimal config."""

from transformers import PretrainedConfig


class NanoConfig(PretrainedConfig):
    model_type = "nano-decoder"

    def __init__(self, vocab_size=640, block_size=1024, n_layer=3, n_head=4, n_embd=64, **kwargs):
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.n_layer = n_layer
        self.n_head = n_head
        self.n_embd = n_embd
