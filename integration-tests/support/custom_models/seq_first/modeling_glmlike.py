"""Tokens are the first dimension: hidden states [tokens, batch, size], cache [tokens, batch, groups, head size].

Positions are an argument. By default they begin at zero, even after a cached past.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from .configuration_glmlike import GlmLikeConfig


class GlmNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden_states):
        variance = hidden_states.float().pow(2).mean(-1, keepdim=True)
        return (hidden_states * torch.rsqrt(variance + self.eps) * self.weight).to(hidden_states.dtype)


def rotary_table(length, size, device):
    """[length, size / 2, 2]: cosine and sine."""
    theta = 10000.0 ** (-torch.arange(0, size, 2, device=device).float() / size)
    angles = torch.outer(torch.arange(length, device=device).float(), theta)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def apply_rotary(x, table):
    """x: [tokens, batch, heads, size], of which only the first half of each head is turned, in adjacent pairs."""
    turned, kept = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    pairs = turned.reshape(*turned.shape[:-1], -1, 2)
    cos, sin = table[:, :, None, :, 0], table[:, :, None, :, 1]
    turned = torch.stack([pairs[..., 0] * cos - pairs[..., 1] * sin, pairs[..., 1] * cos + pairs[..., 0] * sin], dim=-1)
    return torch.cat((turned.flatten(3), kept), dim=-1)


class SelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.groups, self.size = (
            config.num_attention_heads,
            config.multi_query_group_num,
            config.kv_channels,
        )
        self.query_key_value = nn.Linear(
            config.hidden_size, (self.heads + 2 * self.groups) * self.size, bias=config.add_qkv_bias
        )
        self.dense = nn.Linear(self.heads * self.size, config.hidden_size, bias=False)

    def forward(self, hidden_states, attention_mask, rotary, kv_cache=None, use_cache=True):
        count, batch, _ = hidden_states.shape
        mixed = self.query_key_value(hidden_states)
        widths = [self.heads * self.size, self.groups * self.size, self.groups * self.size]
        query, key, value = (x.view(count, batch, -1, self.size) for x in mixed.split(widths, dim=-1))
        query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        if kv_cache is not None:
            key = torch.cat((kv_cache[0], key), dim=0)
            value = torch.cat((kv_cache[1], value), dim=0)
        kv_cache = (key, value) if use_cache else None
        repeats = self.heads // self.groups
        query, key, value = (
            x.permute(1, 2, 0, 3)
            for x in (query, key.repeat_interleave(repeats, 2), value.repeat_interleave(repeats, 2))
        )
        if attention_mask is None and query.shape[2] == key.shape[2]:
            out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            mask = ~attention_mask if attention_mask is not None else None
            out = F.scaled_dot_product_attention(query, key, value, mask)
        return self.dense(out.permute(2, 0, 1, 3).reshape(count, batch, -1)), kv_cache


class GlmBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = GlmNorm(config.hidden_size, config.layernorm_epsilon)
        self.self_attention = SelfAttention(config)
        self.post_attention_layernorm = GlmNorm(config.hidden_size, config.layernorm_epsilon)
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.ffn_hidden_size, bias=False)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states, attention_mask, rotary, kv_cache, use_cache):
        attended, kv_cache = self.self_attention(
            self.input_layernorm(hidden_states), attention_mask, rotary, kv_cache, use_cache
        )
        hidden_states = hidden_states + attended
        gate, up = self.dense_h_to_4h(self.post_attention_layernorm(hidden_states)).chunk(2, dim=-1)
        return hidden_states + self.dense_4h_to_h(F.silu(gate) * up), kv_cache


class GlmLikePreTrainedModel(PreTrainedModel):
    is_parallelizable = False
    config_class = GlmLikeConfig
    base_model_prefix = "transformer"
    _no_split_modules = ["GlmBlock"]

    def _init_weights(self, module):
        return

    def get_masks(self, input_ids, past_key_values, padding_mask=None):
        """True where a token must not be seen, [batch, 1, tokens, past and tokens]."""
        batch, count = input_ids.shape
        seen = torch.ones(batch, count, count, device=input_ids.device).tril()
        before = past_key_values[0][0].shape[0] if past_key_values else 0
        if before:
            seen = torch.cat((torch.ones(batch, count, before, device=input_ids.device), seen), dim=-1)
        if padding_mask is not None:
            seen = seen * padding_mask.unsqueeze(1)
            if not before:
                seen = seen - (padding_mask.unsqueeze(-1) - 1)
        return (seen < 0.5).unsqueeze(1)

    def get_position_ids(self, input_ids, device):
        batch, count = input_ids.shape
        return torch.arange(count, device=device).unsqueeze(0).repeat(batch, 1)


class GlmLikeModel(GlmLikePreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([GlmBlock(config) for _ in range(config.num_layers)])
        self.final_layernorm = GlmNorm(config.hidden_size, config.layernorm_epsilon)
        self.output_layer = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embedding

    def forward(
        self, input_ids, position_ids=None, attention_mask=None, full_attention_mask=None, past_key_values=None,
        use_cache=None, return_dict=None,
    ):  # fmt: skip
        count = input_ids.shape[1]
        if full_attention_mask is None and (
            (attention_mask is not None and not attention_mask.all()) or (past_key_values and count != 1)
        ):
            full_attention_mask = self.get_masks(input_ids, past_key_values, padding_mask=attention_mask)
        table = rotary_table(self.config.seq_length, self.config.kv_channels // 2, input_ids.device)
        table = table[position_ids] if position_ids is not None else table[None, :count]
        table = table.transpose(0, 1).contiguous()
        hidden_states = self.embedding(input_ids).transpose(0, 1).contiguous()
        if not past_key_values:
            past_key_values = [None] * len(self.layers)
        presents = ()
        for layer, kv_cache in zip(self.layers, past_key_values, strict=True):
            hidden_states, kv_cache = layer(hidden_states, full_attention_mask, table, kv_cache, use_cache)
            presents += (kv_cache,)
        return BaseModelOutputWithPast(
            last_hidden_state=self.final_layernorm(hidden_states), past_key_values=presents if use_cache else None
        )


class GlmLikeForConditionalGeneration(GlmLikePreTrainedModel):
    def __init__(self, config, empty_init=True, device=None):
        super().__init__(config)
        self.transformer = GlmLikeModel(config)
        self.post_init()

    def get_output_embeddings(self):
        return self.transformer.output_layer

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs: dict[str, Any], **kwargs) -> dict[str, Any]:
        model_kwargs["past_key_values"] = outputs.past_key_values
        if "attention_mask" in model_kwargs:
            mask = model_kwargs["attention_mask"]
            model_kwargs["attention_mask"] = torch.cat([mask, mask.new_ones((mask.shape[0], 1))], dim=-1)
        if "position_ids" in model_kwargs:
            position_ids = model_kwargs["position_ids"]
            model_kwargs["position_ids"] = torch.cat([position_ids, position_ids[..., -1:] + 1], dim=-1)
        model_kwargs["is_first_forward"] = False
        return model_kwargs

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, attention_mask=None, position_ids=None, use_cache=None,
        is_first_forward=True, **kwargs,
    ):  # fmt: skip
        if position_ids is None:
            position_ids = self.get_position_ids(input_ids, device=input_ids.device)
        if not is_first_forward and past_key_values is not None:
            position_ids = position_ids[..., -1:]
            input_ids = input_ids[:, -1:]
        return {
            "input_ids": input_ids,
            "past_key_values": past_key_values,
            "position_ids": position_ids,
            "attention_mask": attention_mask,
            "return_last_logit": True,
            "use_cache": use_cache,
        }

    def forward(
        self, input_ids=None, position_ids=None, attention_mask=None, past_key_values=None, inputs_embeds=None,
        labels=None, use_cache=None, output_attentions=None, output_hidden_states=None, return_dict=None,
        return_last_logit=False,
    ):  # fmt: skip
        use_cache = use_cache if use_cache is not None else self.config.use_cache
        outputs = self.transformer(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            return_dict=return_dict,
        )
        hidden_states = outputs[0]
        if return_last_logit:
            hidden_states = hidden_states[-1:]
        logits = self.transformer.output_layer(hidden_states).transpose(0, 1).contiguous()
        return CausalLMOutputWithPast(logits=logits, past_key_values=outputs.past_key_values)
