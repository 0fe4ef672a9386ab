"""Tests rotary frequencies that depend on a sequence's length: every token gets its own, whatever else is in the
batch."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers.models.llama import modeling_llama

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.config import ShardConfig
from gridwork_server.errors import ModelError
from gridwork_server.lengths.call_lengths import watch
from gridwork_server.lengths.probe import LengthRule
from gridwork_server.model.loading import load
from gridwork_server.parallel.group import RankGroup
from gridwork_server.paths import choice
from gridwork_server.paths.isolation_check import recompute_length
from gridwork_server.paths.sequence_table import SequenceTable, StepBatch
from gridwork_server.step.runner import Runner

from .. import models
from ..driver import Driver, Sequence

LIMIT = 32
"""Largest number of tokens with the frequencies of short sequences."""

_FACTORS = {"short_factor": [1.0] * 4, "long_factor": [1.0, 3.0, 8.0, 20.0]}
_LONGROPE = _FACTORS | {"rope_theta": 1e4, "rope_type": "longrope", "original_max_position_embeddings": LIMIT}
_DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope, recomputed": (
        "phi3",
        {"original_max_position_embeddings": LIMIT, "rope_scaling": _FACTORS | {"type": "longrope"}}
        | {"partial_rotary_factor": 1.0},
    ),
    "longrope": ("qwen3", {"head_dim": 8, "rope_parameters": _LONGROPE}),
    "dynamic": ("qwen3", {"rope_parameters": _DYNAMIC, "max_position_embeddings": LIMIT}),
    "one kind of layers": (
        "gemma3",
        {
            "rope_parameters": {
                "full_attention": _DYNAMIC,
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
            },
            "max_position_embeddings": LIMIT,
        },
    ),
}
RULES = {
    "longrope, recomputed": (LengthRule(LIMIT, apart=False), LIMIT + 1),
    "longrope": (LengthRule(LIMIT, apart=False), 0),
    "dynamic": (LengthRule(LIMIT, apart=True), 0),
    "one kind of layers": (LengthRule(LIMIT, apart=True), 0),
}
PROMPTS = models.prompts([12, 70, 20, LIMIT - 1, LIMIT, LIMIT + 1])
COUNT = 24
LIMITS = pb.WarmupRequest(
    block_size_tokens=4, max_batch_tokens=256, max_sequences=8, max_total_tokens=128, max_drafts=4
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a function from a name in CONFIGS to a folder with such a model."""

    @functools.cache
    def build(name: str) -> Path:
        architecture, changes = CONFIGS[name]
        return models.save(architecture, tmp_path_factory.mktemp("model"), **changes)

    return build


@pytest.fixture(scope="module")
def expected(folders: Any) -> Any:
    """Makes a function from a name in CONFIGS to each prompt's tokens by `generate()` of a fresh model."""

    @functools.cache
    def compute(name: str) -> list[list[int]]:
        return [models.greedy(models.plain(folders(name)), prompt, COUNT) for prompt in PROMPTS]

    return compute


def runner_of(folder: Path, **settings: Any) -> Runner:
    config = ShardConfig(model_path=folder, socket="", dtype="float32", kv_cache_memory_bytes=2**24, **settings)
    return Runner(load(config, RankGroup()), config, RankGroup())


def served(runner: Runner, preempt_at: tuple[int, ...] = (), **settings: Any) -> list[list[int]]:
    """Serves all prompts at once, each joining a step after the one before; returns their tokens."""
    limits = pb.WarmupRequest()
    limits.CopyFrom(LIMITS)
    if not runner.path.takes_drafts:
        limits.max_drafts = 0
    lengths = runner.loaded.lengths
    blocks = runner.warm_up(limits).num_blocks
    driver = Driver(runner.run, blocks, recompute_at=lengths.recompute_at if lengths else 0, **settings)
    names = []
    for prompt in PROMPTS:
        names.append(driver.add(prompt, COUNT))
        driver.step()
    for step in range(200):
        if not driver.running:
            break
        if step in preempt_at:
            driver.preempt(driver.running[0].name)
            driver.preempt(driver.running[-1].name)
        driver.step()
    assert not driver.failures
    results = driver.finish()
    return [results[name] for name in names]


