"""A model in several files, with its settings in `config.text_config`."""

import torch
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .blocks import PlainBlock
from .configuration_nested import NestedConfig


class NestedForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = NestedConfig
    base_model_prefix = "language_model"
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        text = config.text_config
        self.embed = nn.Embedding(text.vocab_size, text.hidden_size)
        self.blocks = nn.ModuleList([PlainBlock(text, index) for index in range(text.num_hidden_layers)])
        self.norm = nn.LayerNorm(text.hidden_size)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None, **kwargs
    ):
        batch, count = input_ids.shape
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        before = past_key_values.get_seq_length() if past_key_values is not None else 0
        rows = torch.arange(before, before + count, device=input_ids.device)
        if position_ids is None:
            position_ids = rows[None].expand(batch, -1)
        mask = (torch.arange(before + count, device=input_ids.device) <= rows[:, None])[None, None]
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, None, :].bool()
        # A row of padding sees itself, so that its softmax is not empty.
        mask = mask | torch.eye(before + count, device=input_ids.device, dtype=torch.bool)[before:][None, None]
        hidden = self.embed(input_ids)
        for block in self.blocks:
            hidden = block(hidden, mask=mask, position_ids=position_ids, cache=past_key_values)
        return CausalLMOutputWithPast(logits=self.lm_head(self.norm(hidden)), past_key_values=past_key_values)
