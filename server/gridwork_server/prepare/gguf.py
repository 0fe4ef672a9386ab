"""Converts a GGUF file into a folder for Transformers: config, bfloat16 safetensors, tokenizer, chat template."""

import functools
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from loguru import logger

from gridwork_server.prepare.background import repeated
from gridwork_server.prepare.errors import PrepareError
from gridwork_server.prepare.staging import build_folder, check_space, megabytes
from gridwork_server.text import one_line

# Increase it when a conversion's result changes, so that folders made by older versions are not used.
_FORMAT = 1
_MAGIC = b"GGUF"
_HEARTBEAT_INTERVAL_S = 10.0
_LARGEST_SENSIBLE_LENGTH = 1 << 40


def convert_once(path: Path, cache_dir: Path) -> Path:
    """Folder with a GGUF file's conversion; made in `cache_dir` the first time, and found there later.

    A file that changed (by path, size or modification time) is converted again. Raises PrepareError.
    """
    stat = path.stat()
    identity = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{_FORMAT}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return build_folder(cache_dir / f"{path.stem}-{key}", is_complete, lambda folder: convert(path, folder))


def is_complete(folder: Path) -> bool:
    """Tells whether a folder holds a whole conversion. Checking for files is enough, since a rename puts folders in
    place."""
    has_weights = any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))
    return has_weights and (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file()


def convert(path: Path, folder: Path) -> None:
    """Writes the conversion of one GGUF file into an existing folder. Raises PrepareError."""
    started = time.monotonic()
    _check_magic(path)
    logger.info(f"converting {path} ({megabytes(path.stat().st_size)}) into bfloat16 safetensors")
    with _heartbeat(f"converting {path.name}"), _one_reader():
        _convert(path, folder)
    logger.info(f"converted {path.name} in {time.monotonic() - started:.0f} s")


def _convert(path: Path, folder: Path) -> None:
    # Progress bars would be one endless line in the launcher's log; the heartbeat replaces them.
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            local_files_only=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except Exception as error:  # a reader may raise anything for a damaged or unknown file
        logger.opt(exception=True).debug("the conversion failed")
        raise PrepareError(
            f"Transformers cannot convert {path} ({one_line(error, typed=True)}); if the file is whole, "
            "its architecture is not supported: use the model's original repository instead"
        ) from error

    if tokenizer.model_max_length > _LARGEST_SENSIBLE_LENGTH:
        tokenizer.model_max_length = model.config.max_position_embeddings
    needed_bytes = sum(parameter.nbytes for parameter in model.parameters())
    check_space(folder, needed_bytes, f"{path} becomes {megabytes(needed_bytes)} of bfloat16 weights")
    logger.info(f"writing {megabytes(needed_bytes)} of weights, and the tokenizer")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _heartbeat(what: str) -> AbstractContextManager[None]:
    """Logs every few seconds that a long operation is still running."""
    started = time.monotonic()
    return repeated(lambda: logger.info(f"{what}: {time.monotonic() - started:.0f} s so far"), _HEARTBEAT_INTERVAL_S)


def _check_magic(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise PrepareError(f"{path} cannot be read ({one_line(error, typed=False)}); check its permissions") from error
    if magic != _MAGIC:
        raise PrepareError(f"{path} is not a GGUF file; download it again")


@contextmanager
def _one_reader() -> Iterator[None]:
    """Makes all reads of a GGUF file within a `with` block share one reader.

    Reading a vocabulary takes seconds, and Transformers repeats it for the config, the weights and the tokenizer.
    """
    import gguf

    reader = gguf.GGUFReader
    gguf.GGUFReader = functools.lru_cache(maxsize=1)(reader)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        gguf.GGUFReader = reader  # type: ignore[misc]
