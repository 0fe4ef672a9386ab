"""Tests that errors in a model's own code, and impossible values in its config, are reported with file and key."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from loguru import logger

from gridwork_server.config import ShardConfig
from gridwork_server.errors import ModelError
from gridwork_server.model.loading import LoadedModel, load
from gridwork_server.parallel.group import RankGroup

from .. import models
from ..damage import change_weights, refusal, set_config

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own-llama"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
AUTO_MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save("llama", tmp_path_factory.mktemp("models") / "sound")


@pytest.fixture
def folder(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies the sound model and adds its own code, to be damaged."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    copy = shutil.copytree(sound, tmp_path / "model")
    (copy / "own.py").write_text(CODE)
    set_config(copy, model_type="own-llama", auto_map=AUTO_MAP, architectures=["OwnModel"])
    return copy


def load_folder(folder: Path, **settings: Any) -> LoadedModel:
    options: dict[str, Any] = {"dtype": "float32", "trust_remote_code": True}
    return load(ShardConfig(model_path=folder, socket="", **options | settings), RankGroup())


def test_undamaged_code_loads(folder: Path) -> None:
    assert type(load_folder(folder).model).__name__ == "OwnModel"


def test_own_class_is_found_by_architecture(folder: Path) -> None:
    set_config(folder, auto_map={"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"})
    assert type(load_folder(folder).model).__name__ == "OwnModel"


def write(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "own.py").write_text(text)


def refer(reference: str, key: str = "AutoModelForCausalLM") -> Callable[[Path], Any]:
    return lambda folder: set_config(folder, auto_map=AUTO_MAP | {key: reference})


DAMAGE: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no file": (lambda folder: (folder / "own.py").unlink(), ["auto_map.AutoConfig", "own.py is missing"]),
    "another file is not there": (refer("other.OwnModel"), ["auto_map.AutoModelForCausalLM", "other.py is missing"]),
    "an import of a file that is not there": (write("from ..more import x\n" + CODE), ["more.py is missing"]),
    "no class": (refer("own.Nothing"), ["auto_map.AutoModelForCausalLM", "own.py defines no Nothing"]),
    "no form": (refer("OwnModel"), ["auto_map.AutoModelForCausalLM", "file.Class"]),
    "raises on import": (write("raise RuntimeError('as it were')"), ["own.py fails", "RuntimeError: as it were"]),
    "is no Python": (write("def"), ["own.py fails", "SyntaxError"]),
    "needs a package": (
        write("import no_such_package_anywhere\n" + CODE),
        ["no_such_package_anywhere", "own.OwnConfig"],
    ),
    "raises when it is made": (
        write(CODE + "    def __init__(self, config):\n        raise KeyError('made')\n"),
        ["OwnModel", "KeyError", "made"],
    ),
    "raises in forward": (
        write(CODE + "    def forward(self, *arguments, **options):\n        raise LookupError('in forward')\n"),
        ["OwnModel cannot be served", "in forward"],
    ),
    "lies on the hub": (
        refer("org/repo--own.OwnModel"),
        ["auto_map.AutoModelForCausalLM", "org/repo", "--code-revision"],
    ),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_error_in_own_code_names_file_and_key(damage: Callable[[Path], Any], words: list[str], folder: Path) -> None:
    damage(folder)
    assert "\n" not in refusal(load_folder, folder, words)


def test_missing_hub_code_is_reported_with_its_revision(folder: Path) -> None:
    refer("org/repo--own.OwnConfig", "AutoConfig")(folder)
    with pytest.raises(ModelError, match=r"auto_map\.AutoConfig.*org/repo at v1\.2 is neither in the cache"):
        load_folder(folder, code_revision="v1.2")


def test_cached_hub_code_is_used_at_its_revision(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = {"main": "0" * 40, "v1": "1" * 40}
    storage = tmp_path / "hub" / "models--org--repo"
    for revision, commit in commits.items():
        (storage / "snapshots" / commit).mkdir(parents=True)
        (storage / "snapshots" / commit / "own.py").write_text(CODE + f"    revision = '{revision}'\n")
        (storage / "refs").mkdir(exist_ok=True)
        (storage / "refs" / revision).write_text(commit)
    for name in ("huggingface_hub.constants.HF_HUB_CACHE", "transformers.utils.hub.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(name, str(tmp_path / "hub"))
    refer("org/repo--own.OwnModel")(folder)
    (folder / "own.py").write_text(CODE)
    for revision in ("v1", None):
        model: Any = load_folder(folder, code_revision=revision).model
        assert model.revision == (revision or "main")


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_attention_heads", 0), ("num_hidden_layers", -1), ("hidden_size", 0), ("vocab_size", 0), ("head_dim", 2.5)],
)
@pytest.mark.parametrize("nested", [False, True])
def test_impossible_sizes_are_named(nested: bool, name: str, value: float, folder: Path) -> None:
    set_config(folder, **({"text_config": {name: value}} if nested else {name: value}))
    key = f"text_config.{name}" if nested else name
    refusal(load_folder, folder, ["config.json", f"{key}: {value}", "positive"])


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": "many"},
        {"num_attention_heads": 7},
        {"num_key_value_heads": 4},
        {"hidden_act": "no_such_function"},
        {"rope_parameters": {"rope_type": "no_such_type"}},
        {"num_hidden_layers": None},
        {"dtype": "float13"},
    ],
)
def test_unusable_config_values_are_reported_in_one_line(changes: dict[str, Any], sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "model")
    set_config(folder, **changes)
    assert "\n" not in refusal(partial(load_folder, dtype="auto"), folder, [str(folder)])


def test_unused_tensors_are_logged(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update({"model.extra.weight": torch.ones(2)}))
    messages: list[str] = []
    handler = logger.add(lambda message: messages.append(str(message)), level="WARNING")
    try:
        load_folder(folder)
    finally:
        logger.remove(handler)
    assert any("does not use: model.extra.weight" in message for message in messages)
