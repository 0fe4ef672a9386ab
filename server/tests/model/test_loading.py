"""Tests the errors for models that cannot be served: each says what is wrong, where, and what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from gridwork_kernels import cpu_library
from gridwork_server.config import ShardConfig
from gridwork_server.errors import ModelError
from gridwork_server.model.loading import LoadedModel, load
from gridwork_server.parallel.group import RankGroup

from .. import models
from ..damage import change_weights, refusal, set_config

CUSTOM_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path(r"{mark}").touch()

class CustomConfig(LlamaConfig):
    model_type = "custom-llama"

class CustomModel(LlamaForCausalLM):
    config_class = CustomConfig
"""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save("llama", tmp_path_factory.mktemp("models") / "sound")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy of the sound model, to be damaged."""
    return shutil.copytree(sound, tmp_path / "model")


def load_folder(folder: Path, **settings: Any) -> LoadedModel:
    """Loads the folder in float32."""
    return load(ShardConfig(**({"model_path": folder, "socket": "", "dtype": "float32"} | settings)), RankGroup())


def truncate(folder: Path, kept: int) -> None:
    """Truncates model.safetensors to `kept` bytes, or by that many if negative."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])


def lose_a_file(folder: Path) -> None:
    """Makes the folder a model of two files of which one is missing."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weight_map = {"model.norm.weight": "model-00001-of-00002.safetensors"}
    weight_map["lm_head.weight"] = "model-00002-of-00002.safetensors"
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_loaded_model_is_described(sound: Path) -> None:
    loaded = load_folder(sound)
    plain = models.plain(sound)
    assert loaded.num_parameters == sum(parameter.numel() for parameter in plain.parameters())
    assert loaded.weight_bytes == loaded.num_parameters * 4
    assert loaded.vocab_size == models.VOCAB
    assert (loaded.eos_token_ids, loaded.max_context_tokens) == ([2], 512)
    assert (loaded.path.name, loaded.path_reason) == ("paged", "")
    assert loaded.path.needs.bytes_per_token == 3 * 2 * (16 + 16) * 4


DAMAGE: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), ["no config.json", "--model-id"]),
    "config is no JSON": (
        lambda folder: (folder / "config.json").write_text('{"model_type": '),
        ["config.json is not valid JSON", "download it again"],
    ),
    "config is no text": (
        lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"),
        ["config.json is not valid JSON", "download it again"],
    ),
    "config with a wrong type": (lambda folder: set_config(folder, hidden_size="x"), ["config.json", "hidden_size"]),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ["no .safetensors files"]),
    "truncated weights": (lambda folder: truncate(folder, -1000), ["damaged", "download them again"]),
    "truncated header": (lambda folder: truncate(folder, 5), ["damaged", "download them again"]),
    "a missing file": (lose_a_file, ["model-00002-of-00002.safetensors", "incomplete", "download"]),
    "a missing tensor": (
        lambda folder: change_weights(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight")),
        ["lack model.layers.1.mlp.up_proj.weight", "incomplete", "download"],
    ),
    "a tensor of another shape": (
        lambda folder: change_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(10)})),
        ["model.norm.weight is [10], not [48]", "download"],
    ),
    "an unknown type": (
        lambda folder: set_config(folder, model_type="nosuch"),
        ["config.json", "`nosuch`", "Transformers", "newer version of Gridwork"],
    ),
    "no language model": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "vit"}'),
        ["`vit`", "do not generate text", "use another model"],
    ),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_error_names_the_damage(damage: Callable[[Path], Any], words: list[str], folder: Path) -> None:
    damage(folder)
    refusal(load_folder, folder, words)


def test_custom_code_runs_only_when_it_is_trusted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    mark = tmp_path / "has-run"
    (folder / "custom.py").write_text(CUSTOM_CODE.format(mark=mark))
    auto_map = {"AutoConfig": "custom.CustomConfig", "AutoModelForCausalLM": "custom.CustomModel"}
    set_config(folder, model_type="custom-llama", auto_map=auto_map)
    with pytest.raises(ModelError, match=r"config\.json needs its own Python code.*--trust-remote-code"):
        load_folder(folder)
    assert not mark.exists()
    assert type(load_folder(folder, trust_remote_code=True).model).__name__ == "CustomModel"
    assert mark.exists()


@pytest.mark.parametrize("impl", ["paged", "batched", "solo"])
def test_requested_path_is_used(impl: str, sound: Path) -> None:
    loaded = load_folder(sound, model_impl=impl)
    assert (loaded.path.name, loaded.path_reason) == (impl, "")


def test_impossible_path_is_refused(tmp_path: Path) -> None:
    transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=models.VOCAB, hidden_size=32, n_layer=2, n_head=2)
    ).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"BloomForCausalLM does not support.*attention interface.*--model-impl auto"):
        load_folder(tmp_path, model_impl="paged")


def test_tied_weights_may_be_saved_once(tmp_path: Path) -> None:
    folder = models.save("qwen2", tmp_path / "model")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model: Any = load_folder(folder).model
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


@pytest.mark.skipif(cpu_library.load() is None, reason="no compiled kernels for this CPU")
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_unpacked_experts_are_noted(quantize: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    plain = Qwen3MoeExperts.forward
    monkeypatch.setattr(Qwen3MoeExperts, "forward", lambda self, *values: 2 * plain(self, *values))
    notes = load_folder(models.save("qwen3_moe", tmp_path), quantize=quantize).notes
    assert [note for note in notes if note.startswith("left the experts of 2 layers unpacked: ")]
    assert not [note for note in notes if note.startswith("experts of 2 layers packed")]
