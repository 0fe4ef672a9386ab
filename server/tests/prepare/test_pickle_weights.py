"""Tests pickled weights: converted only when allowed, and no function that a pickle names is ever called."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from gridwork_server.prepare import pickle_weights
from gridwork_server.prepare.cli import Options, prepare
from gridwork_server.prepare.errors import PrepareError

from .. import models


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = models.save("qwen2", tmp_path_factory.mktemp("models") / "sound")  # embeddings are tied
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """The sound model with its weights in a pickle."""
    copy = shutil.copytree(sound, tmp_path / "model")
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    return copy


def allowed(folder: Path) -> Path:
    """Folder of the converted model."""
    options = Options(allow_pickle=True, cache_dir=folder.parent / "cache")
    return prepare(str(folder), options).model_path


def test_refusal_of_pickled_weights_names_both_remedies(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PrepareError) as error:
        prepare(str(folder), Options(cache_dir=tmp_path / "cache"))
    for word in ("pytorch_model.bin", "--allow-pickle-weights", "save_pretrained"):
        assert word in str(error.value)


def test_converted_weights_are_equal(folder: Path, sound: Path) -> None:
    made = allowed(folder)
    assert not list(made.glob("*.bin"))
    assert (made / "tokenizer.json").is_file()
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (sound, made))
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert allowed(folder) == made


def test_weights_in_several_files_are_converted(folder: Path, sound: Path) -> None:
    tensors = load_file(sound / "model.safetensors")
    (folder / "pytorch_model.bin").unlink()
    names = list(tensors)
    parts = {"pytorch_model-1.bin": names[:5], "pytorch_model-2.bin": names[5:]}
    for file, own in parts.items():
        torch.save({name: tensors[name] for name in own}, folder / file, _use_new_zipfile_serialization=False)
    weight_map = {name: file for file, own in parts.items() for name in own}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    made = allowed(folder)
    assert len(list(made.glob("*.safetensors"))) == 2
    model = AutoModelForCausalLM.from_pretrained(made)
    assert torch.equal(model.model.norm.weight, tensors["model.norm.weight"])
    (folder / "pytorch_model-2.bin").unlink()
    with pytest.raises(PrepareError, match=r"pytorch_model-2\.bin is missing"):
        allowed(folder)


def test_tensors_that_share_memory_are_copied(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": whole, "same": whole, "row": whole[1], "turned": whole.T}
    torch.save(tensors, tmp_path / "x.bin")
    separate = pickle_weights.copy_shared_memory(pickle_weights.read_tensors(tmp_path / "x.bin"))
    assert all(torch.equal(separate[name], tensors[name]) for name in tensors)
    assert len({tensor.untyped_storage().data_ptr() for tensor in separate.values()}) == 4


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_with_a_call_is_refused_without_calling(
    name: str, zipped: bool, folder: Path, sound: Path, tmp_path: Path
) -> None:
    (folder / "pytorch_model.bin").unlink()
    content: dict[str, Any] = {**load_file(sound / "model.safetensors"), "x": Harmful(tmp_path / "has-run")}
    torch.save(content, folder / name, _use_new_zipfile_serialization=zipped)
    with pytest.raises(PrepareError) as error:
        allowed(folder)
    assert name in str(error.value)
    assert "system" in str(error.value)
    assert not (tmp_path / "has-run").exists()
    # The trap works when it is loaded without the restriction.
    torch.load(folder / name, weights_only=False)
    assert (tmp_path / "has-run").exists()


def test_a_plain_pickle_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harmful(tmp_path / "has-run")))
    with pytest.raises(PrepareError, match=r"pytorch_model\.bin"):
        allowed(folder)
    assert not (tmp_path / "has-run").exists()


@pytest.mark.parametrize("content", [{"a": torch.ones(2), "epoch": 3}, [torch.ones(2)], {"a": {"b": torch.ones(2)}}])
def test_pickles_without_named_tensors_are_refused(content: Any, folder: Path) -> None:
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(PrepareError, match="not a model's weights"):
        allowed(folder)


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_a_truncated_file_is_refused(kept: int, folder: Path) -> None:
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(PrepareError, match=r"pytorch_model\.bin"):
        allowed(folder)
    assert not list((folder.parent / "cache" / "gridwork" / "converted").glob("model-*"))
