"""Caches which tokenizer a folder needs, so that later starts need not ask Transformers, which takes long.

The launcher reads these files too (`launcher/src/model/verdict.rs`), to start without this program.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Increase it, here and in the launcher, when the content's meaning changes.
FORMAT = 1

_IRRELEVANT_SUFFIXES = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".npz"),
    *(".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".pdf"),
}
"""Suffixes of files that a tokenizer does not depend on."""


@dataclass(frozen=True)
class TokenizerChoice:
    """The tokenizer to use for a folder."""

    path: Path | None
    """Folder of a tokenizer that was made; None for the folder's own tokenizer.json."""
    encodes: bool
    """True if it turns text into tokens."""


def tokenizer_files(folder: Path) -> list[Path]:
    """Files that a tokenizer may depend on, sorted by name."""
    files = (file for file in folder.iterdir() if file.is_file())
    return sorted(file for file in files if file.suffix.lower() not in _IRRELEVANT_SUFFIXES)


def transformers_version() -> str:
    """Version of Transformers, read without importing it, which takes seconds."""
    from importlib.metadata import version

    return version("transformers")


def read(folder: Path, cache_dir: Path, trust_remote_code: bool, code_revision: str | None) -> TokenizerChoice | None:
    """Reads the choice; None when there is none, or when its circumstances have changed."""
    try:
        content = json.loads(_path(folder, cache_dir).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    circumstances = _circumstances(folder, trust_remote_code, code_revision)
    if not isinstance(content, dict) or {**content, **circumstances} != content:
        return None
    path = content.get("tokenizer_path")
    return TokenizerChoice(None if path is None else Path(path), bool(content.get("tokenizer_encodes")))


def write(
    choice: TokenizerChoice, folder: Path, cache_dir: Path, trust_remote_code: bool, code_revision: str | None
) -> None:
    """Writes the choice. If that fails, the next start finds it out again."""
    content = _circumstances(folder, trust_remote_code, code_revision)
    content |= {
        "tokenizer_path": None if choice.path is None else str(choice.path),
        "tokenizer_encodes": choice.encodes,
    }
    path = _path(folder, cache_dir)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content), encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)


def _circumstances(folder: Path, trust_remote_code: bool, code_revision: str | None) -> dict[str, Any]:
    """Circumstances that the choice holds for."""
    stats = [(file.name, file.stat()) for file in tokenizer_files(folder)]
    return {
        "format": FORMAT,
        "folder": str(folder.absolute()),
        "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
        "transformers": transformers_version(),
        "trust_remote_code": trust_remote_code,
        "code_revision": code_revision,
    }


def _path(folder: Path, cache_dir: Path) -> Path:
    return cache_dir / "tokenizers" / "verdicts" / f"{_fnv1a(str(folder.absolute()).encode()):016x}.json"


def _fnv1a(data: bytes) -> int:
    """64-bit FNV-1a hash, which is easy to compute in the launcher too."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value
