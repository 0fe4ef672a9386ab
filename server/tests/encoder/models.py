"""Tiny encoders of many families, with random weights."""

from typing import Any

import torch
import transformers

from ..models import TINY

VOCAB = 211

_COMMON: dict[str, Any] = TINY | {"vocab_size": VOCAB, "num_attention_heads": 4, "max_position_embeddings": 130}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", _COMMON),
    "roberta": ("RobertaConfig", _COMMON),
    "xlm-roberta": ("XLMRobertaConfig", _COMMON),
    "electra": ("ElectraConfig", _COMMON | {"embedding_size": 24}),
    "mpnet": ("MPNetConfig", _COMMON),
    "modernbert": ("ModernBertConfig", _COMMON | _SPECIAL | {"num_hidden_layers": 4, "local_attention": 8}),
    "distilbert": (
        "DistilBertConfig",
        {"vocab_size": VOCAB, "dim": 48, "hidden_dim": 80, "n_layers": 3, "n_heads": 4, "initializer_range": 0.3},
    ),
    "deberta-v2": ("DebertaV2Config", _COMMON | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "fnet": ("FNetConfig", {k: v for k, v in _COMMON.items() if k != "num_attention_heads"}),
    "llama": ("LlamaConfig", _COMMON | {"num_key_value_heads": 2}),
    "gemma3": (
        "Gemma3TextConfig",
        _COMMON
        | {"num_key_value_heads": 2, "head_dim": 16, "use_bidirectional_attention": True, "sliding_window": 12}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
}


def build(name: str, auto_class: Any = transformers.AutoModel, **changes: Any) -> Any:
    """Makes a random model in float32. Biases and norms are random too, instead of 0 and 1."""
    config_class, settings = CONFIGS[name]
    config = getattr(transformers, config_class)(**(settings | changes))
    torch.manual_seed(0)
    model = auto_class.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def sequences(lengths: list[int], seed: int = 1) -> list[list[int]]:
    """Makes random sequences of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in lengths]
