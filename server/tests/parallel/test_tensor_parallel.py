"""Compares models split over several real processes with the same models in one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gridwork_server.parallel.modules import share

from .. import models
from ..damage import change_weights
from ..quantized import save_fp8
from ..shard_process import free_port

SERVER = Path(__file__).parents[2]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (
        "llama",
        {
            "hidden_size": 72,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"num_attention_heads": 5, "num_key_value_heads": 1, "hidden_size": 40}),
    "mistral": ("mistral", {"intermediate_size": 81}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3", {}),
    "fused heads": ("gpt_neox", {"num_attention_heads": 3}),
    "fused qkv and packed gates": ("phi3", {}),
    "norms over all heads": ("olmo2", {}),
    "sinks": ("granite_swa", {}),
    "experts": ("qwen3_moe", {}),
    "latent attention": ("deepseek_v2", {}),
}
UP = "model.layers.1.mlp.up_proj.weight"
UNFIT = {
    "gpt2": ["GPT2LMHeadModel", "no tensor-parallel plan", "--num-shard 1"],
    "indivisible": ["model.layers.0.mlp of LlamaForCausalLM", "2 ranks", "--num-shard 1"],
    "missing": [f"lack {UP}", "incomplete"],
    "misshapen": ["model.norm.weight is [10], not [48]"],
    "undeclared codes": [UP, "F8_E4M3", "quantized"],
    "undeclared scales": [f"{UP}_scale_inv", "quantized"],
    "fp8": ["quantized with fp8", "config.json", "--num-shard 1"],
}
PROMPTS = models.prompts([21, 1, 5])
COUNT = 12


def run_jobs(folder: Path, jobs: list[dict[str, Any]], world_size: int = 2) -> list[list[dict[str, Any]]]:
    """Runs jobs on every rank; returns each rank's results."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    port = str(free_port())
    outputs = [folder / f"results-{rank}.json" for rank in range(world_size)]
    ranks = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.rank_program"),
                *(str(rank), str(world_size), port, str(outputs[rank]), str(folder / "jobs.json")),
            ],
            cwd=SERVER,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        for rank in range(world_size)
    ]
    try:
        assert [rank.wait(120) for rank in ranks] == [0] * world_size
    finally:
        for rank in ranks:
            rank.kill()
    return [json.loads(output.read_text()) for output in outputs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, (architecture, changes) in CASES.items():
        models.save(architecture, folder / name, **changes)
    models.save("gpt2", folder / "gpt2")
    models.save("llama", folder / "indivisible", num_attention_heads=6, num_key_value_heads=6, intermediate_size=1)
    damage(models.save("llama", folder / "missing"), "model.layers.1.mlp.up_proj.weight", None)
    damage(models.save("llama", folder / "misshapen"), "model.norm.weight", slice(0, 10))
    codes = models.save("llama", folder / "undeclared codes")
    change_weights(codes, lambda t: t.update({UP: t[UP].to(torch.float8_e4m3fn)}))
    scales = models.save("llama", folder / "undeclared scales")
    change_weights(scales, lambda t: t.update({f"{UP}_scale_inv": torch.ones(1)}))
    save_fp8(models.save("llama", folder / "fp8"), block=16)
    return folder


def damage(folder: Path, name: str, kept: slice | None) -> None:
    """Removes a tensor from a model, or all but a part of it."""
    tensors = load_file(folder / "model.safetensors")
    tensor = tensors.pop(name)
    if kept is not None:
        tensors[name] = tensor[kept].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Results of the two ranks, by model."""
    names = [*CASES, *UNFIT, "bfloat16"]
    jobs = [
        {"folder": str(folder / name), "dtype": "float32", "prompts": PROMPTS, "count": COUNT} for name in names[:-1]
    ]
    jobs[0]["prompts"] = [*PROMPTS, [5, models.VOCAB, 6]]
    jobs.append({"folder": str(folder / "llama"), "dtype": "bfloat16", "prompts": PROMPTS, "count": COUNT})
    return dict(zip(names, zip(*run_jobs(folder, jobs), strict=True), strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_give_the_same_tokens_as_one(
    name: str, folder: Path, results: dict[str, list[dict[str, Any]]]
) -> None:
    first, second = results[name]
    assert "error" not in first, first
    model = models.plain(folder / name)
    tokens = [models.greedy(model, prompt, COUNT) for prompt in PROMPTS]
    # The first model also got a prompt with a token outside its vocabulary; that sequence fails alone.
    assert first["tokens"] == (tokens if name != next(iter(CASES)) else [*tokens, []])
    assert first["num_parameters"] == second["num_parameters"] == sum(p.numel() for p in model.parameters())
    # Norms and embeddings are on both ranks, and little else is.
    whole = sum(p.numel() * 4 for p in model.parameters())
    assert whole < first["weight_bytes"] < whole * 1.5


def test_heads_are_split_unevenly_or_repeated(results: dict[str, list[dict[str, Any]]]) -> None:
    assert [rank["kv_heads"] for rank in results["llama"]] == [[2, 2, 2], [1, 1, 1]]
    assert [rank["kv_heads"] for rank in results["qwen3"]] == [[1, 1, 1], [1, 1, 1]]


def test_runs_in_bfloat16(results: dict[str, list[dict[str, Any]]]) -> None:
    assert [len(tokens) for tokens in results["bfloat16"][0]["tokens"]] == [COUNT] * len(PROMPTS)


@pytest.mark.parametrize(("name", "words"), UNFIT.items())
def test_error_says_why_a_model_cannot_be_split(
    name: str, words: list[str], results: dict[str, list[dict[str, Any]]]
) -> None:
    for rank in results[name]:
        for word in words:
            assert word in rank["error"]


def test_shares_are_balanced_and_cover_everything() -> None:
    for total in (3, 4, 10):
        for world_size in (1, 2, 3):
            shares = [share(total, rank, world_size) for rank in range(world_size)]
            assert [start for start, _ in shares] == [0, *(stop for _, stop in shares[:-1])]
            assert shares[-1][1] == total
            assert max(b - a for a, b in shares) - min(b - a for a, b in shares) <= 1
