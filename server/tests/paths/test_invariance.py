"""Tests the promise for logits: the same bits whatever runs beside a request, and however its tokens are divided into
steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.config import ShardConfig
from gridwork_server.model.loading import LoadedModel, load
from gridwork_server.parallel.group import RankGroup
from gridwork_server.paths.invariance import Invariance, invariance_of
from gridwork_server.paths.sequence_table import SequenceTable

from .. import models

LIMITS = pb.WarmupRequest(block_size_tokens=4, max_batch_tokens=128, max_sequences=4, max_total_tokens=48)
BLOCKS = 12
PROMPTS = (13, 5, 24, 9)
DECODES = 10

Step = dict[int, int]
"""Number of tokens that a step computes for each sequence."""

Logits = dict[tuple[int, int], torch.Tensor]
"""Rows of logits by sequence and position."""

SMALL: dict[str, Any] = {"vocab_size": models.VOCAB, "eos_token_id": None, "bos_token_id": 1, "pad_token_id": 0}


def load_model(name: str, folder: Path, dtype: str, **settings: Any) -> LoadedModel:
    if name in models.ARCHITECTURES:
        # Wide enough for all layers to be packed.
        sizes = {"hidden_size": 64, "intermediate_size": 128} if name != "gpt2" else {}
        models.save(name, folder, **sizes, **({"num_attention_heads": 4} if sizes else {}))
    else:
        config = {
            "bloom": lambda: transformers.BloomConfig(**SMALL, hidden_size=64, n_layer=3, n_head=4),
            "openai-gpt": lambda: transformers.OpenAIGPTConfig(**SMALL, n_embd=64, n_layer=2, n_head=4),
        }[name]()
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return load(ShardConfig(model_path=folder, socket="", dtype=dtype, **settings), RankGroup())


@torch.inference_mode()
def run(loaded: LoadedModel, sequences: list[np.ndarray], steps: list[Step], forgets: bool = False) -> Logits:
    """Runs the steps. forgets: generated tokens are computed again with the prompt, as after a restart."""
    path, rows = loaded.path, {}
    table = SequenceTable(len(sequences), LIMITS.max_total_tokens, LIMITS.block_size_tokens, BLOCKS * len(sequences))
    path.allocate(LIMITS, BLOCKS * len(sequences))
    computed: dict[int, int] = {}
    for step in steps:
        for id, count in step.items():
            if id not in computed:
                known = len(sequences[id]) if forgets else PROMPTS[id]
                tokens = sequences[id][:known].tolist()
                table.admit(pb.NewSequence(id=id, token_ids=tokens, num_prompt_tokens=PROMPTS[id]))
                table.append_blocks(np.array([id]), np.array([BLOCKS]), np.arange(BLOCKS * id, BLOCKS * (id + 1)))
            elif computed[id] >= PROMPTS[id] and not forgets:
                table.append_tokens(np.array([id]), sequences[id][computed[id] : computed[id] + 1])
            computed[id] = computed.get(id, 0) + count
        batch = table.batch(np.array(list(step)), np.array(list(step.values())))
        logits, kept = path.forward(batch, table, np.array([], dtype=np.int64))
        for row, token in zip(logits, kept.tolist(), strict=True):
            rows[int(batch.sequence_ids[batch.row[token]]), int(batch.positions[token])] = row.clone()
        table.computed(batch)
    path.release(np.arange(len(sequences)))
    return rows


def alone() -> list[Step]:
    """Runs every sequence alone, with its prompt in one piece."""
    return [step for id, prompt in enumerate(PROMPTS) for step in [{id: prompt}, *[{id: 1}] * DECODES]]


def together() -> list[Step]:
    """Sequences join one after the other."""
    done = dict.fromkeys(range(len(PROMPTS)), -1)
    steps: list[Step] = []
    while any(count < DECODES for count in done.values()):
        running = [id for id in done if len(steps) >= 2 * id and done[id] < DECODES]
        steps.append({id: PROMPTS[id] if done[id] < 0 else 1 for id in running})
        done.update({id: done[id] + 1 for id in running})
    return steps


def in_chunks() -> list[Step]:
    """Prompts are computed in chunks."""
    steps: list[Step] = []
    for id, prompt in enumerate(PROMPTS):
        steps += [{id: min(6, prompt - begin)} for begin in range(0, prompt, 6)]
        steps += [{id: 1}] * DECODES
    return steps


def again() -> list[Step]:
    """Generated tokens are computed with the prompt, as after a restart."""
    return [{id: prompt + DECODES} for id, prompt in enumerate(PROMPTS)]


def differing(given: Logits, expected: Logits) -> int:
    """Number of rows that are not bitwise equal."""
    return sum(not torch.equal(row, expected[at]) for at, row in given.items())


@pytest.fixture
def sequences() -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.integers(3, models.VOCAB, prompt + DECODES).astype(np.int32) for prompt in PROMPTS]


PLANS: dict[str, tuple[Callable[[], list[Step]], bool]] = {
    "together": (together, False),
    "in chunks": (in_chunks, False),
    "again": (again, True),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3_moe", "gpt2"])
def test_paged_path_is_invariant(name: str, dtype: str, tmp_path: Path, sequences: list[np.ndarray]) -> None:
    loaded = load_model(name, tmp_path, dtype)
    promised = invariance_of(loaded.path, loaded.model, loaded.device, 1)
    assert promised == Invariance(True, True, "")
    expected = run(loaded, sequences, alone())
    for what, (plan, forgets) in PLANS.items():
        assert differing(run(loaded, sequences, plan(), forgets), expected) == 0, what


def test_layers_of_pytorch_are_not_invariant(tmp_path: Path) -> None:
    loaded = load_model("llama", tmp_path, "bfloat16", fuse=False)
    promised = invariance_of(loaded.path, loaded.model, loaded.device, 1)
    assert (loaded.path.name, promised.in_batch, promised.when_replayed) == ("paged", False, False)
    assert "is computed by PyTorch" in promised.reason


def test_reference_attention_is_not_invariant(tmp_path: Path) -> None:
    loaded = load_model("llama", tmp_path, "bfloat16", attention="reference")
    assert "attention is computed by 'reference'" in invariance_of(loaded.path, loaded.model, loaded.device, 1).reason


def test_several_ranks_are_not_invariant(tmp_path: Path) -> None:
    loaded = load_model("llama", tmp_path, "bfloat16")
    assert "ranks" in invariance_of(loaded.path, loaded.model, loaded.device, 2).reason


def test_cohorts_are_not_invariant(tmp_path: Path) -> None:
    loaded = load_model("bloom", tmp_path, "bfloat16")
    promised = invariance_of(loaded.path, loaded.model, loaded.device, 1)
    assert loaded.path.name == "batched"
    assert promised == Invariance(False, False, promised.reason)
    assert "PyTorch's operations" in promised.reason


def test_recomputing_every_token_is_invariant(tmp_path: Path, sequences: list[np.ndarray]) -> None:
    loaded = load_model("openai-gpt", tmp_path, "bfloat16")
    assert loaded.path.name == "solo"
    assert invariance_of(loaded.path, loaded.model, loaded.device, 1) == Invariance(True, True, "")
    expected = run(loaded, sequences, alone())
    for what, (plan, forgets) in PLANS.items():
        assert differing(run(loaded, sequences, plan(), forgets), expected) == 0, what


def test_a_sequence_with_its_own_cache_is_invariant_in_a_batch(tmp_path: Path, sequences: list[np.ndarray]) -> None:
    loaded = load_model("bloom", tmp_path, "bfloat16", model_impl="solo")
    assert loaded.path.name == "solo"
    promised = invariance_of(loaded.path, loaded.model, loaded.device, 1)
    assert (promised.in_batch, promised.when_replayed) == (True, False)
    assert "computed again" in promised.reason
    assert differing(run(loaded, sequences, together()), run(loaded, sequences, alone())) == 0
