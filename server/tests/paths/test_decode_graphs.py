"""Compares decode steps that are replayed in fixed buffers, padded to a size, with plain steps of the same model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gridwork_kernels import cpu_attention
from gridwork_kernels.paged_attention import SPARE_BLOCKS
from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.config import ShardConfig
from gridwork_server.model import loading
from gridwork_server.model.loading import load
from gridwork_server.parallel.group import RankGroup
from gridwork_server.paths import decode_graphs
from gridwork_server.paths.decode_graphs import sizes_for
from gridwork_server.paths.memory import gpu_budget_bytes
from gridwork_server.paths.paged import PagedPath
from gridwork_server.paths.sequence_table import StepBatch
from gridwork_server.step import memory_profile
from gridwork_server.step.runner import Runner

from .. import models
from ..driver import Driver, sampling

SIZES = (1, 2, 4, 8)
LIMITS = pb.WarmupRequest(block_size_tokens=4, max_batch_tokens=64, max_sequences=8, max_total_tokens=60)
PROMPTS = models.prompts([23, 1, 12, 5, 9, 2, 17, 4])
COUNT = 9

Make = Callable[..., Runner]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a function from an architecture's name and settings to a warmed-up runner. sizes: sizes of replayed decode
    steps; a CPU replays steps only in these tests."""

    def make_runner(
        name: str, sizes: tuple[int, ...] = SIZES, limits: pb.WarmupRequest = LIMITS, **settings: Any
    ) -> Runner:
        monkeypatch.setattr(loading, "_decode_sizes", lambda config, device: sizes)
        folder = tmp_path / name
        if not folder.exists():
            models.save(name, folder)
        shape: dict[str, Any] = {"dtype": "float32", "kv_cache_memory_bytes": 2**23}
        config = ShardConfig(**({"model_path": folder, "socket": ""} | shape | settings))
        runner = Runner(load(config, RankGroup()), config, RankGroup())
        runner.num_blocks = runner.warm_up(limits).num_blocks  # type: ignore[attr-defined]
        runner.reset()
        return runner

    return make_runner


def paged(runner: Runner) -> PagedPath:
    assert isinstance(runner.path, PagedPath)
    return runner.path


def watch(runner: Runner) -> list[torch.Tensor]:
    """Collects the logits of every step from now on."""
    seen: list[torch.Tensor] = []
    forward = runner.path.forward

    def watched(*arguments: Any) -> tuple[torch.Tensor, np.ndarray]:
        logits, kept = forward(*arguments)
        seen.append(logits.clone())
        return logits, kept

    runner.path.forward = watched  # type: ignore[method-assign]
    return seen


def join_and_leave(runner: Runner) -> tuple[list[torch.Tensor], dict[int, list[int]]]:
    """Sequences join one by one up to the limit of a step, and leave one by one."""
    seen = watch(runner)
    driver = Driver(runner.run, runner.num_blocks, chunk=7)  # type: ignore[attr-defined]
    for i, prompt in enumerate(PROMPTS):
        driver.add(prompt, COUNT + i, sampling() if i % 2 else sampling(seed=i, temperature=1.2, top_k=20))
        for _ in range(4):
            driver.step()
    results = driver.finish()
    runner.path.reset()
    return seen, results


