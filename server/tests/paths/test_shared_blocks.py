"""Tests blocks shared by several sequences: what one computes the others use, even in the same step."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gridwork_kernels import cpu_attention
from gridwork_kernels.attention_choice import EVERYWHERE
from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.config import ShardConfig
from gridwork_server.errors import LimitError
from gridwork_server.model.loading import load
from gridwork_server.parallel.group import RankGroup
from gridwork_server.step.runner import Runner

from .. import models
from ..driver import sampling

LIMITS = pb.WarmupRequest(
    block_size_tokens=4, max_batch_tokens=64, max_sequences=8, max_total_tokens=100, prefix_cache=True
)
PROMPT = models.prompts([30])[0]


def runner_for(folder: Path, **settings: Any) -> Runner:
    config = ShardConfig(model_path=folder, socket="", dtype="float32", kv_cache_memory_bytes=2**24, **settings)
    return Runner(load(config, RankGroup()), config, RankGroup())


def admit(step: pb.Step, id: int, tokens: list[int], blocks: list[int], num_computed: int = 0) -> None:
    """Adds a sequence whose prompt is computed in this step, except for tokens that its first blocks already hold."""
    step.admitted.add(
        id=id,
        token_ids=tokens,
        num_prompt_tokens=len(tokens),
        num_computed_tokens=num_computed,
        sampling=sampling(),
    )
    step.sequence_ids.append(id)
    step.num_tokens.append(len(tokens) - num_computed)
    step.num_new_blocks.append(len(blocks))
    step.new_blocks.extend(blocks)


@pytest.mark.parametrize("attention", ["cpu", *EVERYWHERE])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "deepseek_v2"])
def test_sequences_on_shared_blocks_give_the_same_tokens(name: str, attention: str, tmp_path: Path) -> None:
    folder = models.save(name, tmp_path / name)
    if attention == "cpu" and not cpu_attention.supports(torch.float32):
        pytest.skip("no compiled kernels for this CPU")
    runner = runner_for(folder, attention=attention)
    runner.warm_up(LIMITS)
    runner.reset()
    other = PROMPT[:20] + models.prompts([7])[0]
    step = pb.Step(id=1)
    # The second sequence begins with five blocks of the first; the third with five of the first and one of the second.
    # All of these blocks are filled in this very step.
    admit(step, 0, PROMPT, [9, 1, 8, 2, 7, 3, 6, 4])
    admit(step, 1, other, [9, 1, 8, 2, 7, 20, 21], num_computed=20)
    admit(step, 2, other, [9, 1, 8, 2, 7, 20, 22], num_computed=24)
    got: list[list[int]] = [[], [], []]
    for number in range(2, 10):
        result = runner.run(step)
        for id, token in zip(result.sequence_ids, result.token_ids, strict=True):
            got[id].append(token)
        step = pb.Step(id=number, sequence_ids=[0, 1, 2], num_tokens=[1, 1, 1])
        lengths = [len(PROMPT), len(other), len(other)]
        full = [(length + len(tokens) - 1) % 4 == 0 for length, tokens in zip(lengths, got, strict=True)]
        step.num_new_blocks.extend(int(wants) for wants in full)
        step.new_blocks.extend(30 + 3 * number + id for id in range(3) if full[id])
    plain = models.plain(folder)
    assert got[0] == models.greedy(plain, PROMPT, 8)
    assert got[1] == got[2] == models.greedy(plain, other, 8)
    # Blocks that all owners have released still hold what was computed into them.
    again = pb.Step(id=10, released=[0, 1, 2])
    admit(again, 5, PROMPT, [9, 1, 8, 2, 7, 3, 6, 60], num_computed=28)
    assert list(runner.run(again).token_ids) == got[0][:1]


def test_with_a_prefix_cache_all_layers_keep_the_whole_context(tmp_path: Path) -> None:
    runner = runner_for(models.save("gemma3", tmp_path / "gemma3"))
    sizes = {}
    for prefix_cache in (True, False):
        limits = pb.WarmupRequest()
        limits.CopyFrom(LIMITS)
        limits.prefix_cache, limits.max_total_tokens = prefix_cache, 8_000
        sizes[prefix_cache] = runner.warm_up(limits).num_blocks
        assert (runner.path._window_blocks is None) == prefix_cache  # type: ignore[attr-defined]
    needs = runner.path.needs
    assert sizes[True] == 2**24 // (needs.bytes_per_token * LIMITS.block_size_tokens)
    assert sizes[True] < sizes[False]


def test_prefix_cache_is_refused_by_paths_without_shared_blocks(tmp_path: Path) -> None:
    runner = runner_for(models.save("llama", tmp_path / "llama"), model_impl="batched")
    assert not runner.path.shares_blocks
    with pytest.raises(LimitError, match="cannot share"):
        runner.warm_up(LIMITS)
