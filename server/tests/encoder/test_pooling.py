"""Vectors are pooled as the files of sentence-transformers describe."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gridwork_server.encoder import pooling
from gridwork_server.encoder.batch import SequenceBatch
from gridwork_server.errors import ModelError

CPU = torch.device("cpu")
BATCH = SequenceBatch.of([[1, 2, 3], [4]])
HIDDEN = torch.tensor([[1.0, -4.0], [2.0, 0.0], [6.0, 1.0], [-3.0, 5.0]])


def folder(path: Path, pooling_config: dict[str, Any], *further: str) -> Path:
    modules = ["Transformer", "Pooling", *further]
    (path / "modules.json").write_text(
        json.dumps(
            [
                {
                    "idx": i,
                    "name": str(i),
                    "path": f"{i}_{kind}" if i else "",
                    "type": f"sentence_transformers.models.{kind}",
                }
                for i, kind in enumerate(modules)
            ]
        )
    )
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling_config))
    return path


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("pooling_mode_cls_token", [1.0, -4.0]),
        ("pooling_mode_lasttoken", [6.0, 1.0]),
        ("pooling_mode_max_tokens", [6.0, 1.0]),
        ("pooling_mode_mean_tokens", [3.0, -1.0]),
        ("pooling_mode_mean_sqrt_len_tokens", [9 / 3**0.5, -3 / 3**0.5]),
        ("pooling_mode_weightedmean_tokens", [(1 + 4 + 18) / 6, (-4 + 3) / 6]),
    ],
)
def test_each_pooling_mode(tmp_path: Path, flag: str, expected: list[float]) -> None:
    found = pooling.read(folder(tmp_path, {"pooling_mode_mean_tokens": False, flag: True}), False, CPU)
    vectors = found.pool(HIDDEN, BATCH)
    torch.testing.assert_close(vectors[0], torch.tensor(expected))
    torch.testing.assert_close(vectors[1], HIDDEN[3])
    assert not found.normalizes


def test_vectors_of_several_modes_are_concatenated(tmp_path: Path) -> None:
    path = folder(tmp_path, {"pooling_mode": ["cls", "mean"]}, "Normalize")
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 77}')
    found = pooling.read(path, False, CPU)
    assert found.pool(HIDDEN, BATCH)[0].tolist() == [1.0, -4.0, 3.0, -1.0]
    assert found.normalizes
    assert found.max_input_tokens == 77


def test_a_dense_layer_is_applied(tmp_path: Path) -> None:
    path = folder(tmp_path, {"pooling_mode": "cls"}, "Dense")
    (path / "2_Dense").mkdir()
    config = {
        "in_features": 2,
        "out_features": 1,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    (path / "2_Dense" / "config.json").write_text(json.dumps(config))
    weights = {"linear.weight": torch.tensor([[0.5, 0.25]]), "linear.bias": torch.tensor([0.1])}
    save_file(weights, path / "2_Dense" / "model.safetensors")
    vectors = pooling.read(path, False, CPU).pool(HIDDEN, BATCH)
    torch.testing.assert_close(vectors[0], torch.tanh(torch.tensor([0.5 - 1.0 + 0.1])))


def test_without_files_causal_models_pool_the_last_token_and_others_the_mean(tmp_path: Path) -> None:
    mean, last = (pooling.read(tmp_path, is_causal, CPU) for is_causal in (False, True))
    assert (mean.modes, last.modes) == (("mean",), ("lasttoken",))
    assert mean.normalizes and last.normalizes


def test_unknown_modules_and_modes_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="LSTM"):
        pooling.read(folder(tmp_path, {"pooling_mode": "cls"}, "LSTM"), False, CPU)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "attention"}')
    (tmp_path / "modules.json").unlink()
    with pytest.raises(ModelError, match="attention"):
        pooling.read(tmp_path, False, CPU)
