"""Tests each key of config.json and of sentence-transformers' files against the table."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, PretrainedConfig

from gridwork_server.encoder import label_score, pooling
from gridwork_server.encoder.batch import SequenceBatch
from gridwork_server.encoder.label_score import LabelScore
from gridwork_server.encoder.loading import _tokenizer_limit
from gridwork_server.errors import ModelError
from gridwork_server.model.task import Task

from .keys import CONFIG, DENSE, MODULES, POOLING, Read, Refused, WithoutEffect

CPU = torch.device("cpu")
BATCH = SequenceBatch.of([[1, 2, 3], [4]])
HIDDEN = torch.tensor([[1.0, -4.0], [2.0, 0.0], [6.0, 1.0], [-3.0, 5.0]])


def write(folder: Path, modules: dict[str, dict[str, Any]]) -> Path:
    """Writes a folder with modules of these names, each with its config."""
    listed = []
    for index, (name, config) in enumerate({"Transformer": {}, **modules}.items()):
        path = f"{index}_{name}" if index else ""
        listed.append({"idx": index, "path": path, "type": f"sentence_transformers.models.{name}"})
        (folder / path).mkdir(exist_ok=True)
        (folder / path / "config.json").write_text(json.dumps(config))
        shapes = {"Dense": ("linear.", (1, 2), 1), "LayerNorm": ("norm.", (2,), 2)}
        if name in shapes:
            prefix, shape, size = shapes[name]
            tensors = {f"{prefix}weight": torch.full(shape, 0.5), f"{prefix}bias": torch.full((size,), 0.25)}
            save_file(tensors, folder / path / "model.safetensors")
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


MEAN = {"pooling_mode": "mean"}
_DENSE = {"in_features": 2, "out_features": 1, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}


def test_every_key_of_transformers_config_is_listed() -> None:
    assert set(inspect.signature(PretrainedConfig.__init__).parameters) - {"self", "kwargs"} == set(CONFIG)


@pytest.mark.parametrize("name", MODULES)
def test_each_module_runs_or_is_refused_by_name(name: str, tmp_path: Path) -> None:
    configs: dict[str, Any] = {"Dense": _DENSE, "LayerNorm": {"dimension": 2}}
    entry = MODULES[name]
    modules = (
        {"Pooling": MEAN} if name in ("Transformer", "Pooling") else {"Pooling": MEAN, name: configs.get(name, {})}
    )
    folder = write(tmp_path, modules)
    if isinstance(entry, Refused):
        with pytest.raises(ModelError, match=name):
            pooling.read(folder, False, CPU)
        return
    found = pooling.read(folder, False, CPU)
    mean = torch.stack([HIDDEN[:3].mean(0), HIDDEN[3]])
    expected = {
        "Dense": torch.tanh(mean.sum(1, keepdim=True) * 0.5 + 0.25),
        "LayerNorm": torch.nn.functional.layer_norm(mean, (2,)) * 0.5 + 0.25,
    }
    torch.testing.assert_close(found.pool(HIDDEN, BATCH), expected.get(name, mean))
    assert found.normalizes == (name == "Normalize")


def test_normalize_before_another_module_is_applied(tmp_path: Path) -> None:
    found = pooling.read(write(tmp_path, {"Pooling": MEAN, "Normalize": {}, "Dense": _DENSE}), False, CPU)
    mean = torch.nn.functional.normalize(torch.stack([HIDDEN[:3].mean(0), HIDDEN[3]]))
    torch.testing.assert_close(found.pool(HIDDEN, BATCH), torch.tanh(mean.sum(1, keepdim=True) * 0.5 + 0.25))
    assert not found.normalizes


@pytest.mark.parametrize("key", [key for key, entry in DENSE.items() if isinstance(entry, Refused)])
def test_layers_on_token_vectors_are_refused(key: str, tmp_path: Path) -> None:
    folder = write(tmp_path, {"Pooling": MEAN, "Dense": _DENSE | {key: DENSE[key].samples[0]}})
    with pytest.raises(ModelError, match=key):
        pooling.read(folder, False, CPU)


_WITHOUT_FIRST = {
    "cls": [1.0, -4.0],
    "lasttoken": [6.0, 1.0],
    "max": [6.0, 1.0],
    "mean": [4.0, 0.5],
    "mean_sqrt_len_tokens": [8 / 2**0.5, 1 / 2**0.5],
    "weightedmean": [(4 + 18) / 5, 3 / 5],
}


@pytest.mark.parametrize("mode", _WITHOUT_FIRST)
def test_include_prompt_false_excludes_prompt_tokens(mode: str, tmp_path: Path) -> None:
    found = pooling.read(write(tmp_path, {"Pooling": {"pooling_mode": mode, "include_prompt": False}}), False, CPU)
    assert found.excludes_prompt
    vectors = found.pool(HIDDEN, BATCH, (1, 0))
    torch.testing.assert_close(vectors[0], torch.tensor(_WITHOUT_FIRST[mode]))
    torch.testing.assert_close(vectors[1], HIDDEN[3])
    torch.testing.assert_close(found.pool(HIDDEN, BATCH)[1], HIDDEN[3])


def test_mean_pooling_is_the_default(tmp_path: Path) -> None:
    found = pooling.read(write(tmp_path, {"Pooling": {"pooling_mode_cls_token": True}}), False, CPU)
    assert found.modes == ("cls", "mean")
    assert isinstance(POOLING["word_embedding_dimension"], WithoutEffect)


def test_length_limits_of_tokenizer_and_sentence_transformers(tmp_path: Path) -> None:
    for content, expected in (('{"model_max_length": 77}', 77), ('{"model_max_length": 1e30}', None), ("{}", None)):
        (tmp_path / "tokenizer_config.json").write_text(content)
        assert _tokenizer_limit(tmp_path) == expected
    folder = write(tmp_path, {"Pooling": MEAN})
    assert pooling.read(folder, False, CPU).max_input_tokens is None
    (folder / "sentence_roberta_config.json").write_text('{"max_seq_length": 9}')
    assert pooling.read(folder, False, CPU).max_input_tokens == 9


_NAMES = {0: "a", 1: "b"}
_SIGMOID, _IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize(
    ("task", "settings", "expected"),
    [
        (Task.CLASSIFY, {"id2label": _NAMES}, LabelScore.SOFTMAX),
        (Task.CLASSIFY, {"id2label": {0: "a"}}, LabelScore.SIGMOID),
        (Task.CLASSIFY, {"num_labels": 1}, LabelScore.SIGMOID),
        (Task.CLASSIFY, {"id2label": _NAMES, "problem_type": "multi_label_classification"}, LabelScore.SIGMOID),
        (Task.CLASSIFY, {"id2label": _NAMES, "problem_type": "regression"}, LabelScore.LOGIT),
        (Task.CLASSIFY, {"id2label": {0: "a"}, "problem_type": "regression"}, LabelScore.LOGIT),
        (Task.RERANK, {"id2label": {0: "a"}}, LabelScore.SIGMOID),
        (Task.RERANK, {"num_labels": 1, "sentence_transformers": {"activation_fn": _IDENTITY}}, LabelScore.LOGIT),
        (Task.RERANK, {"num_labels": 1, "sentence_transformers": {"activation_fn": "torch.nn.Tanh"}}, LabelScore.TANH),
        (Task.RERANK, {"num_labels": 1, "sbert_ce_default_activation_function": _IDENTITY}, LabelScore.LOGIT),
        (Task.RERANK, {"num_labels": 1, "sentence_transformers": {"activation_fn": "own.Thing"}}, LabelScore.SIGMOID),
        (Task.RERANK, {"num_labels": 1, "sentence_transformers": {"activation_fn": _SIGMOID}}, LabelScore.SIGMOID),
    ],
)
def test_config_decides_how_logits_become_scores(task: Task, settings: dict[str, Any], expected: LabelScore) -> None:
    assert label_score.find(BertConfig(**settings), task) == expected


def test_every_key_has_a_reason() -> None:
    for table in (CONFIG, POOLING, DENSE, MODULES):
        assert all(entry.reason and isinstance(entry, (Read, Refused, WithoutEffect)) for entry in table.values())
