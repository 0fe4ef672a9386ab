"""Tests each key of a LoRA's adapter_config.json: a merged base must compute what PEFT computes."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from gridwork_server.prepare import adapter
from gridwork_server.prepare.errors import PrepareError

from .keys import LORA, Refused

TOKENS = torch.tensor([[1, 5, 9, 60, 33, 98, 7]])
ROWS = 100


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        intermediate_size=64,
        vocab_size=ROWS,
        max_position_embeddings=64,
        tie_word_embeddings=request.param,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@torch.inference_mode()
def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    return model.eval()(tokens).logits


def merged(folder: Path, base: Path) -> Path:
    return adapter.merge_adapter(folder, lambda name: base, False, False, None, folder.parent / "cache")


def check(base: Path, folder: Path, rows: int, settings: dict[str, Any]) -> None:
    torch.manual_seed(3)
    plain: Any = AutoModelForCausalLM.from_pretrained(base)
    if rows != ROWS:
        plain.resize_token_embeddings(rows)
    config = LoraConfig(**{"r": 4, "lora_alpha": 16, "task_type": "CAUSAL_LM"} | settings)
    model: Any = get_peft_model(plain, config)
    if not isinstance(config.init_lora_weights, str):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.3)
    tokens = torch.cat([TOKENS, torch.tensor([[rows - 1]])], 1)
    expected = logits(model, tokens)
    model.save_pretrained(folder)
    found = AutoModelForCausalLM.from_pretrained(merged(folder, base))
    torch.testing.assert_close(logits(found, tokens), expected, rtol=1e-3, atol=1e-3)


def test_every_key_of_peft_is_listed() -> None:
    assert {field.name for field in dataclasses.fields(LoraConfig)} == set(LORA)


_CASES = [
    pytest.param(key, sample, id=f"{key}-{index}")
    for key, entry in LORA.items()
    for index, sample in enumerate(entry.samples)
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("key", "sample"), _CASES)
def test_each_key_has_the_listed_effect(key: str, sample: Any, base: Path, tmp_path: Path) -> None:
    settings = LORA[key].settings | {key: sample}
    if isinstance(LORA[key], Refused):
        with pytest.raises(PrepareError, match=key):
            check(base, tmp_path / "adapter", ROWS, settings)
    else:
        check(base, tmp_path / "adapter", ROWS, settings)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": ["embed_tokens"]},
        {"trainable_token_indices": [100, 101, 103]},
    ],
)
def test_adapter_that_added_tokens_is_merged(settings: dict[str, Any], base: Path, tmp_path: Path) -> None:
    check(base, tmp_path / "adapter", ROWS + 4, {"target_modules": ["q_proj"]} | settings)
