"""Interprets `--model-id`: a folder, a GGUF file, or a model on the Hugging Face hub."""

import re
from dataclasses import dataclass
from pathlib import Path

from gridwork_server.prepare.errors import PrepareError

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class LocalFolder:
    """A folder on this machine, used as it is."""

    path: Path


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file on this machine, to be converted."""

    path: Path


@dataclass(frozen=True)
class HubModel:
    """Name of a model on the hub, `name` or `organisation/name`."""

    name: str


def locate(model_id: str) -> LocalFolder | GgufFile | HubModel:
    """Interprets a model id. An id that looks like a path is never looked up on the hub. Raises PrepareError."""
    path = Path(model_id).expanduser()
    if path.is_dir():
        return LocalFolder(path.absolute())
    is_gguf = model_id.lower().endswith(".gguf")
    if path.is_file():
        if is_gguf:
            return GgufFile(path.absolute())
        raise PrepareError(
            f"--model-id {model_id} is a file, but not a .gguf file; give a model's folder or a .gguf file"
        )
    if is_gguf or model_id.startswith((".", "/", "~")) or model_id.endswith("/") or model_id.count("/") > 1:
        raise PrepareError(f"--model-id {model_id}: there is no such file or folder; check the path")
    if not _HUB_NAME.fullmatch(model_id):
        raise PrepareError(
            f"--model-id {model_id} is neither a folder, nor a .gguf file, nor a name on the Hugging Face hub "
            "(`name` or `organisation/name`)"
        )
    return HubModel(model_id)
