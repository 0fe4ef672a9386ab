"""Caches the import structure of Transformers, which otherwise reads all of its 1,700 or so files at every import.

The structure only changes with the installation. `python -m gridwork_server.startup.import_structure` writes it to a
file beside this one (`make python` does so), and `cached_structure` makes Transformers use that file.
"""

import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

CACHE_FILE = Path(__file__).with_name("_import_structure.json")

_MODULE = "transformers.utils.import_utils"


@contextmanager
def cached_structure() -> Iterator[None]:
    """Makes an import of Transformers use the cached structure, if it is of this installation, within a `with`
    block."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def write_cache() -> None:
    """Writes the cache, which reads all files of Transformers."""
    from transformers.utils.import_utils import define_import_structure

    models = _models()
    assert models is not None
    found: Any = getattr(define_import_structure, "__wrapped__", define_import_structure)(str(models))
    structure = [
        [sorted(backends), {module: sorted(names) for module, names in modules.items()}]
        for backends, modules in found.items()
    ]
    CACHE_FILE.write_text(json.dumps({"installation": _installation(models), "structure": structure}))


def _models() -> Path | None:
    spec = importlib.util.find_spec("transformers")
    return Path(spec.origin).parent / "models" if spec and spec.origin else None


def _installation(models: Path) -> list[Any]:
    """Fingerprint that changes with the version, and when files are added to the models' folder or removed from it."""
    times = [entry.stat().st_mtime_ns for entry in models.iterdir() if entry.name != "__pycache__"]
    return [str(models), len(times), max(times)]


class _Finder:
    """Replaces `define_import_structure` of one module when that module is imported."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == _MODULE else None
        if spec is None or spec.loader is None or not CACHE_FILE.exists():
            return None
        spec.loader = _CachedLoader(spec.loader)
        return spec


class _CachedLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        plain: Any = module.__dict__["define_import_structure"]
        cached = _read_cache()

        def define_import_structure(module_path: Any, prefix: str | None = None) -> Any:
            path = Path(module_path)
            if cached is None or (path.parent if path.name == "__init__.py" else path) != cached[0]:
                return plain(module_path, prefix)
            start = f"{prefix}." if prefix else ""
            return {
                frozenset(backends): {f"{start}{name}": set(names) for name, names in modules.items()}
                for backends, modules in cached[1]
            }

        module.__dict__["define_import_structure"] = define_import_structure


def _read_cache() -> tuple[Path, Any] | None:
    try:
        cache = json.loads(CACHE_FILE.read_text())
        models = Path(cache["installation"][0])
        return (models, cache["structure"]) if cache["installation"] == _installation(models) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


if __name__ == "__main__":
    write_cache()
