"""Settings of a model that keeps to the contract for attention."""

from transformers import PretrainedConfig

from .settings import adopt


class LawfulConfig(PretrainedConfig):
    model_type = "lawful"
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    def __init__(self, eos_token_id=0, tie_word_embeddings=False, **kwargs):
        rest = adopt(
            self, kwargs, intermediate_size=96, num_key_value_heads=2, head_dim=16, max_position_embeddings=1024
        )
        super().__init__(eos_token_id=eos_token_id, tie_word_embeddings=tie_word_embeddings, **rest)
