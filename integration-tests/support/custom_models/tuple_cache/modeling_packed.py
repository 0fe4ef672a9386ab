"""A cache of tuples, one projection for queries, keys and values, and no argument for positions.

The rotary angle of a token follows from the length of the tuples. The cache is [batch, heads, tokens, head size].
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_packed import PackedConfig


class PackedNorm(nn.Module):
    def __init__(self, size, epsilon):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon) * self.weight


def rotate(x, angles):
    """x: [batch, heads, tokens, size]; angles: [tokens, size / 2]."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class PackedAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.num_attention_heads
        self.size = config.hidden_size // self.heads
        self.W_pack = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden, attention_mask, past_key_value, use_cache):
        batch, count, _ = hidden.shape
        packed = self.W_pack(hidden).view(batch, count, 3, self.heads, self.size)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        before = past_key_value[0].shape[-2] if past_key_value is not None else 0
        positions = torch.arange(before, before + count, device=hidden.device, dtype=torch.float32)
        frequencies = 10000.0 ** (-torch.arange(self.size // 2, device=hidden.device).float() * 2 / self.size)
        angles = (positions[:, None] * frequencies).to(hidden.dtype)
        query, key = rotate(query, angles), rotate(key, angles)
        if past_key_value is not None:
            key = torch.cat([past_key_value[0], key], dim=2)
            value = torch.cat([past_key_value[1], value], dim=2)
        present = (key, value) if use_cache else None
        scores = query @ key.transpose(2, 3) / self.size**0.5 + attention_mask
        scores = torch.max(scores, torch.tensor(torch.finfo(scores.dtype).min, device=scores.device))
        out = scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value
        return self.o_proj(out.transpose(1, 2).reshape(batch, count, -1)), present


class PackedLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn = PackedAttention(config)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.input_layernorm = PackedNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = PackedNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden, attention_mask=None, past_key_value=None, use_cache=False):
        attended, present = self.self_attn(self.input_layernorm(hidden), attention_mask, past_key_value, use_cache)
        hidden = hidden + attended
        x = self.post_attention_layernorm(hidden)
        hidden = hidden + self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return (hidden, present) if use_cache else (hidden,)


class PackedPreTrainedModel(PreTrainedModel):
    config_class = PackedConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["PackedLayer"]


class PackedModel(PackedPreTrainedModel):
    def __init__(self, config: PackedConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([PackedLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = PackedNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, use_cache=None, return_dict=None):
        use_cache = use_cache if use_cache is not None else self.config.use_cache
        return_dict = return_dict if return_dict is not None else self.config.use_return_dict
        hidden = self.embed_tokens(input_ids)
        batch, count, _ = hidden.shape
        before = past_key_values[0][0].shape[2] if past_key_values is not None else 0
        if attention_mask is None:
            attention_mask = torch.ones(batch, before + count, dtype=torch.bool, device=hidden.device)
        lowest = torch.finfo(hidden.dtype).min
        later = torch.full((count, before + count), lowest, device=hidden.device).triu(before + 1)
        mask = later[None, None] + torch.where(attention_mask.bool(), 0.0, lowest)[:, None, None, :]
        presents = () if use_cache else None
        for index, layer in enumerate(self.layers):
            past = past_key_values[index] if past_key_values is not None else None
            outputs = layer(hidden, mask, past, use_cache)
            hidden = outputs[0]
            if use_cache:
                presents += (outputs[1],)
        hidden = self.norm(hidden)
        if not return_dict:
            return tuple(x for x in (hidden, presents) if x is not None)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=presents)


class PackedForCausalLM(PackedPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = PackedModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def forward(
        self, input_ids=None, attention_mask=None, past_key_values=None, labels=None, use_cache=None,
        output_attentions=None, output_hidden_states=None, return_dict=None,
    ):  # fmt: skip
        return_dict = return_dict if return_dict is not None else self.config.use_return_dict
        outputs = self.model(input_ids, attention_mask, past_key_values, use_cache, return_dict)
        logits = self.lm_head(outputs[0])
        if not return_dict:
            return (logits, *outputs[1:])
        return CausalLMOutputWithPast(logits=logits, past_key_values=outputs.past_key_values)

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, attention_mask=None, inputs_embeds=None, **kwargs
    ):
        if past_key_values:
            input_ids = input_ids[:, -1:]
        given = {"past_key_values": past_key_values, "attention_mask": attention_mask}
        return given | {"input_ids": input_ids, "use_cache": kwargs.get("use_cache")}

    @staticmethod
    def _reorder_cache(past_key_values, beam_idx):
        return tuple(tuple(x.index_select(0, beam_idx) for x in layer) for layer in past_key_values)
