"""Reads parts of tensors from a model folder's safetensors files, under the names that the model has for them."""

import json
import re
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from gridwork_server.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class WeightFiles:
    """The tensors of a model folder. A context manager, which keeps the files open."""

    def __init__(self, path: Path, model: "PreTrainedModel") -> None:
        """model: gives the names to look for; Transformers' own renamings are applied. Raises ModelError."""
        self._path = path
        self._files: dict[str, Any] = {}
        self._places: dict[str, tuple[str, str]] = {}
        """By the model's name: file, and name in it."""
        self.unused: list[str] = []
        """Names in the files that the model has nothing for."""
        rename = _renaming(model)
        ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
        for file in self._file_names():
            for key in self._open(file).keys():  # noqa: SIM118 (not a mapping)
                name = rename(key)
                if name is not None:
                    self._places[name] = (file, key)
                elif not any(pattern.search(key) for pattern in ignored):
                    self.unused.append(key)

    def __enter__(self) -> "WeightFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def shape(self, name: str) -> list[int]:
        """Shape of the whole tensor."""
        file, key = self._places[name]
        return list(self._files[file].get_slice(key).get_shape())

    def read(self, name: str, dim: int = 0, part: tuple[int, int] | None = None) -> torch.Tensor:
        """The tensor, or its indices `part[0]` up to `part[1]` along `dim` (0 or 1), in the file's dtype."""
        file, key = self._places[name]
        if part is None:
            return self._files[file].get_tensor(key)
        tensor = self._files[file].get_slice(key)
        chosen = slice(*part)
        return (tensor[chosen] if dim == 0 else tensor[:, chosen]).contiguous()

    def _file_names(self) -> list[str]:
        index = self._path / "model.safetensors.index.json"
        if index.is_file():
            try:
                return sorted(set(json.loads(index.read_text())["weight_map"].values()))
            except (ValueError, KeyError, AttributeError) as error:
                raise ModelError(f"{index} is damaged ({error!r}); download it again") from None
        if (self._path / "model.safetensors").is_file():
            return ["model.safetensors"]
        raise ModelError(
            f"{self._path} has neither model.safetensors nor model.safetensors.index.json; the folder is incomplete"
        )

    def _open(self, file: str) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            self._files[file] = safe_open(self._path / file, framework="pt")
        except SafetensorError as error:
            raise ModelError(f"the weights in {self._path / file} are damaged ({error}); download them again") from None
        except OSError as error:
            raise ModelError(
                f"{self._path / file} cannot be read ({error}); the folder is incomplete, download it again"
            ) from None
        return self._files[file]


def _renaming(model: "PreTrainedModel") -> Any:
    """Function from a name in the files to the model's name, None when it has none."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    names = model.state_dict()

    def rename(key: str) -> str | None:
        name, converter = rename_source_key(key, renamings, converters, model.base_model_prefix, names)
        if name not in names and key in names:
            return key
        # A tensor that must be merged with others first cannot be read in parts: it counts as missing.
        return name if name in names and converter is None else None

    return rename
