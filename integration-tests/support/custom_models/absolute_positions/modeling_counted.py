"""Learned absolute positions, counted from the length of the cache, so that left padding would move every token.

The cache is one stacked tensor a layer, [2, batch, heads, tokens, head size].
"""

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_counted import CountedConfig


class CountedBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.n_head
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.proj = nn.Linear(config.n_embd, config.n_embd)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.up = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.down = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x, mask, layer_past):
        batch, count, size = x.shape
        query, key, value = self.attn(self.ln_1(x)).view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if layer_past is not None:
            key = torch.cat([layer_past[0], key], dim=2)
            value = torch.cat([layer_past[1], value], dim=2)
        scores = (query @ key.transpose(2, 3)) * (size // self.heads) ** -0.5
        out = scores.masked_fill(mask, torch.finfo(scores.dtype).min).softmax(-1) @ value
        x = x + self.proj(out.transpose(1, 2).reshape(batch, count, size))
        return x + self.down(nn.functional.gelu(self.up(self.ln_2(x)))), torch.stack([key, value])


class CountedLMHeadModel(PreTrainedModel, GenerationMixin):
    config_class = CountedConfig

    def __init__(self, config):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList([CountedBlock(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.wte

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False

    def forward(self, input_ids, past_key_values=None, attention_mask=None, use_cache=None, return_dict=True):
        batch, count = input_ids.shape
        before = past_key_values[0].shape[3] if past_key_values is not None else 0
        hidden = self.wte(input_ids) + self.wpe(torch.arange(before, before + count, device=input_ids.device))
        mask = torch.ones(count, before + count, dtype=torch.bool, device=input_ids.device).triu(before + 1)[None, None]
        if attention_mask is not None:
            mask = mask | (attention_mask[:, None, None, :] == 0)
        presents = []
        for index, block in enumerate(self.h):
            hidden, present = block(hidden, mask, past_key_values[index] if past_key_values is not None else None)
            presents.append(present)
        logits = self.lm_head(self.ln_f(hidden))
        cached = tuple(presents) if (self.config.use_cache if use_cache is None else use_cache) else None
        if not return_dict:
            return (logits, cached)
        return CausalLMOutputWithPast(logits=logits, past_key_values=cached)

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, **kwargs):
        if past_key_values is not None:
            input_ids = input_ids[:, past_key_values[0].shape[3] :]
        return {
            "input_ids": input_ids,
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "use_cache": kwargs.get("use_cache"),
        }
