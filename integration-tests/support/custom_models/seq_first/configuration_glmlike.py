"""Settings under names of their own: `num_layers`, `padded_vocab_size`, `seq_length`."""

from transformers import PretrainedConfig


class GlmLikeConfig(PretrainedConfig):
    model_type = "glmlike"

    def __init__(
        self,
        num_layers=3,
        padded_vocab_size=640,
        hidden_size=64,
        ffn_hidden_size=96,
        kv_channels=16,
        num_attention_heads=4,
        multi_query_group_num=2,
        seq_length=1024,
        layernorm_epsilon=1e-5,
        add_qkv_bias=True,
        use_cache=True,
        **kwargs,
    ):
        self.num_layers = num_layers
        self.vocab_size = padded_vocab_size
        self.padded_vocab_size = padded_vocab_size
        self.hidden_size = hidden_size
        self.ffn_hidden_size = ffn_hidden_size
        self.kv_channels = kv_channels
        self.num_attention_heads = num_attention_heads
        self.multi_query_group_num = multi_query_group_num
        self.seq_length = seq_length
        self.layernorm_epsilon = layernorm_epsilon
        self.add_qkv_bias = add_qkv_bias
        self.use_cache = use_cache
        super().__init__(**kwargs)
