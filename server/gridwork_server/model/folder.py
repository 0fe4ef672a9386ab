"""Checks a model folder before PyTorch is imported, which takes seconds."""

import json
from pathlib import Path
from typing import Any

from gridwork_server.checkpoint import quantized_checkpoint
from gridwork_server.config import ShardConfig
from gridwork_server.errors import ModelError
from gridwork_server.model import task


def check(config: ShardConfig) -> Any:
    """Returns the content of config.json. Raises ModelError for a missing folder, and for one that this version
    certainly cannot load."""
    path = config.model_path
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{path} has no config.json: it is not a model folder; give --model-id the folder that has one"
        )
    try:
        content = json.loads((path / "config.json").read_text())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path / 'config.json'} is not valid JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path / 'config.json'} is not a JSON object; download it again")
    _check_sizes(path / "config.json", content, "")
    if isinstance(content.get("text_config"), dict):
        _check_sizes(path / "config.json", content["text_config"], "text_config.")
    quantized = quantized_checkpoint.recognize(path, content)
    if quantized is not None:
        quantized_checkpoint.check(quantized, config.world_size, config.device, config.quantize)
    task.choose(config.task, path, content)
    if not any(path.glob("*.safetensors")):
        raise ModelError(
            f"{path} has no .safetensors files; only safetensors weights are loaded, use a model that has them"
        )
    return content


_SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("d_model", "n_embd", "n_layer", "n_head", "num_layers", "num_heads"),
)
"""Sizes that must be positive whole numbers where a config has them."""


def _check_sizes(file: Path, config: dict[str, Any], prefix: str) -> None:
    for name in _SIZES:
        value = config.get(name)
        if isinstance(value, (int, float)) and (value <= 0 or value != int(value)):
            raise ModelError(
                f"{file} has {prefix}{name}: {value}, which must be a positive whole number; download it again"
            )
