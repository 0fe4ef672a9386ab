"""A DynamicCache, `cache_position` and `position_ids` in every layer, and classes chosen by `_attn_implementation`.

The layers return tuples whose length depends on the requested outputs.
"""

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .configuration_placed import PlacedConfig

logger = logging.get_logger(__name__)


class PlacedRMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        variance = hidden_states.float().pow(2).mean(-1, keepdim=True)
        normed = hidden_states.float() * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * normed.to(hidden_states.dtype)


class PlacedRotary(nn.Module):
    def __init__(self, dim, base):
        super().__init__()
        inv_freq = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim))
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.dim, self.base = dim, base

    @torch.no_grad()
    def forward(self, x, position_ids):
        # Computed anew: a buffer that is not saved has no value after loading on the meta device.
        places = torch.arange(0, self.dim, 2, device=x.device).float()
        angles = position_ids[:, :, None].float() * (1.0 / self.base ** (places / self.dim))
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def rotate_half(x):
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-second, first), dim=-1)


class PlacedAttention(nn.Module):
    def __init__(self, config, layer_idx=None):
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.q_proj = nn.Linear(config.hidden_size, self.num_heads * self.head_dim, bias=True)
        self.k_proj = nn.Linear(config.hidden_size, self.num_key_value_heads * self.head_dim, bias=True)
        self.v_proj = nn.Linear(config.hidden_size, self.num_key_value_heads * self.head_dim, bias=True)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)
        self.rotary_emb = PlacedRotary(self.head_dim, config.rope_theta)

    def project(self, hidden_states, position_ids, past_key_value, cache_position):
        batch, count, _ = hidden_states.shape
        query = self.q_proj(hidden_states).view(batch, count, self.num_heads, -1).transpose(1, 2)
        key = self.k_proj(hidden_states).view(batch, count, self.num_key_value_heads, -1).transpose(1, 2)
        value = self.v_proj(hidden_states).view(batch, count, self.num_key_value_heads, -1).transpose(1, 2)
        cos, sin = (x.unsqueeze(1) for x in self.rotary_emb(value, position_ids))
        query = query * cos + rotate_half(query) * sin
        key = key * cos + rotate_half(key) * sin
        if past_key_value is not None:
            cache_kwargs = {"sin": sin, "cos": cos, "cache_position": cache_position}
            key, value = past_key_value.update(key, value, self.layer_idx, cache_kwargs)
        groups = self.num_heads // self.num_key_value_heads
        return query, key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)

    def forward(
        self, hidden_states, attention_mask=None, position_ids=None, past_key_value=None, output_attentions=False,
        use_cache=False, cache_position=None,
    ):  # fmt: skip
        query, key, value = self.project(hidden_states, position_ids, past_key_value, cache_position)
        weights = torch.matmul(query, key.transpose(2, 3)) / self.head_dim**0.5
        if attention_mask is not None:
            weights = weights + attention_mask[:, :, :, : key.shape[-2]]
        weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
        out = torch.matmul(weights, value).transpose(1, 2).flatten(2)
        return self.o_proj(out), weights if output_attentions else None, past_key_value


class PlacedSdpaAttention(PlacedAttention):
    def forward(
        self, hidden_states, attention_mask=None, position_ids=None, past_key_value=None, output_attentions=False,
        use_cache=False, cache_position=None,
    ):  # fmt: skip
        query, key, value = self.project(hidden_states, position_ids, past_key_value, cache_position)
        mask = attention_mask[:, :, :, : key.shape[-2]] if attention_mask is not None else None
        out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.o_proj(out.transpose(1, 2).flatten(2)), None, past_key_value


PLACED_ATTENTION_CLASSES = {"eager": PlacedAttention, "sdpa": PlacedSdpaAttention}


class PlacedMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class PlacedDecoderLayer(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.self_attn = PLACED_ATTENTION_CLASSES[config._attn_implementation](config, layer_idx)
        self.mlp = PlacedMLP(config)
        self.input_layernorm = PlacedRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = PlacedRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states, output_attentions=False, use_cache=False, **kwargs):
        attended, weights, present = self.self_attn(
            self.input_layernorm(hidden_states), output_attentions=output_attentions, use_cache=use_cache, **kwargs
        )
        hidden_states = hidden_states + attended
        hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        outputs = (hidden_states,)
        if output_attentions:
            outputs += (weights,)
        if use_cache:
            outputs += (present,)
        return outputs


class PlacedPreTrainedModel(PreTrainedModel):
    config_class = PlacedConfig
    base_model_prefix = "model"
    _no_split_modules = ["PlacedDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_cache_class = True


class PlacedModel(PlacedPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([PlacedDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = PlacedRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
        use_cache=None, output_attentions=None, cache_position=None,
    ):  # fmt: skip
        use_cache = use_cache if use_cache is not None else self.config.use_cache
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        if past_key_values is not None and not isinstance(past_key_values, Cache):
            raise TypeError("tuples of keys and values are not taken any more: give a Cache")
        count = inputs_embeds.shape[1]
        if cache_position is None:
            before = past_key_values.get_seq_length() if past_key_values is not None else 0
            cache_position = torch.arange(before, before + count, device=inputs_embeds.device)
        if position_ids is None:
            position_ids = cache_position.unsqueeze(0)
        mask = self._update_causal_mask(attention_mask, inputs_embeds, cache_position)
        hidden_states = inputs_embeds
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_value=past_key_values,
                output_attentions=output_attentions,
                use_cache=use_cache,
                cache_position=cache_position,
            )[0]
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )

    def _update_causal_mask(self, attention_mask, embeds, cache_position):
        if attention_mask is not None and attention_mask.dim() == 4:
            return attention_mask
        length = attention_mask.shape[-1] if attention_mask is not None else int(cache_position[-1]) + 1
        lowest = torch.finfo(embeds.dtype).min
        columns = torch.arange(length, device=embeds.device)
        hidden = columns[None, :] > cache_position[:, None]
        hidden = hidden[None].expand(embeds.shape[0], -1, -1)
        if attention_mask is not None:
            hidden = hidden | (attention_mask[:, None, :] == 0)
        return torch.zeros(hidden.shape, dtype=embeds.dtype, device=embeds.device).masked_fill(hidden, lowest)[:, None]


class PlacedForCausalLM(PlacedPreTrainedModel, GenerationMixin):
    _tied_weights_keys = ["lm_head.weight"]

    def __init__(self, config):
        super().__init__(config)
        self.model = PlacedModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
        labels=None, use_cache=None, output_attentions=None, output_hidden_states=None, return_dict=None,
        cache_position=None, num_logits_to_keep=0,
    ):  # fmt: skip
        outputs = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, output_attentions,
            cache_position,
        )  # fmt: skip
        logits = self.lm_head(outputs.last_hidden_state[:, -num_logits_to_keep:, :]).float()
        return CausalLMOutputWithPast(logits=logits, past_key_values=outputs.past_key_values)
