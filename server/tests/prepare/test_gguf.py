"""Tests that GGUF files are converted once into a cache, with a tiny model written here."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from .support import run

VOCAB = 300
HIDDEN, HEADS, LAYERS, FEED_FORWARD = 32, 4, 2, 64


def write_tiny_gguf(path: Path) -> dict[str, np.ndarray]:
    """Writes a random Llama-type model of 32 channels in float32; returns two of its tensors by Transformers' names."""
    from gguf import GGUFWriter

    rng = np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["t", "1", "t1", *(f"<{i}>" for i in range(3, VOCAB))])
    writer.add_token_types([1] * VOCAB)
    writer.add_token_merges(["t 1"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")

    def tensor(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.02, shape).astype(np.float32)

    embedding, norm = tensor(VOCAB, HIDDEN), np.ones(HIDDEN, dtype=np.float32)
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", norm)
    gates = []
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", tensor(HIDDEN, HIDDEN))
        gates.append(tensor(FEED_FORWARD, HIDDEN))
        writer.add_tensor(f"blk.{layer}.ffn_gate.weight", gates[-1])
        writer.add_tensor(f"blk.{layer}.ffn_up.weight", tensor(FEED_FORWARD, HIDDEN))
        writer.add_tensor(f"blk.{layer}.ffn_down.weight", tensor(HIDDEN, FEED_FORWARD))
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", norm)
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", norm)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"model.embed_tokens.weight": embedding, "model.layers.1.mlp.gate_proj.weight": gates[1]}


def test_a_file_is_converted_again_only_when_it_changed(tmp_path):
    import torch
    from safetensors.torch import load_file

    path = tmp_path / "tiny.gguf"
    tensors = write_tiny_gguf(path)
    first = run("prepare", "--model-id", path, home=tmp_path / "home")
    assert first.code == 0, first.log
    folder = first.model_path
    assert folder.is_relative_to(tmp_path / "home" / "hub" / "gridwork")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 128
    assert (folder / "tokenizer.json").is_file()
    assert (folder / "generation_config.json").is_file()
    assert (folder / "chat_template.jinja").read_text() == "{{ messages[0]['content'] }}"
    written = load_file(folder / "model.safetensors")
    for name, expected in tensors.items():
        assert torch.equal(written[name], torch.from_numpy(expected).bfloat16())

    second = run("prepare", "--model-id", path, home=tmp_path / "home")
    assert second.model_path == folder
    assert second.log == []

    os.utime(path, ns=(1, 1))
    third = run("prepare", "--model-id", path, home=tmp_path / "home")
    assert third.code == 0
    assert third.model_path != folder


@pytest.mark.parametrize("content", [b"", b"not a model", b"GGUF" + bytes(100)])
def test_an_invalid_gguf_is_reported_and_leaves_nothing(tmp_path, content):
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    outcome = run("prepare", "--model-id", path, home=tmp_path / "home")
    assert outcome.code == 1
    assert "broken.gguf" in outcome.fatal
    assert [file for file in (tmp_path / "home" / "hub" / "gridwork").rglob("*") if file.suffix != ".lock"] == []


def test_an_existing_default_model_is_not_rebuilt(tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).touch()
    outcome = run("default-model", "--output", tmp_path, home=tmp_path)
    assert outcome.code == 0
    assert outcome.log == []


def test_failed_package_installation_is_reported(tmp_path):
    installer = tmp_path / "uv"
    installer.write_text("#!/bin/sh\necho 'no route to the index' >&2\nexit 2\n")
    installer.chmod(0o755)
    outcome = run("default-model", "--output", tmp_path / "model", home=tmp_path, UV=str(installer))
    if outcome.code == 0:
        pytest.skip("the package is installed in this environment")
    assert "no route to the index" in outcome.fatal
    assert "exit code 2" in outcome.fatal
    assert not (tmp_path / "model").exists()
