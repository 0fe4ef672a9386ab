"""What can be told about a model folder before PyTorch is imported, which takes seconds."""

import json
from typing import Any

from gridwork_server import task
from gridwork_server.config import ShardConfig
from gridwork_server.errors import ModelError
from gridwork_server.task import Task


def check(config: ShardConfig) -> Any:
    """Returns the content of config.json. Raises ModelError for a folder that is obviously not a model that this
    version can load, and for a path that is not there."""
    path = config.model_path
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{path} has no config.json: it is not a model folder; give --model-id the folder that has one"
        )
    try:
        content = json.loads((path / "config.json").read_text())
    except ValueError as error:
        raise ModelError(f"{path / 'config.json'} is not valid JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path / 'config.json'} is not a JSON object; download it again")
    if task.choose(config.task, path, content) == Task.GENERATE and config.model_impl not in ("auto", "paged"):
        raise ModelError(
            f"--model-impl {config.model_impl} is not available in this version; use auto or paged, for models that "
            "support Transformers' attention interface"
        )
    if not any(path.glob("*.safetensors")):
        raise ModelError(
            f"{path} has no .safetensors files; only safetensors weights are loaded, use a model that has them"
        )
    return content
