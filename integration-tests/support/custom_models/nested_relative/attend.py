"""Attention by PyTorch's own function, with a Cache to update and given rotary positions."""

import torch
from torch import nn


def rotary(x, position_ids):
    """x: [batch, heads, tokens, size]."""
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(half, device=x.device).float() / half)
    angles = (position_ids[:, None, :, None].float() * rates).to(x.dtype)
    first, second = x.split(half, dim=-1)
    return torch.cat([first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()], -1)


class PlainAttention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx
        self.size = config.hidden_size // config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden, mask, position_ids, cache):
        batch, count, _ = hidden.shape
        query, key, value = (
            x.view(batch, count, -1, self.size).transpose(1, 2) for x in self.qkv(hidden).chunk(3, dim=-1)
        )
        query, key = rotary(query, position_ids), rotary(key, position_ids)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(attended.transpose(1, 2).reshape(batch, count, -1))
