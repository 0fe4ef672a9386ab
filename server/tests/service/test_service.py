"""Real shard processes over gRPC: their answers, refusals and ends."""

import json
import os
import resource
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from safetensors.torch import load_file, save_file

from gridwork_server._proto import shard_pb2 as pb

from .. import models
from ..driver import Driver, sampling
from ..shard_process import ShardProcess, Stream, shards

LIMITS = pb.WarmupRequest(block_size_tokens=4, max_batch_tokens=4096, max_sequences=8, max_total_tokens=400)
PROMPTS = models.prompts([9, 3])
COUNT = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = models.save("llama", tmp_path_factory.mktemp("models") / "llama")
    # A surplus tensor, which causes a warning.
    tensors = load_file(folder / "model.safetensors") | {"model.surplus": torch.zeros(2)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def shard(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShardProcess]:
    """A shard that is not warmed up when the first test uses it. It has the slow attention, for a long prefill."""
    folder_of_socket = tmp_path_factory.mktemp("socket")
    with shards(folder, folder_of_socket, dtype="float32", attention="reference") as (shard,):
        yield shard.wait_ready()


def generate(stream: Stream, num_blocks: int) -> list[list[int]]:
    """Generates continuations of PROMPTS."""
    driver = Driver(stream.run, num_blocks)
    names = [driver.add(prompt, COUNT) for prompt in PROMPTS]
    results = driver.finish()
    return [results[name] for name in names]


def prefill(id: int, num_tokens: int, first_block: int) -> pb.Step:
    """Makes a first step that admits a sequence and computes its whole prompt."""
    blocks = range(first_block, first_block + num_tokens // 4 + 1)
    step = pb.Step(
        id=1, sequence_ids=[id], num_tokens=[num_tokens], num_new_blocks=[len(blocks)], new_blocks=list(blocks)
    )
    step.admitted.add(id=id, token_ids=[5] * num_tokens, num_prompt_tokens=num_tokens, sampling=sampling())
    return step


def refusal(call: Any, *arguments: Any) -> grpc.RpcError:
    """Error that a call ends with."""
    with pytest.raises(grpc.RpcError) as error:
        call(*arguments, timeout=30)
    return error.value


def test_run_is_refused_before_warmup(shard: ShardProcess) -> None:
    with pytest.raises(grpc.RpcError) as error:
        Stream(shard).receive()
    assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "Warmup" in error.value.details()


def test_info_describes_the_model(shard: ShardProcess, folder: Path) -> None:
    info = shard.stub.Info(pb.InfoRequest(), timeout=30)
    assert info.protocol_version == pb.PROTOCOL_VERSION
    assert (info.model_type, info.model_impl, info.dtype, info.device) == ("llama", "paged", "float32", "cpu")
    assert (info.vocab_size, info.max_context_tokens, list(info.eos_token_ids)) == (models.VOCAB, 512, [2])
    assert info.num_parameters == sum(parameter.numel() for parameter in models.plain(folder).parameters())
    assert info.weight_bytes == info.num_parameters * 4
    assert info.draft_step_tokens == 16
    assert (info.batch_invariant, info.replay_invariant) == (False, False)
    assert "attention is computed by 'reference'" in info.invariance_reason


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_total_tokens": 10**6}, ["--kv-cache-memory", "--max-total-tokens"]),
        ({"block_size_tokens": 10**6, "max_total_tokens": 0}, ["--kv-cache-memory", "one block of 1000000 tokens"]),
        ({"max_sequences": 0}, ["at least 1"]),
    ],
)
def test_limits_that_cannot_be_met_are_refused_and_leave_no_cache(
    limits: dict[str, int], words: list[str], shard: ShardProcess
) -> None:
    shard.stub.Warmup(LIMITS, timeout=30)
    request = pb.WarmupRequest()
    request.CopyFrom(LIMITS)
    for name, value in limits.items():
        setattr(request, name, value)
    error = refusal(shard.stub.Warmup, request)
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    for word in words:
        assert word in error.details()
    with pytest.raises(grpc.RpcError) as refused:
        Stream(shard).receive()
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_the_cache_is_as_large_as_the_limits_can_use(shard: ShardProcess) -> None:
    size = shard.stub.Warmup(LIMITS, timeout=30)
    # Keys and values, 3 layers, 2 heads of 16, 4 bytes.
    assert size.bytes_per_token == 2 * 3 * 2 * 16 * 4
    assert size.kv_cache_bytes == size.num_blocks * 4 * size.bytes_per_token
    assert 8 * 100 <= size.num_blocks <= 8 * 101


def test_a_stream_starts_from_empty_after_a_cancelled_one(shard: ShardProcess, folder: Path) -> None:
    num_blocks = shard.stub.Warmup(LIMITS, timeout=30).num_blocks
    model = models.plain(folder)
    expected = [models.greedy(model, prompt, COUNT) for prompt in PROMPTS]
    for _ in range(10):
        cancelled = Stream(shard)
        cancelled.run(prefill(7, 40, 0))
        cancelled.cancel()
        # Blocks and ids of the cancelled stream are free, and its sequences are unknown.
        stream = Stream(shard)
        assert generate(stream, num_blocks) == expected
        assert stream.close() == []
    second = Stream(shard)
    assert generate(second, num_blocks) == expected
    second.close()


