"""A recurrent model whose memory is an argument called `state`: a list of tensors [batch, hidden size, layers].

It uses neither attention masks nor positions: a padding token would be read like any other. A step is that of a gated
leaky integrator, with the previous token mixed in.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_leaky import LeakyConfig


@dataclass
class LeakyCausalLMOutput(ModelOutput):
    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    state: list[torch.FloatTensor] | None = None


class LeakyMixing(nn.Module):
    def __init__(self, config, layer_id):
        super().__init__()
        self.layer_id = layer_id
        size = config.hidden_size
        self.time_mix = nn.Parameter(torch.zeros(size))
        self.decay = nn.Parameter(torch.zeros(size))
        self.key = nn.Linear(size, size, bias=False)
        self.value = nn.Linear(size, size, bias=False)
        self.receptance = nn.Linear(size, size, bias=False)
        self.output = nn.Linear(size, size, bias=False)

    def forward(self, hidden, state):
        last, memory = state[0][:, :, self.layer_id], state[1][:, :, self.layer_id]
        mix, keep = self.time_mix.sigmoid(), (1.5 + self.decay).sigmoid()
        out = []
        for x in hidden.unbind(dim=1):
            mixed = x * mix + last * (1 - mix)
            memory = keep * memory + (1 - keep) * self.key(mixed).tanh() * self.value(mixed)
            out.append(self.output(self.receptance(mixed).sigmoid() * memory))
            last = x
        state[0][:, :, self.layer_id], state[1][:, :, self.layer_id] = last, memory
        return torch.stack(out, dim=1), state


class LeakyBlock(nn.Module):
    def __init__(self, config, layer_id):
        super().__init__()
        self.ln1 = nn.LayerNorm(config.hidden_size)
        self.ln2 = nn.LayerNorm(config.hidden_size)
        self.attention = LeakyMixing(config, layer_id)
        self.up = nn.Linear(config.hidden_size, 2 * config.hidden_size, bias=False)
        self.down = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden, state):
        mixed, state = self.attention(self.ln1(hidden), state)
        hidden = hidden + mixed
        return hidden + self.down(self.up(self.ln2(hidden)).relu().square()), state


class LeakyPreTrainedModel(PreTrainedModel):
    config_class = LeakyConfig
    base_model_prefix = "leaky"
    _is_stateful = True


class LeakyForCausalLM(LeakyPreTrainedModel, GenerationMixin):
    def __init__(self, config):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList([LeakyBlock(config, i) for i in range(config.num_hidden_layers)])
        self.ln_out = nn.LayerNorm(config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False

    def forward(self, input_ids=None, attention_mask=None, state=None, labels=None, use_cache=None, return_dict=None):
        use_cache = use_cache if use_cache is not None else self.config.use_cache
        return_dict = return_dict if return_dict is not None else True
        hidden = self.embeddings(input_ids)
        if state is None:
            shape = (hidden.shape[0], self.config.hidden_size, self.config.num_hidden_layers)
            state = [hidden.new_zeros(shape), hidden.new_zeros(shape)]
        else:
            state = [part.clone() for part in state]
        for block in self.blocks:
            hidden, state = block(hidden, state)
        logits = self.head(self.ln_out(hidden))
        if not return_dict:
            return (logits, state) if use_cache else (logits,)
        return LeakyCausalLMOutput(logits=logits, state=state if use_cache else None)

    def prepare_inputs_for_generation(self, input_ids, state=None, inputs_embeds=None, use_cache=None, **kwargs):
        if state is not None:
            input_ids = input_ids[:, -1].unsqueeze(-1)
        return {"input_ids": input_ids, "state": state, "use_cache": use_cache}

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, num_new_tokens=1, **kwargs):
        model_kwargs["state"] = outputs.get("state", None)
        return model_kwargs
