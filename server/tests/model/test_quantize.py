"""Tests --quantize: quality on real text, and refusals."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gridwork_kernels import cpu_library, quantized_linear
from gridwork_server.config import ShardConfig
from gridwork_server.errors import ModelError
from gridwork_server.model.loading import load
from gridwork_server.parallel.group import RankGroup

from .. import models

ROOT = Path(__file__).resolve().parents[3]
SMOLLM2 = ROOT / ".cache/models/SmolLM2-135M-Instruct"
TEXT = ROOT / "benchmarks/text/bridges.txt"

pytestmark = pytest.mark.skipif(cpu_library.load() is None, reason="no compiled kernels for this CPU")


def loaded(folder: Path, **settings: Any) -> Any:
    return load(ShardConfig(model_path=folder, socket="", **settings), RankGroup())


@torch.inference_mode()
def perplexity(folder: Path, quantize: str | None) -> float:
    """Perplexity of TEXT, by the model's own forward()."""
    from transformers import AutoTokenizer

    model = loaded(folder, quantize=quantize, dtype="bfloat16", model_impl="solo").model
    ids = AutoTokenizer.from_pretrained(folder)(TEXT.read_text(), return_tensors="pt").input_ids
    logits = model(ids).logits[0, :-1].float()
    return math.exp(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item())


def test_perplexity_rises_little() -> None:
    plain = perplexity(SMOLLM2, None)
    assert perplexity(SMOLLM2, "int8") < 1.02 * plain
    assert perplexity(SMOLLM2, "int4") < 1.04 * plain


@pytest.mark.parametrize("method", quantized_linear.METHODS)
def test_quantized_models_run_on_the_fast_path(method: str, tmp_path: Path) -> None:
    model = loaded(models.save("llama", tmp_path, hidden_size=96, intermediate_size=96), quantize=method)
    assert model.path.name == "paged" and model.path.is_recorded
    assert f"22 linear layers in {method}" in model.notes


@pytest.mark.parametrize("method", quantized_linear.METHODS)
def test_transposed_weights_are_quantized(method: str, tmp_path: Path) -> None:
    model = loaded(models.save("gpt2", tmp_path), quantize=method, dtype="bfloat16")
    assert model.path.name == "paged" and model.path.is_recorded
    assert f"13 linear layers in {method}" in model.notes


@pytest.mark.parametrize("method", quantized_linear.METHODS)
def test_experts_are_quantized(method: str, tmp_path: Path) -> None:
    folder = models.save("qwen3_moe", tmp_path, hidden_size=96, moe_intermediate_size=64, intermediate_size=96)
    model = loaded(folder, quantize=method)
    assert model.path.name == "paged" and model.path.is_recorded
    assert f"experts of 2 layers in {method}" in model.notes
    assert not [name for name, _ in model.model.named_parameters() if "experts" in name], "no other copy is kept"


def test_unquantizable_models_are_refused(tmp_path: Path) -> None:
    odd = models.save("gpt2", tmp_path / "gpt2", vocab_size=30, tie_word_embeddings=True, n_embd=60)
    with pytest.raises(ModelError, match=r"no effect on GPT2LMHeadModel.*leave it out"):
        loaded(odd, quantize="int8")
    again = models.save("llama", tmp_path / "llama", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match=r"quantized with gptq"):
        loaded(again, quantize="int4")
