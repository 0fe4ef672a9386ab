"""Calls functions of DynamicCache that Transformers has removed since, so that it runs without a cache only."""

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_stale import StaleConfig


class StaleLayer(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx
        self.size = config.hidden_size // config.num_attention_heads
        self.norm = nn.LayerNorm(config.hidden_size)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden, mask, past_key_value):
        batch, count, _ = hidden.shape
        query, key, value = (
            x.view(batch, count, -1, self.size).transpose(1, 2) for x in self.qkv(self.norm(hidden)).chunk(3, dim=-1)
        )
        if past_key_value is not None:
            key, value = past_key_value.update(key, value, self.layer_idx)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return hidden + self.out(attended.transpose(1, 2).reshape(batch, count, -1))


class StaleForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = StaleConfig
    _supports_cache_class = True

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.places = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList([StaleLayer(config, i) for i in range(config.num_hidden_layers)])
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None, **kwargs
    ):
        batch, count = input_ids.shape
        use_cache = use_cache if use_cache is not None else self.config.use_cache
        before = 0
        if use_cache:
            if not isinstance(past_key_values, Cache):
                past_key_values = DynamicCache.from_legacy_cache(past_key_values)
            before = past_key_values.get_usable_length(count)
        if position_ids is None:
            position_ids = torch.arange(before, before + count, device=input_ids.device)[None]
        mask = torch.ones(count, before + count, dtype=torch.bool, device=input_ids.device).tril(before)[None, None]
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, None, :].bool()
        hidden = self.embed(input_ids) + self.places(position_ids)
        for layer in self.layers:
            hidden = layer(hidden, mask, past_key_values if use_cache else None)
        return CausalLMOutputWithPast(
            logits=self.lm_head(hidden), past_key_values=past_key_values if use_cache else None
        )