@pytest.mark.parametrize("attention", ["cpu", "sdpa"])
@pytest.mark.parametrize("prefix_cache", [False, True], ids=["windows", "whole contexts"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt2"])
def test_replayed_steps_equal_plain_steps(name: str, prefix_cache: bool, attention: str, make: Make) -> None:
    if attention == "cpu" and not cpu_attention.supports(torch.float32):
        pytest.skip("no compiled kernels for this CPU")
    limits = pb.WarmupRequest()
    limits.CopyFrom(LIMITS)
    limits.prefix_cache = prefix_cache
    plain, replayed = (make(name, sizes, limits, attention=attention) for sizes in ((), SIZES))
    assert paged(plain).decode_sizes == []
    assert paged(replayed).decode_sizes == list(SIZES)
    (expected, tokens), (given, replayed_tokens) = join_and_leave(plain), join_and_leave(replayed)
    assert replayed_tokens == tokens
    # Our linear layers compute each row by itself; PyTorch's may add in another order for another number of rows.
    exact = attention == "cpu" and name != "gpt2"
    for one, other in zip(expected, given, strict=True):
        torch.testing.assert_close(other, one, **({"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-4}))


def test_steps_are_padded_to_the_next_size(make: Make) -> None:
    runner = make("llama", (1, 2, 4, 6))
    decodes = paged(runner)._decodes
    assert decodes is not None
    ran: list[int] = []
    for size, step in decodes._steps.items():
        replay = step.replay
        step.replay = lambda replay=replay, size=size: ran.append(size) or replay()  # type: ignore[misc]
    driver = Driver(runner.run, runner.num_blocks)  # type: ignore[attr-defined]
    # A step with more sequences than the largest size runs like any other step.
    for prompt, expected in zip(PROMPTS, ([1], [2], [4], [4], [6], [6], [], []), strict=True):
        driver.add([*prompt, 3], 20)
        ran.clear()
        driver.step()  # prefills are not replayed
        assert ran == []
        driver.step()
        assert ran == expected


def test_padding_changes_neither_sequences_nor_the_zero_block(make: Make) -> None:
    runner = make("llama", (8,), attention="sdpa")
    path = paged(runner)
    size = LIMITS.block_size_tokens
    driver = Driver(runner.run, runner.num_blocks)  # type: ignore[attr-defined]
    names = [driver.add(prompt, COUNT) for prompt in PROMPTS[:3]]
    driver.step()
    used = {block for sequence in driver.running for block in sequence.blocks}
    others = [block for block in range(runner.num_blocks) if block not in used]  # type: ignore[attr-defined]
    for cache in (*path._keys.values(), *path._values.values()):
        blocks = cache.unflatten(0, (-1, size))
        blocks[-1] = torch.nan  # padding may leave such values there
        blocks[others] = 7.0
    driver.step()
    for cache in (*path._keys.values(), *path._values.values()):
        blocks = cache.unflatten(0, (-1, size))
        assert not blocks[-SPARE_BLOCKS].any(), "the block that stays zero"
        taken = {block for sequence in driver.running for block in sequence.blocks} - used
        assert all(bool((blocks[block] == 7).all()) for block in others if block not in taken)
    results = driver.finish()
    plain = make("llama", (), attention="sdpa")
    other = Driver(plain.run, plain.num_blocks)  # type: ignore[attr-defined]
    expected = [other.add(prompt, COUNT) for prompt in PROMPTS[:3]]
    tokens = other.finish()
    assert [results[name] for name in names] == [tokens[name] for name in expected]


WAITS = {f"aten::{name}" for name in ("item", "is_nonzero", "_local_scalar_dense", "nonzero", "masked_select", "equal")}


class Waits(TorchDispatchMode):
    """Records operations that make the host wait for a GPU, or that depend on values the host does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func.name()
        masks = [index for index in args[1] if index is not None] if name == "aten::index.Tensor" else []
        if name in WAITS or any(mask.dtype in (torch.bool, torch.uint8) for mask in masks):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mistral"])
def test_a_replayed_step_waits_for_nothing(name: str, make: Make) -> None:
    # Runs the model's own code, with attention that any device can run.
    runner = make(name, attention="sdpa", fuse=False)
    driver = Driver(runner.run, runner.num_blocks)  # type: ignore[attr-defined]
    for prompt in PROMPTS[:3]:
        driver.add(prompt, COUNT)
    driver.step()
    table, path = runner.table, paged(runner)
    ids = np.array([sequence.id for sequence in driver.running])
    batch = table.batch(ids, np.ones_like(ids))
    assert path.replays(len(ids), len(ids))
    # The sequences' blocks have room for one more token.
    table.append_blocks(ids, np.ones_like(ids), np.arange(len(ids)) + 100)
    with Waits() as waits, torch.inference_mode():
        path.decode(batch, table)
        assert waits.found == []
        torch.ones(3)[torch.ones(3) > 0].sum().item()
    assert waits.found == ["aten::index.Tensor", "aten::item"], "what waits is noticed"


class Stale:
    """Replays the logits from recording, as a graph does for values that a model computes on the host."""

    def record(self, step: decode_graphs.Replay) -> decode_graphs.Replay:
        logits = step()
        return lambda: logits


class Impossible:
    def record(self, step: decode_graphs.Replay) -> decode_graphs.Replay:
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize(("recorder", "reason"), [(Stale(), "logits differ"), (Impossible(), "not permitted")])
def test_a_model_that_cannot_be_recorded_runs_without_graphs(
    recorder: Any, reason: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_graphs, "recorder_for", lambda device: recorder)
    runner = make("llama")
    assert paged(runner).decode_sizes == []
    assert any("decodes without graphs" in note and reason in note for note in runner.loaded.notes)
    monkeypatch.undo()
    _, tokens = join_and_leave(runner)
    assert tokens == join_and_leave(make("llama", ()))[1]


@pytest.mark.parametrize("limits", [(64, 60, 8), (64, 20, 8), (7, 60, 2), (64, 0, 8), (500, 60, 3)], ids=str)
def test_the_largest_steps_stay_within_the_limits(limits: tuple[int, int, int], make: Make) -> None:
    batch, total, sequences = limits
    request = pb.WarmupRequest(
        block_size_tokens=4, max_batch_tokens=batch, max_total_tokens=total, max_sequences=sequences
    )
    runner = make("llama", limits=request)
    sizes: list[tuple[int, int]] = []
    forward = runner.path.forward

    def watched(step: StepBatch, *rest: Any) -> tuple[torch.Tensor, np.ndarray]:
        logits, kept = forward(step, *rest)
        sizes.append((len(step.positions), len(logits)))
        return logits, kept

    runner.path.forward = watched  # type: ignore[method-assign]
    memory_profile.largest_steps(paged(runner), request, models.VOCAB, torch.device("cpu"))
    ((num_tokens, num_rows),) = sizes
    assert num_tokens == min(batch, sequences * (total or batch))
    assert sequences <= num_rows <= 2 * sequences
    assert memory_profile.step_bytes(runner.path, request, models.VOCAB, torch.device("cpu")) == 0, (
        "a CPU's memory is paged"
    )
    longest = min(batch, total or batch)
    num_blocks = min(sequences, -(-batch // longest)) * -(-longest // 4)
    assert paged(runner).cache_bytes == runner.path.needs.bytes_per_token * (num_blocks + SPARE_BLOCKS) * 4


def test_gpu_budget_leaves_memory_for_steps() -> None:
    gib = 2**30
    assert gpu_budget_bytes(100 * gib, 100 * gib, 1.0, 0) == 95 * gib
    assert gpu_budget_bytes(70 * gib, 100 * gib, 1.0, 5 * gib) == 60 * gib
    assert gpu_budget_bytes(70 * gib, 100 * gib, 0.2, 5 * gib) == 0


def test_sizes_cover_the_maximum_number_of_sequences() -> None:
    assert sizes_for(decode_graphs.DEFAULT_SIZES, 1) == [1]
    assert sizes_for(decode_graphs.DEFAULT_SIZES, 9) == [1, 2, 4, 8, 16]
    assert sizes_for(decode_graphs.DEFAULT_SIZES, 1000) == list(decode_graphs.DEFAULT_SIZES)
    assert sizes_for([], 9) == []
