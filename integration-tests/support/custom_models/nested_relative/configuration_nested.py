"""Settings in a config inside the model's, as multimodal models have them."""

from transformers import PretrainedConfig

from .text_settings import NestedTextConfig


class NestedConfig(PretrainedConfig):
    model_type = "nested"
    sub_configs = {"text_config": NestedTextConfig}

    def __init__(self, text_config=None, **kwargs):
        if isinstance(text_config, dict):
            text_config = NestedTextConfig(**text_config)
        self.text_config = text_config or NestedTextConfig()
        super().__init__(**kwargs)
