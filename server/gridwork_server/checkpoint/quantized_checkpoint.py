"""Recognizes checkpoints with quantized weights by the small files of their folder, and refuses unreadable ones.

Imports only light modules: it runs before PyTorch is imported and before weights are fetched.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gridwork_server.errors import ModelError


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """Quantization of a folder's weights, and the file that declares it."""

    method: str
    """Name of the method in Transformers; for methods unknown to Transformers, the name in the file."""
    file: Path
    key: str
    """Entry of `file` that declares the quantization; empty when the whole file does."""
    settings: dict[str, Any]

    @property
    def is_dequantized(self) -> bool:
        """True if Transformers converts the weights to ordinary ones while it loads them, without another package."""
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
"""Python packages that Transformers needs to run each method; on one shard only."""

_MODULES = {"auto-round": "auto_round", "optimum-quanto": "optimum.quanto", "fbgemm-gpu": "fbgemm_gpu"}
"""Import names of packages where they are not the package's name with underscores."""

_NEEDS_GPU = ("fbgemm_fp8", "vptq")

_OLD_FILES = (
    ("quantize_config.json", "gptq", ("bits",)),
    ("quant_config.json", "awq", ("w_bit", "bits", "zero_point")),
    ("quanto_qmap.json", "quanto", ()),
)
"""Files that declare a quantization which config.json does not: name, method, and entries of which one is present."""

FILES = ("config.json", "hf_quant_config.json", *(name for name, _method, _entries in _OLD_FILES))
"""Files that tell whether weights are quantized."""

INSTEAD = "use the unquantized model, with --quantize int4 or int8 if it has to be small"


def recognize(folder: Path, content: Any) -> QuantizedCheckpoint | None:
    """Recognizes a folder's quantization. content: of config.json. Returns None when nothing declares one. Raises
    ModelError for a quantization without a method."""
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
    """Reads config.json and recognizes the folder's quantization; None also when config.json cannot be read."""
    content = _object(folder / "config.json")
    return None if content is None else recognize(folder, content)


def _declared(content: dict[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Quantization settings in the config and in the configs inside it, with their keys."""
    for key in ("quantization_config", "compression_config", "quantization"):
        settings = content.get(key)
        # Transformers does not know the key `quantization`; MLX writes it, with the number of bits.
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
            f"{file}, {key}: quant_method is missing, so the weights' quantization is not known; add it, or remove the "
            "entry if the weights are not quantized"
        )
    return QuantizedCheckpoint(method.replace("compressed_tensors", "compressed-tensors"), file, key, settings)


def _modelopt_algorithm(file: Path) -> str | None:
    """Algorithm of NVIDIA's ModelOpt. None also when it quantizes only the KV cache."""
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
    """Raises ModelError for checkpoints that no shard of this installation can read, on any device."""
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
    """Raises ModelError for checkpoints that cannot be served with these settings."""
    check_readable(found)
    if num_shards > 1:
        raise ModelError(
            f"{found}, and such weights cannot be split over {num_shards} shards; use --num-shard 1, or the "
            "unquantized model"
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
    except (ImportError, ValueError):  # the package's parent is not installed
        return False
