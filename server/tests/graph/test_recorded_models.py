"""Recorded operations against models' own code."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gridwork_kernels import cpu_attention
from gridwork_kernels.packed_linear import PackedLinear, pack_linears
from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.config import ShardConfig
from gridwork_server.graph import record as recording
from gridwork_server.graph.fuse import fuse
from gridwork_server.graph.record import RecordError, record
from gridwork_server.model.loading import load
from gridwork_server.parallel.group import RankGroup
from gridwork_server.paths import self_check
from gridwork_server.paths.paged import PagedPath
from gridwork_server.paths.sequence_table import SequenceTable

from .. import models

pytestmark = pytest.mark.skipif(not cpu_attention.supports(torch.float32), reason="no compiled kernels for this CPU")

LIMITS = pb.WarmupRequest(block_size_tokens=16, max_batch_tokens=512, max_sequences=4, max_total_tokens=600)


def loaded(folder: Path, dtype: str = "float32", **settings: Any) -> PagedPath:
    config = ShardConfig(model_path=folder, socket="", dtype=dtype, **settings)
    path = load(config, RankGroup()).path
    assert isinstance(path, PagedPath)
    return path


def admitted(path: PagedPath, lengths: list[int]) -> tuple[SequenceTable, np.ndarray]:
    """Table with sequences with prompts of these lengths, and the sequences' ids. Allocates the caches."""
    path.allocate(LIMITS, 64)
    table = SequenceTable(4, 600, 16, 64)
    ids = np.arange(len(lengths))
    for id, prompt in enumerate(models.prompts(lengths)):
        table.admit(pb.NewSequence(id=id, token_ids=[*prompt, 7], num_prompt_tokens=len(prompt)))
    table.append_blocks(ids, np.full(len(lengths), 16), np.arange(16 * len(lengths)))
    return table, ids


def all_logits(path: PagedPath, lengths: list[int]) -> torch.Tensor:
    """Logits of every token of a step with prompts of these lengths, then of a decode of each sequence."""
    table, ids = admitted(path, lengths)
    results = []
    for counts in (np.array(lengths), np.ones(len(lengths), dtype=np.int64)):
        batch = table.batch(ids, counts)
        with torch.inference_mode():
            logits, _ = path.forward(batch, table, np.arange(int(counts.sum())))
        results.append(logits.float())
        table.computed(batch)
    return torch.cat(results)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_recorded_operations_equal_the_models_code(name: str, dtype: str, tmp_path: Path) -> None:
    path = loaded(models.save(name, tmp_path), dtype)
    assert path.is_recorded, path.notes
    given = {lengths: all_logits(path, list(lengths)) for lengths in ((1,), (40, 3, 1), (200, 90))}
    path.give_up_shortcut("to compare")
    for lengths, recorded in given.items():
        own = all_logits(path, list(lengths))
        difference = (recorded - own).square().mean(-1).sqrt() / own.std()
        assert difference.max() < (1e-4 if dtype == "float32" else 0.03), lengths


def test_models_that_depend_on_values_run_their_own_code(tmp_path: Path) -> None:
    # Its rotary frequencies depend on the longest position so far.
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    path = loaded(models.save("llama", tmp_path, rope_parameters=scaled))
    assert not path.is_recorded
    assert "own code: rotary frequencies change with every token beyond 512 tokens" in path.notes[0]


def test_without_fusion_nothing_is_recorded(tmp_path: Path) -> None:
    folder = models.save("llama", tmp_path)
    assert not loaded(folder, fuse=False).is_recorded
    assert not loaded(folder, attention="sdpa").is_recorded


def test_wrongly_recorded_operations_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: Any, replace_weight: Any) -> None:
        fuse(graph, replace_weight)
        attend = next(node for node in graph.nodes if node.name == "attend")
        attend.args = (*attend.args[:2], attend.args[1], *attend.args[3:])  # keys for values

    monkeypatch.setattr("gridwork_server.graph.recorded_model.fuse", wrong)
    path = loaded(models.save("llama", tmp_path))
    assert not path.is_recorded
    assert "differ" in path.notes[0]


def graph_of(name: str, folder: Path) -> Any:
    path = loaded(models.save(name, folder, intermediate_size=128), fuse=False)
    model: Any = path._model
    pack_linears(model)
    from gridwork_kernels.rms_norm import fuse_norms

    fuse_norms(model)
    return record(path._call_model)


