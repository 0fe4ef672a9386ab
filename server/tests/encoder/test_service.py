"""Real shard processes that serve encoders, over gRPC."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch
import transformers

from gridwork_server._proto import shard_pb2 as pb

from ..shard_process import ShardProcess, shards
from . import models

SEQUENCES = models.sequences([7, 2])
FLAT = [token for sequence in SEQUENCES for token in sequence]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    models.build("roberta", transformers.AutoModelForMaskedLM).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def shard(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShardProcess]:
    with shards(folder, tmp_path_factory.mktemp("socket")) as (shard,):
        yield shard.wait_ready()


def refusal(shard: ShardProcess, **request: object) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        shard.stub.Encode(pb.EncodeRequest(**request), timeout=30)
    return caught.value


def test_info_reports_the_task(shard: ShardProcess) -> None:
    info = shard.stub.Info(pb.InfoRequest())
    assert (info.task, info.model_impl, info.model_impl_reason) == (pb.TASK_FILL_MASK, "flat", "")
    assert (info.vocab_size, info.max_input_tokens) == (models.VOCAB, 128)


def test_tokens_and_sparse_vectors_are_those_of_the_model(shard: ShardProcess) -> None:
    model = models.build("roberta", transformers.AutoModelForMaskedLM)
    with torch.inference_mode():
        logits = [model(input_ids=torch.tensor([ids])).logits[0] for ids in SEQUENCES]
    request = pb.EncodeRequest(
        token_ids=FLAT, lengths=[7, 2], output=pb.EncodeRequest.OUTPUT_TOKENS, positions=[3, 6, 8], top_n=4
    )
    first, second = shard.stub.Encode(request).encodings
    for row, logit in enumerate([logits[0][3], logits[0][6]]):
        top = logit.topk(4)
        assert list(first.token_ids[4 * row : 4 * row + 4]) == top.indices.tolist()
        assert list(first.values[4 * row : 4 * row + 4]) == pytest.approx(top.values.tolist(), abs=1e-4)
        assert first.log_normalizers[row] == pytest.approx(float(logit.logsumexp(0)), abs=1e-4)
    assert list(second.token_ids) == logits[1][1].topk(4).indices.tolist()
    sparse = pb.EncodeRequest(token_ids=FLAT, lengths=[7, 2], output=pb.EncodeRequest.OUTPUT_SPARSE)
    for got, logit in zip(shard.stub.Encode(sparse).encodings, logits, strict=True):
        weights = logit.relu().log1p().amax(0)
        assert list(got.values) == pytest.approx(weights[list(got.token_ids)].tolist(), abs=1e-4)
        assert len(got.values) == int((weights > 0).sum())


def test_a_batch_that_violates_the_contract_is_refused(shard: ShardProcess) -> None:
    tokens = pb.EncodeRequest.OUTPUT_TOKENS
    good = {"token_ids": FLAT, "lengths": [7, 2], "output": tokens, "positions": [1], "top_n": 1}
    for change, words in [
        ({"lengths": [7, 3]}, "do not make up"),
        ({"lengths": []}, "do not make up"),
        ({"lengths": [9, 0]}, "do not make up"),
        ({"token_type_ids": [0]}, "token types"),
        ({"positions": [9]}, "positions"),
        ({"positions": [2, 1]}, "positions"),
        ({"top_n": 0}, "top_n"),
        ({"output": pb.EncodeRequest.OUTPUT_VECTOR}, "fill-mask"),
        ({"token_ids": [5] * 129, "lengths": [129]}, "positions for 128"),
    ]:
        error = refusal(shard, **(good | change))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, change
        assert words in error.details(), change
    assert len(shard.stub.Encode(pb.EncodeRequest(**good)).encodings) == 2


def test_a_token_outside_the_vocabulary_fails_its_sequence_alone(shard: ShardProcess) -> None:
    request = {"lengths": [7, 2], "output": pb.EncodeRequest.OUTPUT_TOKENS, "positions": [1, 7], "top_n": 3}
    expected = shard.stub.Encode(pb.EncodeRequest(token_ids=FLAT, **request)).encodings
    tokens = [*FLAT[:8], models.VOCAB]
    good, bad = shard.stub.Encode(pb.EncodeRequest(token_ids=tokens, **request)).encodings
    assert good.error == "" and list(good.token_ids) == list(expected[0].token_ids)
    assert f"token {models.VOCAB} is not in the vocabulary of {models.VOCAB} tokens" in bad.error
    assert not bad.values


def test_an_encoder_takes_no_steps(shard: ShardProcess) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        shard.stub.Warmup(pb.WarmupRequest(block_size_tokens=16, max_batch_tokens=16, max_sequences=1))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "Encode" in caught.value.details()


def test_settings_that_are_not_compatible_with_an_encoder_are_refused(folder: Path, tmp_path: Path) -> None:
    for settings, words in [
        ({"task": "rerank"}, "use --task embed or --task fill-mask"),
        ({"attention": "cpu"}, "auto, sdpa or reference"),
    ]:
        with shards(folder, tmp_path, **settings) as (shard,):
            assert shard.wait_end() == 1
            assert words in shard.fatal()
