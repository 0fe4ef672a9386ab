"""Errors of loading weights with Transformers, as messages for the person who started the server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gridwork_server.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from gridwork_server.errors import ModelError
from gridwork_server.text import one_line, some


@contextmanager
def load_errors(folder: Path, purpose: str, quantized: QuantizedCheckpoint | None) -> Iterator[None]:
    """Turns any error of `from_pretrained()` into a ModelError, and silences its reports, which `info` has too.

    folder: that of the model; purpose: end of "cannot be loaded"; quantized: form of quantized weights.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except SafetensorError as error:
        raise ModelError(f"the weights in {folder} are damaged ({error}); download them again") from None
    except FileNotFoundError as error:
        raise ModelError(f"{one_line(error)}; the folder is incomplete, download the model again") from None
    except Exception as error:  # a config's values and a model's own code may raise anything
        if quantized is not None:
            raise ModelError(f"{quantized}, and Transformers cannot load them: {one_line(error)}") from error
        raise ModelError(
            f"{folder} cannot be loaded {purpose}: {one_line(error)}; its config.json or its code is at fault"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def check_shapes(info: dict[str, Any], folder: Path) -> None:
    """Raises ModelError for weights that have another shape than the config gives them. info: from
    `from_pretrained()`."""
    if info["mismatched_keys"]:
        shapes = [f"{name} is {list(shape)}, not {list(wanted)}" for name, shape, wanted in info["mismatched_keys"]]
        raise ModelError(
            f"weights and config.json in {folder} disagree in shape: {some(shapes)}; they are not of one model, "
            "download it again"
        )