def test_a_second_stream_ends_the_first(shard: ShardProcess, folder: Path) -> None:
    num_blocks = shard.stub.Warmup(LIMITS, timeout=30).num_blocks
    first = Stream(shard)
    first.run(prefill(0, 8, 0))
    second = Stream(shard)
    model = models.plain(folder)
    assert generate(second, num_blocks) == [models.greedy(model, prompt, COUNT) for prompt in PROMPTS]
    first.send(pb.Step(id=2, sequence_ids=[0], num_tokens=[1], num_new_blocks=[0]))
    with pytest.raises(StopIteration):
        first.receive()
    second.close()


def test_steps_sent_ahead_are_answered_in_order(shard: ShardProcess, folder: Path) -> None:
    shard.stub.Warmup(LIMITS, timeout=30)
    stream = Stream(shard)
    stream.send(prefill(3, 8, 10))
    for id in range(2, 10):
        new = [20 + id] if id % 4 == 2 else []
        stream.send(pb.Step(id=id, sequence_ids=[3], num_tokens=[1], num_new_blocks=[len(new)], new_blocks=new))
    results = stream.close()
    assert [result.step_id for result in results] == list(range(1, 10))
    expected = models.greedy(models.plain(folder), [5] * 8, 9)
    assert [token for result in results for token in result.token_ids] == expected


def test_health_answers_during_a_long_prefill(shard: ShardProcess) -> None:
    tokens = 3000
    limits = pb.WarmupRequest(
        block_size_tokens=4, max_batch_tokens=tokens, max_sequences=1, max_total_tokens=tokens + 10
    )
    shard.stub.Warmup(limits, timeout=60)
    stream = Stream(shard)
    stream.send(prefill(0, tokens, 0))
    waits = []
    while not stream.arrived():
        started = time.monotonic()
        assert shard.stub.Health(pb.HealthRequest(), timeout=5).state == pb.HealthResponse.STATE_READY
        waits.append(time.monotonic() - started)
        time.sleep(0.01)
    result = stream.receive()
    stream.close()
    assert len(result.token_ids) == 1
    assert result.forward_us > 400_000, "not long enough to tell"
    assert max(waits) < result.forward_us / 1e6 / 2


def test_while_loading_health_answers_warmup_is_unavailable_and_sigterm_ends_it(folder: Path, tmp_path: Path) -> None:
    with shards(folder, tmp_path) as (shard,):
        health = shard.stub.Health(pb.HealthRequest(), timeout=20, wait_for_ready=True)
        assert health.state == pb.HealthResponse.STATE_LOADING
        assert health.message
        error = refusal(shard.stub.Warmup, LIMITS)
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert error.details()
        shard.process.send_signal(signal.SIGTERM)
        assert shard.wait_end(20) == 0
        assert shard.lines == []


def test_only_its_user_can_open_the_socket_whatever_the_umask(folder: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with shards(folder, tmp_path) as (shard,):
            shard.stub.Health(pb.HealthRequest(), timeout=20, wait_for_ready=True)
            sockets = [path for path in tmp_path.rglob("*") if path.is_socket()]
            assert [stat.S_IMODE(path.stat().st_mode) for path in sockets] == [0o600]
    finally:
        os.umask(before)


def test_info_while_loading_is_unavailable_and_does_no_harm(folder: Path, tmp_path: Path) -> None:
    with shards(folder, tmp_path) as (shard,):
        shard.stub.Health(pb.HealthRequest(), timeout=20, wait_for_ready=True)
        assert refusal(shard.stub.Info, pb.InfoRequest()).code() == grpc.StatusCode.UNAVAILABLE
        shard.wait_ready()


def test_ranks_other_than_0_take_no_steps_and_sigterm_ends_a_group(folder: Path, tmp_path: Path) -> None:
    with shards(folder, tmp_path, 2, dtype="float32") as (leader, other):
        leader.wait_ready()
        other.wait_ready()
        assert other.stub.Health(pb.HealthRequest(), timeout=10).rank == 1
        for call, request in ((other.stub.Info, pb.InfoRequest()), (other.stub.Warmup, LIMITS)):
            error = refusal(call, request)
            assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
            assert "rank 0" in error.details()
        with pytest.raises(grpc.RpcError) as refused:
            Stream(other).receive()
        assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        num_blocks = leader.stub.Warmup(LIMITS, timeout=30).num_blocks
        model = models.plain(folder)
        stream = Stream(leader)
        assert generate(stream, num_blocks) == [models.greedy(model, prompt, COUNT) for prompt in PROMPTS]
        stream.close()
        leader.process.send_signal(signal.SIGTERM)
        assert leader.wait_end(20) == 0
        assert leader.fatal() == ""


def test_a_folder_without_a_model_ends_the_process_at_once_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with shards(tmp_path, tmp_path) as (shard,):
        assert shard.wait_end() == 1
        assert "config.json is not valid JSON" in shard.fatal()
        # Importing PyTorch takes longer than that by itself.
        assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1


def test_every_log_line_is_json_and_warnings_are_among_them(shard: ShardProcess) -> None:
    shard.stub.Warmup(LIMITS, timeout=30)
    records = [json.loads(line) for line in shard.lines]
    assert any(record["level"] == "INFO" and "LlamaForCausalLM" in record["message"] for record in records)
    assert any(record["level"] == "WARN" and "model.surplus" in record["message"] for record in records)