def test_a_layer_has_few_operations(tmp_path: Path) -> None:
    graph = graph_of("llama", tmp_path)
    fuse(graph, lambda _old, _new: None)
    names = Counter(node.name for node in graph.nodes)
    layers = 3
    assert names["attend"] == layers
    assert names["gridwork_cpu.linear"] == 4 * layers + 1, "queries, keys and values are one layer; gate and up are one"
    assert names["gridwork_cpu.add_rms_norm"] == 2 * layers
    assert names["gridwork_cpu.gated_activation"] == layers
    assert names["aten.cat"] == 1, "cosines and sines, once for all layers"
    assert all(len(node.args) == 6 for node in graph.nodes if node.name == "attend"), "attention rotates"


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v2"])
def test_the_experts_of_a_layer_are_two_operations(name: str, tmp_path: Path) -> None:
    path = loaded(models.save(name, tmp_path))
    names: Counter[str] = Counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        all_logits(path, [3])
    names.update({event.key: event.count for event in profiler.key_averages()})
    layers, steps = 2, 2
    assert names["gridwork_cpu::experts_in"] == names["gridwork_cpu::experts_out"] == layers * steps
    assert not any("grouped_mm" in key or key == "aten::sort" for key in names)


def test_merged_weights_are_shared_with_the_modules(tmp_path: Path) -> None:
    path = loaded(models.save("llama", tmp_path, intermediate_size=128))
    packed = [module for module in path._model.modules() if isinstance(module, PackedLinear)]
    storages = {module.packed.untyped_storage().data_ptr() for module in packed}
    assert len(packed) == 3 * 7 + 1 and len(storages) == 3 * 4 + 1


def test_forward_passes_that_cannot_be_recorded_are_refused() -> None:
    def values(input_ids: torch.Tensor, *_rest: Any) -> torch.Tensor:
        return input_ids * int(input_ids.max())

    def condition(input_ids: torch.Tensor, *_rest: Any) -> torch.Tensor:
        return input_ids + 1 if input_ids.sum() > 3 else input_ids * 2

    def comparison(input_ids: torch.Tensor, positions: torch.Tensor, *_rest: Any) -> torch.Tensor:
        return input_ids + 1 if torch.equal(input_ids, positions) else input_ids * 2

    def hits(input_ids: torch.Tensor, *_rest: Any) -> torch.Tensor:
        return input_ids[input_ids > 3]

    def chance(input_ids: torch.Tensor, *_rest: Any) -> torch.Tensor:
        return torch.rand_like(input_ids.float())

    def half(input_ids: torch.Tensor, *_rest: Any) -> torch.Tensor:
        return input_ids[:, : input_ids.shape[1] // 3] + 1

    def branch(input_ids: torch.Tensor, *_rest: Any) -> torch.Tensor:
        return input_ids + 1 if input_ids.shape[1] > 100 else input_ids * 2

    def constant(input_ids: torch.Tensor, *_rest: Any) -> torch.Tensor:
        return input_ids + torch.from_numpy(np.arange(input_ids.shape[1]))

    def short_table(input_ids: torch.Tensor, *_rest: Any) -> torch.Tensor:
        return torch.zeros(30, 2)[torch.arange(input_ids.shape[1])]

    for forward in (values, condition, comparison, hits, chance, half, branch, constant, short_table):
        with pytest.raises(RecordError):
            record(forward)


def test_sizes_are_found_for_any_number_of_tokens_and_rows() -> None:
    def forward(input_ids: torch.Tensor, _positions: torch.Tensor, kept: torch.Tensor, _step: Any) -> torch.Tensor:
        return (input_ids.repeat(1, 3).view(3, -1) + 1)[:, : kept.shape[0]].reshape(3 * kept.shape[0])

    graph = record(forward)
    size = next(node for node in graph.nodes if node.name == "aten.reshape").args[1][0]
    assert size.at(100, 8) == 24
    assert graph.nodes[-1].shape == (size,)


def test_recorded_runs_are_longer_than_the_self_check() -> None:
    assert max(len(sequence) for sequence in self_check.sample_tokens(100)) < recording._FEWEST


def test_a_scaled_product_is_not_an_activation(tmp_path: Path) -> None:
    weight = torch.randn(48)

    def forward(input_ids: torch.Tensor, _positions: torch.Tensor, kept: torch.Tensor, _step: Any) -> torch.Tensor:
        x = input_ids[..., None].float().expand(-1, -1, 48) * weight
        return ((x * 0.125) * (torch.tanh(x + weight) + weight))[:, kept]

    graph = record(forward)
    before = [node.name for node in graph.nodes]
    fuse(graph, lambda _old, _new: None)
    assert [node.name for node in graph.nodes] == before
