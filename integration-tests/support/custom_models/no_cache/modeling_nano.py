"""A model written for training: no cache, no attention mask, logits in a plain tuple, positions counted from zero."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from .configuration_nano import NanoConfig


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = nn.Sequential(
            nn.Linear(config.n_embd, 4 * config.n_embd), nn.GELU(), nn.Linear(4 * config.n_embd, config.n_embd)
        )

    def forward(self, x):
        batch, count, size = x.shape
        heads = self.c_attn(self.ln_1(x)).view(batch, count, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).reshape(batch, count, size))
        return x + self.mlp(self.ln_2(x))


class NanoLMHeadModel(PreTrainedModel):
    config_class = NanoConfig

    def __init__(self, config):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids, labels=None):
        x = self.wte(input_ids) + self.wpe(torch.arange(input_ids.shape[1], device=input_ids.device))
        for block in self.h:
            x = block(x)
        logits = self.head(self.ln_f(x))
        if labels is None:
            return (logits,)
        return (F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()), logits)
