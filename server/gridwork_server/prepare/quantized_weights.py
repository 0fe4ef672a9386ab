"""Refuses what no shard could load, before weights are fetched, converted or merged."""

from pathlib import Path

from gridwork_server.checkpoint import quantized_checkpoint
from gridwork_server.errors import ModelError
from gridwork_server.prepare.errors import PrepareError


def check_readable(folder: Path, name: str) -> None:
    """name: of the model, for the message. Raises PrepareError for weights that are quantized in a way that nothing
    installed here reads."""
    try:
        found = quantized_checkpoint.recognize_folder(folder)
        if found is not None:
            quantized_checkpoint.check_readable(found)
    except ModelError as error:
        raise PrepareError(f"{name} cannot be served: {error}") from None


def check_base(base: Path) -> None:
    """Raises PrepareError for a base whose weights are quantized: an adapter's changes are sums with plain weights."""
    try:
        found = quantized_checkpoint.recognize_folder(base)
    except ModelError as error:
        raise PrepareError(str(error)) from None
    if found is not None:
        raise PrepareError(
            f"an adapter cannot be merged onto {base}: {found}. Name the unquantized model as its base, in "
            "base_model_name_or_path of adapter_config.json"
        )
