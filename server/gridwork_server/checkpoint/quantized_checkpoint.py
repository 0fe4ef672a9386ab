"""Recognizes checkpoints whose weights are quantized, from the small files of their folder, and refuses those that
cannot be loaded rightly.

Imports nothing that takes long: it runs before PyTorch is imported, and before weights are fetched."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gridwork_server.errors import ModelError


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """How the weights of a folder are quantized, and which file says so."""

    method: str
    """As Transformers names it; of methods that it does not know, as the file does."""
    file: Path
    key: str
    """The entry of `file` that says so; empty where the whole file does."""
    settings: dict[str, Any]

    @property
    def is_dequantized(self) -> bool:
        """Whether Transformers turns the weights into ordinary ones while it loads them, without another package."""
        return self.method in DEQUANTIZED

    def __str__(self) -> str:
        where = f"{self.file}, {self.key}" if self.key else str(self.file)
        return f"the weights are quantized with {self.method} ({where})"


DEQUANTIZED = ("fp8", "mxfp8", "mxfp4")

_PACKAGES: dict[str, tuple[str, ...]] = {
    "aqlm": ("aqlm",),
    "auto-round": ("auto-round",),
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    "fbgemm_fp8": ("fbgemm-gpu",),
    "gptq": ("optimum", "gptqmodel"),
    "hqq": ("hqq",),
    "quanto": ("optimum-quanto",),
    "torchao": ("torchao",),
    "vptq": ("vptq",),
}
"""Methods that Transformers runs by itself with these packages, on one shard."""

_MODULES = {"auto-round": "auto_round", "optimum-quanto": "optimum.quanto", "fbgemm-gpu": "fbgemm_gpu"}
"""What a package is imported as, where that is not its name with underscores."""

_NEEDS_GPU = ("fbgemm_fp8", "vptq")

_OLD_FILES = (
    ("quantize_config.json", "gptq", ("bits",)),
    ("quant_config.json", "awq", ("w_bit", "bits", "zero_point")),
    ("quanto_qmap.json", "quanto", ()),
)
"""Files of folders whose config.json says nothing, the method, and what one of its entries is called."""

FILES = ("config.json", "hf_quant_config.json", *(name for name, _method, _entries in _OLD_FILES))
"""What tells whether weights are quantized."""

INSTEAD = "use the unquantized model, with --quantize int4 or int8 if it has to be small"


def recognize(folder: Path, content: Any) -> QuantizedCheckpoint | None:
    """content: of config.json. None for weights that nothing says are quantized. Raises ModelError for a
    quantization that names no method."""
    for key, settings in _declared(content if isinstance(content, dict) else {}, ""):
        return _from_settings(folder / "config.json", key, settings)
    algorithm = _modelopt_algorithm(folder / "hf_quant_config.json")
    if algorithm is not None:
        return QuantizedCheckpoint(f"modelopt {algorithm}", folder / "hf_quant_config.json", "quantization", {})
    for name, method, entries in _OLD_FILES:
        found = _object(folder / name)
        if found is not None and (not entries or any(entry in found for entry in entries)):
            method = str(found.get("quant_method") or method)
            return QuantizedCheckpoint(f"{method} (without an entry in config.json)", folder / name, "", found)
    return None


def recognize_folder(folder: Path) -> QuantizedCheckpoint | None:
    """As `recognize`, for a folder whose config.json has not been read; None too where it cannot be."""
    content = _object(folder / "config.json")
    return None if content is None else recognize(folder, content)


def _declared(content: dict[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the config and the configs inside it say of quantization."""
    for key in ("quantization_config", "compression_config", "quantization"):
        settings = content.get(key)
        # `quantization` alone is no name that Transformers knows; MLX writes it, with the number of bits.
        if isinstance(settings, dict) and (key != "quantization" or "bits" in settings):
            yield prefix + key, settings
    for key, value in content.items():
        if isinstance(value, dict) and key.endswith(("config", "decoder", "generator", "encoder")):
            yield from _declared(value, f"{prefix}{key}.")


def _from_settings(file: Path, key: str, settings: dict[str, Any]) -> QuantizedCheckpoint:
    method = settings.get("quant_method")
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        method = "bitsandbytes"
    elif method is None and "bits" in settings:
        method = "MLX"
    elif key.endswith("compression_config"):
        method = f"{method or 'compressed-tensors'} (in an older form)"
    if not isinstance(method, str) or not method:
        raise ModelError(
            f"{file}, {key}: there is no quant_method, so that nobody can tell how the weights are quantized; add it, "
            "or remove the entry if they are not"
        )
    return QuantizedCheckpoint(method.replace("compressed_tensors", "compressed-tensors"), file, key, settings)


def _modelopt_algorithm(file: Path) -> str | None:
    """Of NVIDIA's ModelOpt. None also where only the cache of keys and values is to be quantized."""
    found = _object(file)
    if found is None:
        return None
    inner = found.get("quantization")
    algorithm = (inner if isinstance(inner, dict) else found).get("quant_algo")
    return None if algorithm is None else str(algorithm)


def _object(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def check_readable(found: QuantizedCheckpoint) -> None:
    """Whatever it is to run on. Raises ModelError for what no shard of this installation reads rightly."""
    if found.is_dequantized:
        return
    packages = _PACKAGES.get(found.method)
    if packages is None:
        raise ModelError(f"{found}, which this version does not read; {INSTEAD}")
    missing = [package for package in packages if not _is_installed(package)]
    if missing:
        raise ModelError(
            f"{found}, which Transformers reads with the Python packages {' and '.join(packages)}, and "
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; {INSTEAD}"
            if len(packages) > 1
            else f"{found}, which Transformers reads with the Python package {packages[0]}, and it is not installed; "
            f"{INSTEAD}"
        )


def check(found: QuantizedCheckpoint, num_shards: int, device: str, quantize: str | None) -> None:
    """Raises ModelError for what cannot be served like this."""
    check_readable(found)
    if num_shards > 1:
        raise ModelError(
            f"{found}, and such weights are not split over {num_shards} shards; use --num-shard 1, or the unquantized "
            "model"
        )
    if device == "cpu" and found.method in _NEEDS_GPU:
        raise ModelError(f"{found}, which needs a GPU, and the model would run on the CPU; {INSTEAD}")
    if quantize and not found.is_dequantized:
        raise ModelError(
            f"{found} already, and cannot be quantized again to {quantize}; leave --quantize {quantize} out, or use "
            "the unquantized model"
        )


def _is_installed(package: str) -> bool:
    try:
        return find_spec(_MODULES.get(package, package.replace("-", "_"))) is not None
    except (ImportError, ValueError):  # of a package inside one that is not there
        return False
