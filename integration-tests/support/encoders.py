"""Tiny random encoders with a head, and Transformers' own results for texts."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    ModernBertConfig,
)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")

_COMMON: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "initializer_range": 0.4,
    "pad_token_id": 0,
}


def classifier(folder: Path, tokenizer: Path, labels: list[str]) -> Path:
    """A BERT that classifies into these labels. With one label it is a reranker."""
    config = BertConfig(**_COMMON, num_hidden_layers=2, id2label=dict(enumerate(labels)))
    return _save(AutoModelForSequenceClassification.from_config(config), folder, tokenizer)


def masked(folder: Path, tokenizer: Path) -> Path:
    """A ModernBERT with sliding windows, as a masked language model."""
    special: dict[str, Any] = {"bos_token_id": 101, "cls_token_id": 101, "eos_token_id": 102, "sep_token_id": 102}
    config = ModernBertConfig(**_COMMON, **special, num_hidden_layers=4, local_attention=8)
    return _save(AutoModelForMaskedLM.from_config(config), folder, tokenizer)


def _save(model: Any, folder: Path, tokenizer: Path) -> Path:
    model.save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        shutil.copy(tokenizer / name, folder / name)
    return folder


class Reference:
    """Plain Transformers, one text at a time, in float32."""

    def __init__(self, folder: Path) -> None:
        architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
        if architecture.endswith("ForMaskedLM"):
            auto_class: Any = AutoModelForMaskedLM
        elif architecture.endswith("ForSequenceClassification"):
            auto_class = AutoModelForSequenceClassification
        else:
            auto_class = AutoModel
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        # A saved tokenizer may pad texts.
        self.tokenizer.backend_tokenizer.no_padding()
        self.tokenizer.backend_tokenizer.no_truncation()
        self.model = auto_class.from_pretrained(folder, attn_implementation="eager").eval()

    @torch.inference_mode()
    def embedding(self, text: str) -> torch.Tensor:
        """Mean of the hidden states, scaled to length 1. `[size]`."""
        hidden = self.model(**self.tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        return torch.nn.functional.normalize(hidden.mean(0), dim=0)

    @torch.inference_mode()
    def logits(self, text: str, pair: str | None = None) -> torch.Tensor:
        """Logits of the labels, `[labels]`; of a masked language model, `[tokens, vocabulary]`."""
        return self.model(**self.tokenizer(text, pair, return_tensors="pt")).logits[0]
