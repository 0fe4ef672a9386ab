"""A sequence that makes the model raise fails alone in its batch."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.config import ShardConfig
from gridwork_server.encoder.loading import load
from gridwork_server.encoder.runner import EncoderRunner
from gridwork_server.model import folder as model_folder
from gridwork_server.model.task import Task

from . import models


@pytest.mark.parametrize("error", [RuntimeError("no memory"), MemoryError(), KeyError("x"), AssertionError("odd")])
def test_a_sequence_that_makes_the_model_raise_fails_alone(error: Exception, tmp_path: Path) -> None:
    models.build("bert").save_pretrained(tmp_path)
    config = ShardConfig(model_path=tmp_path, socket="", dtype="float32")
    runner = EncoderRunner(load(config, model_folder.check(config), Task.EMBED))
    request = pb.EncodeRequest(token_ids=[5, 6, 7, 8, 9], lengths=[2, 1, 2], output=pb.EncodeRequest.OUTPUT_VECTOR)
    expected = [list(encoding.values) for encoding in runner.encode(request).encodings]
    embedding: Any = runner.loaded.model.get_input_embeddings()
    plain = embedding.forward

    def trap(token_ids: torch.Tensor) -> torch.Tensor:
        if (token_ids == 7).any():
            raise error
        return plain(token_ids)

    embedding.forward = trap
    first, bad, last = runner.encode(request).encodings
    assert list(first.values) == pytest.approx(expected[0], abs=1e-5) and first.error == ""
    assert list(last.values) == pytest.approx(expected[2], abs=1e-5) and last.error == ""
    assert type(error).__name__ in bad.error and not bad.values
