"""Refuses quantized weights that no shard could load, before weights are fetched, converted or merged."""

from pathlib import Path

from gridwork_server.checkpoint import quantized_checkpoint
from gridwork_server.errors import ModelError
from gridwork_server.prepare.errors import PrepareError


def check_readable(folder: Path, name: str) -> None:
    """Raises PrepareError for weights with a quantization that no installed package reads. name: of the model, for the
    message."""
    try:
        found = quantized_checkpoint.recognize_folder(folder)
        if found is not None:
            quantized_checkpoint.check_readable(found)
    except ModelError as error:
        raise PrepareError(f"{name} cannot be served: {error}") from None


def check_base(base: Path) -> None:
    """Raises PrepareError for a base with quantized weights: an adapter's changes can only be added to plain
    weights."""
    try:
        found = quantized_checkpoint.recognize_folder(base)
    except ModelError as error:
        raise PrepareError(str(error)) from None
    if found is not None:
        raise PrepareError(
            f"an adapter cannot be merged onto {base}: {found}; name the unquantized model as its base, in "
            "base_model_name_or_path of adapter_config.json"
        )
