"""Settings of a model that was published for an older Transformers."""

from transformers import PretrainedConfig

from .settings import adopt


class StaleConfig(PretrainedConfig):
    model_type = "stale"

    def __init__(self, **kwargs):
        rest = adopt(self, kwargs, num_hidden_layers=2, max_position_embeddings=1024)
        super().__init__(**rest)
