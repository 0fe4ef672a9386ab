"""Claims to keep to the contract for engines and looks attention up, but its layers drop the keywords: an engine's
attention function is called without them."""

from .configuration_forgetful import ForgetfulConfig
from .modeling_lawful import LawfulForCausalLM, LawfulLayer, LawfulModel


class ForgetfulLayer(LawfulLayer):
    def forward(self, hidden_states, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), attention_mask, position_ids, past_key_values)
        hidden_states = hidden_states + attended * 0.8
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states)) * 0.8


class ForgetfulModel(LawfulModel):
    config_class = ForgetfulConfig
    layer_class = ForgetfulLayer
    _no_split_modules = ["ForgetfulLayer"]


class ForgetfulForCausalLM(LawfulForCausalLM):
    config_class = ForgetfulConfig
    model_class = ForgetfulModel
    _no_split_modules = ["ForgetfulLayer"]