@pytest.mark.parametrize("name", CONFIGS)
def test_length_rule_is_found(name: str, folders: Any) -> None:
    model = models.plain(folders(name))
    with torch.inference_mode(), watch(model, 10) as found:
        model(torch.tensor([PROMPTS[0][:10]]))
    assert (found[0].rule, recompute_length(model)) == RULES[name]
    found[0].remove()
    assert not any("forward" in vars(module) for module in model.modules())


def test_models_without_length_dependence_are_unchanged(tmp_path: Path) -> None:
    model = models.plain(models.save("mistral", tmp_path))
    with torch.inference_mode(), watch(model, 10) as found:
        model(torch.tensor([PROMPTS[0][:10]]))
    assert not found
    assert recompute_length(model) == 0
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("lengths", [[300] * 4, [10, 10, 300, 300], [32, 33, 34, 200], [5, 32, 33, 33]])
@pytest.mark.parametrize("name", ["longrope", "dynamic"])
@torch.inference_mode()
def test_a_token_gets_the_result_of_a_fresh_module(name: str, lengths: list[int], by_row: bool, folders: Any) -> None:
    model = models.plain(folders(name))
    fresh = [models.plain(folders(name)).model.rotary_emb for _ in lengths]
    with watch(model, 10) as found:
        model(torch.tensor([PROMPTS[0][:10]]))
    hidden, rotary = torch.zeros(1, 1, 8), model.model.rotary_emb
    positions = [min(position, length - 1) for position, length in zip([0, 3, 31, 33], lengths, strict=True)]
    alone = [
        module(hidden, torch.tensor([[position, length - 1]]))
        for module, position, length in zip(fresh, positions, lengths, strict=True)
    ]
    given = torch.tensor([positions])
    own = np.array(lengths)
    for _ in range(2):  # state from the first call must not matter
        with found[0].of(own[:, None] if by_row else own):
            together = rotary(hidden, position_ids=given.T if by_row else given)
        for i, each in enumerate(alone):
            for values, one in zip(together, each, strict=True):
                torch.testing.assert_close(values[i, 0] if by_row else values[0, i], one[0, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("impl", ["paged", "paged, own code", "batched", "solo"])
@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_equal_generate(name: str, impl: str, folders: Any, expected: Any) -> None:
    runner = runner_of(folders(name), model_impl=impl.split(",")[0], fuse=impl == "paged")
    assert runner.path.name == impl.split(",")[0]
    assert served(runner) == expected(name)
    assert served(runner, chunk=9) == expected(name)
    assert served(runner, chunk=9, preempt_at=(3, 9, 15)) == expected(name)


@pytest.mark.parametrize("name", CONFIGS)
def test_drafts_do_not_change_tokens(name: str, folders: Any, expected: Any) -> None:
    runner = runner_of(folders(name), model_impl="paged")
    right = {tuple(prompt): answer for prompt, answer in zip(PROMPTS, expected(name), strict=True)}

    def draft(sequence: Sequence) -> list[int]:
        """The next tokens, with every third one wrong."""
        done = len(sequence.generated)
        answer = right[tuple(sequence.tokens[: sequence.num_prompt])][done : done + 4]
        return [token if (done + i) % 3 else 3 for i, token in enumerate(answer)]

    assert served(runner, draft=draft) == expected(name)


def test_operations_are_recorded_if_there_are_two_frequency_classes(folders: Any) -> None:
    for name in CONFIGS:
        runner = runner_of(folders(name), model_impl="paged")
        notes = " ".join(runner.loaded.notes)
        if RULES[name][0].apart:
            assert "runs its own code: rotary frequencies change with every token beyond 32 tokens" in notes
        else:
            assert "recorded operations" in notes


@pytest.mark.parametrize("path", ["paged", "batched"])
@pytest.mark.parametrize("name", CONFIGS)
def test_self_check_finds_ignored_length_rule(
    name: str, path: str, folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "find_lengths", lambda *_: None)
    with pytest.raises(ModelError, match="depend on how long others are"):
        runner_of(folders(name), model_impl=path)


def test_self_check_finds_a_wrong_chunk(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computes a chunk with the frequencies of the longest position in its batch."""

    def of_batch(_: SequenceTable, batch: StepBatch) -> np.ndarray:
        return np.full_like(batch.positions, batch.positions.max() + 1)

    monkeypatch.setattr(SequenceTable, "call_lengths", of_batch)
    with pytest.raises(ModelError, match="not those of plain forward"):
        runner_of(folders("longrope"), model_impl="paged", fuse=False)


class Tables(nn.Module):
    """Dynamic scaling as in code from before 2024: tables up to the longest length so far, which the caller passes."""

    def __init__(self, dim: int, base: float) -> None:
        super().__init__()
        self.dim, self.base = dim, base
        self.longest_seen = 0

    def _make(self, length: int) -> None:
        self.longest_seen = length
        base = self.base * (4 * length / LIMIT - 3) ** (self.dim / (self.dim - 2))
        frequencies = 1.0 / base ** (torch.arange(0, self.dim, 2).float() / self.dim)
        angles = torch.outer(torch.arange(length).float(), frequencies).repeat(1, 2)
        self.register_buffer("cos_cached", angles.cos(), persistent=False)
        self.register_buffer("sin_cached", angles.sin(), persistent=False)

    def forward(self, x: torch.Tensor, seq_len: int) -> tuple[Any, Any]:
        if seq_len > self.longest_seen:
            self._make(max(seq_len, LIMIT))
        return self.cos_cached[:seq_len].to(x.dtype), self.sin_cached[:seq_len].to(x.dtype)


class TableRotary(nn.Module):
    """Looks up rows of tables that are as long as the call."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.tables = Tables(config.head_dim, 1e4)

    @torch.no_grad()
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self.tables(x, seq_len=int(position_ids.max()) + 1)
        return cos[position_ids], sin[position_ids]


@pytest.mark.parametrize("impl", ["auto", "solo"])
def test_only_equal_lengths_decode_together_if_the_call_length_is_passed(
    impl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling_llama, "LlamaRotaryEmbedding", TableRotary)
    folder = models.save("llama", tmp_path, max_position_embeddings=512)
    right = [models.greedy(models.plain(folder), prompt, COUNT) for prompt in PROMPTS]
    runner = runner_of(folder, model_impl=impl)
    if impl == "auto":
        assert runner.path.name == "batched"
        assert "are those of a whole call" in runner.loaded.path_reason
    assert served(runner) == right
    assert served(runner, preempt_at=(3, 9, 15)) == right


def test_decoder_lengths_exclude_the_prompt(tmp_path: Path) -> None:
    """The encoder computes a long prompt; the decoder starts with one token."""
    part = {
        "vocab_size": models.VOCAB,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 16,
        "sliding_window": 9,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": _DYNAMIC,
        "initializer_range": 0.3,
        "dropout_rate": 0.0,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    config = transformers.T5GemmaConfig(
        encoder=dict(part), decoder=dict(part), vocab_size=models.VOCAB, tie_word_embeddings=False, eos_token_id=None
    )
    torch.manual_seed(0)
    transformers.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path)

    def fresh() -> Any:
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.float32)
        return model.eval()

    right = [models.greedy(fresh(), prompt, COUNT) for prompt in PROMPTS]
    runner = runner_of(tmp_path)
    assert runner.loaded.lengths is not None
    assert served(runner) == right
    assert served(runner, preempt_at=(3, 9, 15)) == right
