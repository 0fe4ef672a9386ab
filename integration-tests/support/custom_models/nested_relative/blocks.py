"""Layers: the model's file imports this file, which imports another."""

from torch import nn

from .attend import PlainAttention


class PlainBlock(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.attention = PlainAttention(config, layer_idx)
        self.before = nn.LayerNorm(config.hidden_size)
        self.after = nn.LayerNorm(config.hidden_size)
        self.up = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.down = nn.Linear(2 * config.hidden_size, config.hidden_size)

    def forward(self, hidden, **kwargs):
        hidden = hidden + self.attention(self.before(hidden), **kwargs)
        return hidden + self.down(nn.functional.gelu(self.up(self.after(hidden))))
