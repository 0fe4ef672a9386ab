"""Changes the files of a model folder, and checks the error for a folder that was damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gridwork_server.errors import ModelError


def set_config(folder: Path, **changes: Any) -> Path:
    """Changes entries of config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """Rewrites model.safetensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def refusal(load: Callable[[Path], Any], folder: Path, words: list[str]) -> str:
    """Message of the ModelError that loading the folder raises, which must have all of these words."""
    with pytest.raises(ModelError) as error:
        load(folder)
    message = str(error.value)
    for word in words:
        assert word in message
    return message
