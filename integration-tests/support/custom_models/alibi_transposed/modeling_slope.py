"""ALiBi made from the attention mask; keys are cached as [batch * heads, head size, tokens], values as
[batch * heads, tokens, head size].

Biases that fall with distance: Press et al., "Train Short, Test Long", 2021, section 3.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions
from transformers.modeling_utils import PreTrainedModel

from .configuration_slope import SlopeConfig


def build_alibi(attention_mask, heads, dtype):
    """[batch, tokens] to [batch * heads, 1, tokens]: slope times the number of tokens before, padding not counted."""
    batch, length = attention_mask.shape
    closest = 2 ** math.floor(math.log2(heads))
    base = 2.0 ** (-(2.0 ** -(math.log2(closest) - 3)))
    slopes = torch.tensor([base ** (i + 1) for i in range(closest)], device=attention_mask.device)
    if closest != heads:
        extra = 2.0 ** (-(2.0 ** -(math.log2(2 * closest) - 3)))
        more = [extra ** (2 * i + 1) for i in range(heads - closest)]
        slopes = torch.cat([slopes, torch.tensor(more, device=attention_mask.device)])
    places = ((attention_mask.cumsum(-1) - 1) * attention_mask)[:, None, :]
    return (slopes[:, None] * places).reshape(batch * heads, 1, length).to(dtype)


class SlopeAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_heads = config.n_head
        self.head_dim = config.hidden_size // config.n_head
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=True)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden, alibi, mask, layer_past, use_cache):
        batch, count, _ = hidden.shape
        fused = self.query_key_value(hidden).view(batch, count, self.num_heads, 3, self.head_dim)
        query, key, value = fused[..., 0, :], fused[..., 1, :], fused[..., 2, :]
        rows = batch * self.num_heads
        query = query.transpose(1, 2).reshape(rows, count, self.head_dim)
        key = key.permute(0, 2, 3, 1).reshape(rows, self.head_dim, count)
        value = value.transpose(1, 2).reshape(rows, count, self.head_dim)
        if layer_past is not None:
            key = torch.cat((layer_past[0], key), dim=2)
            value = torch.cat((layer_past[1], value), dim=1)
        present = (key, value) if use_cache else None
        scores = alibi.baddbmm(batch1=query, batch2=key, beta=1.0, alpha=self.head_dim**-0.5)
        scores = scores.view(batch, self.num_heads, count, -1)
        scores = scores.masked_fill(mask, torch.finfo(scores.dtype).min)
        weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
        context = torch.bmm(weights.view(rows, count, -1), value)
        context = context.view(batch, self.num_heads, count, self.head_dim).transpose(1, 2).reshape(batch, count, -1)
        return self.dense(context), present


class SlopeBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.self_attention = SlopeAttention(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.dense_4h_to_h = nn.Linear(4 * config.hidden_size, config.hidden_size)

    def forward(self, hidden, alibi, mask, layer_past=None, use_cache=False):
        attended, present = self.self_attention(self.input_layernorm(hidden), alibi, mask, layer_past, use_cache)
        hidden = hidden + attended
        x = self.dense_h_to_4h(self.post_attention_layernorm(hidden))
        return hidden + self.dense_4h_to_h(F.gelu(x)), present


class SlopePreTrainedModel(PreTrainedModel):
    config_class = SlopeConfig
    base_model_prefix = "transformer"
    _no_split_modules = ["SlopeBlock"]


class SlopeModel(SlopePreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.word_embeddings_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.h = nn.ModuleList([SlopeBlock(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.post_init()

    def get_input_embeddings(self):
        return self.word_embeddings

    def forward(self, input_ids, past_key_values=None, attention_mask=None, use_cache=None):
        batch, count = input_ids.shape
        if past_key_values is None:
            past_key_values = tuple([None] * len(self.h))
        before = 0 if past_key_values[0] is None else past_key_values[0][0].shape[2]
        if attention_mask is None:
            attention_mask = torch.ones((batch, before + count), device=input_ids.device)
        hidden = self.word_embeddings_layernorm(self.word_embeddings(input_ids))
        alibi = build_alibi(attention_mask, self.config.n_head, hidden.dtype)
        later = torch.ones(count, before + count, dtype=torch.bool, device=input_ids.device).triu(before + 1)
        mask = later[None, None] | ~attention_mask[:, None, None, :].bool()
        presents = ()
        for block, layer_past in zip(self.h, past_key_values, strict=True):
            hidden, present = block(hidden, alibi, mask, layer_past, use_cache)
            presents += (present,)
        return self.ln_f(hidden), presents if use_cache else None


class SlopeForCausalLM(SlopePreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.transformer = SlopeModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def forward(
        self, input_ids=None, past_key_values=None, attention_mask=None, inputs_embeds=None, labels=None,
        use_cache=None, output_attentions=None, output_hidden_states=None, return_dict=None, **deprecated_arguments,
    ):  # fmt: skip
        if deprecated_arguments.pop("position_ids", False) is not False:
            raise ValueError("`position_ids` have no meaning here: distances come from the attention mask")
        if deprecated_arguments:
            raise ValueError(f"Got unexpected arguments: {deprecated_arguments}")
        use_cache = self.config.use_cache if use_cache is None else use_cache
        return_dict = self.config.use_return_dict if return_dict is None else return_dict
        hidden, presents = self.transformer(input_ids, past_key_values, attention_mask, use_cache)
        logits = self.lm_head(hidden)
        if not return_dict:
            return (logits,) if presents is None else (logits, presents)
        return CausalLMOutputWithCrossAttentions(logits=logits, past_key_values=presents)

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, **kwargs):
        if past_key_values:
            input_ids = input_ids[:, -1].unsqueeze(-1)
        return {
            "input_ids": input_ids,
            "past_key_values": past_key_values,
            "use_cache": kwargs.get("use_cache"),
            "attention_mask": attention_mask,
        }
