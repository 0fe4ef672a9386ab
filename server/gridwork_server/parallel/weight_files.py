"""Reads parts of tensors from a model folder's safetensors files, by the model's own names."""

import json
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from gridwork_server.checkpoint import quantized_tensors
from gridwork_server.errors import ModelError
from gridwork_server.parallel.plan import Part

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class WeightFiles:
    """The tensors of a model folder. A context manager, which keeps the files open.

    Most tensors are read in parts. Some are made from several stored tensors, such as experts that are saved one by
    one. Transformers' own code makes these whole before a part is taken.
    """

    def __init__(self, path: Path, model: "PreTrainedModel") -> None:
        """model: gives the names to look for; Transformers' renamings are applied. Raises ModelError, also for weights
        that turn out to be quantized."""
        self._path = path
        self._model = model
        self._files: dict[str, Any] = {}
        self._places: dict[str, tuple[str, str]] = {}
        """File and stored name of each tensor, by the model's name."""
        self._conversions: dict[str, _Conversion] = {}
        """Conversion that makes a tensor, by the model's name."""
        self._converted: dict[str, torch.Tensor] = {}
        """Converted tensors that have not been read yet."""
        self.unused: list[str] = []
        """Stored names that the model does not use."""
        self._find(_Names(model))

    def __enter__(self) -> "WeightFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._places or name in self._conversions

    def shape(self, name: str) -> list[int]:
        """Shape of the whole tensor."""
        if name in self._conversions:
            return list(self._convert(name).shape)
        file, key = self._places[name]
        return list(self._files[file].get_slice(key).get_shape())

    def read(self, name: str, part: Part | None = None) -> torch.Tensor:
        """The tensor, or a part of it, in the file's dtype and in memory of its own."""
        if name in self._conversions:
            whole = self._convert(name)
            del self._converted[name]
            return whole if part is None else part.of(whole).clone(memory_format=torch.contiguous_format)
        file, key = self._places[name]
        if part is None:
            return self._files[file].get_tensor(key)
        tensor = self._files[file].get_slice(key)
        pieces = [tensor[(slice(None),) * part.dim + (slice(*chosen),)] for chosen in part.ranges]
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=part.dim)).contiguous()

    def _find(self, names: "_Names") -> None:
        ignored = [re.compile(pattern) for pattern in self._model._keys_to_ignore_on_load_unexpected or ()]
        keys = [(key, file) for file in self._file_names() for key in self._open(file).keys()]  # noqa: SIM118
        for key, file in names.in_order(keys):
            targets, converter, pattern = names.find(key)
            if not targets:
                if not any(ignore.search(key) for ignore in ignored):
                    self.unused.append(key)
            elif converter is None:
                self._places[targets[0]] = (file, key)
            else:
                conversion = self._conversions.setdefault(targets[0], _Conversion(targets[0], converter))
                conversion.sources.append((pattern, file, key))
                for target in targets:
                    self._conversions[target] = conversion
        self._refuse_quantized(names, keys)

    def _refuse_quantized(self, names: "_Names", keys: list[tuple[str, str]]) -> None:
        """Refuses quantized weights, whatever the folder's config says."""
        dtypes = ((key, self._files[file].get_slice(key).get_dtype()) for key, file in keys)
        quantized_tensors.check_dtypes(dtypes, names.tensors, self._path)
        quantized_tensors.check_unused(self.unused, [key for key, _file in keys], self._model, self._path)

    def _convert(self, name: str) -> torch.Tensor:
        if name not in self._converted:
            conversion = self._conversions[name]
            try:
                made = conversion.run(self._model, lambda file, key: self._files[file].get_tensor(key))
            except Exception as error:
                raise ModelError(
                    f"{name} cannot be made of {conversion.sources[0][2]} and {len(conversion.sources) - 1} more "
                    f"tensors in {self._path} ({error}); the folder is incomplete, download the model again"
                ) from error
            if name not in made:
                raise ModelError(
                    f"{self._path} has {conversion.sources[0][2]} and its like, which do not give {name}; the "
                    "folder is incomplete, download the model again"
                )
            self._converted |= {other: value for other, value in made.items() if other in self._conversions}
        return self._converted[name]

    def _file_names(self) -> list[str]:
        index = self._path / "model.safetensors.index.json"
        if index.is_file():
            try:
                return sorted(set(json.loads(index.read_text())["weight_map"].values()))
            except (ValueError, KeyError, AttributeError, RecursionError) as error:
                raise ModelError(f"{index} is damaged ({error!r}); download it again") from None
        if (self._path / "model.safetensors").is_file():
            return ["model.safetensors"]
        raise ModelError(
            f"{self._path} has neither model.safetensors nor model.safetensors.index.json; the folder is incomplete, "
            "download the model again"
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


@dataclass
class _Conversion:
    """A conversion by Transformers of stored tensors into one or several tensors of the model."""

    target: str
    """Model's name of the first tensor that it makes."""
    converter: Any
    sources: list[tuple[str, str, str]] = field(default_factory=list)
    """Converter's pattern, file and stored name of each source, in the converter's order."""

    def run(self, model: "PreTrainedModel", read: Callable[[str, str], torch.Tensor]) -> dict[str, torch.Tensor]:
        """Runs the conversion; returns whole tensors by the model's name."""
        converter = deepcopy(self.converter)
        for pattern, file, key in self.sources:
            converter.add_tensor(self.target, key, pattern, partial(read, file, key))
        made = converter.convert(self.target, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


class _Names:
    """Maps the names in the files to the model's names, by Transformers' own rules."""

    def __init__(self, model: "PreTrainedModel") -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        transforms = get_model_conversion_mapping(model)
        self._renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
        self._converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
        self._by_pattern = {pattern: one for one in self._converters for pattern in one.source_patterns}
        self._prefix = model.base_model_prefix
        self._names = model.state_dict()

    @staticmethod
    def in_order(keys: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Sorts (name, file) pairs as Transformers does: the tenth expert comes after the second."""
        from transformers.core_model_loading import dot_natural_key

        return sorted(keys, key=lambda key: dot_natural_key(key[0]))

    def find(self, key: str) -> tuple[list[str], Any, str]:
        """The model's names for the tensors made from this one, with the converter and its pattern if one applies."""
        from transformers.core_model_loading import rename_source_key

        name, pattern = rename_source_key(key, self._renamings, self._converters, self._prefix, self._names)
        if name not in self._names and key in self._names:
            name, pattern = rename_source_key(key, [], [], self._prefix, self._names)
        if name not in self._names:
            return [], None, ""
        if pattern is None:
            return [name], None, ""
        converter = self._by_pattern[pattern]
        first, *others = converter.target_patterns
        targets = [name, *(name.replace(first, other) for other in others)]
        return [target for target in targets if target in self._names], converter, pattern

    def tensors(self, key: str) -> list[torch.Tensor]:
        """The model's tensors that are made from this stored tensor."""
        return [self._names[target] for target in self.find(key)[0]]


def check_dtypes(path: Path, model: "PreTrainedModel", known: frozenset[str] = frozenset()) -> None:
    """Raises ModelError when a floating-point parameter of a loaded model was made of integers or 8-bit numbers. known:
    stored dtypes that were converted, not just cast."""
    plain = quantized_tensors.PLAIN_DTYPES | known
    suspects = [(name, dtype) for name, dtype in stored_dtypes(path) if dtype not in plain]
    if suspects:
        quantized_tensors.check_dtypes(suspects, _Names(model).tensors, path)


def stored_dtypes(path: Path) -> list[tuple[str, str]]:
    """Names and dtypes of the tensors in a folder's files."""
    return [(name, dtype) for name, dtype, _shape in stored_tensors(path)]


def stored_tensors(path: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Names, dtypes and shapes of the tensors in a folder's safetensors files. Reads only the files' headers. Raises
    ModelError."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118
                    stored = opened.get_slice(key)
                    yield key, stored.get_dtype(), list(stored.get_shape())
        except SafetensorError as error:
            raise ModelError(f"the weights in {file} are damaged ({error}); download them again") from None
        except OSError as error:
            raise ModelError(f"{file} cannot be read ({error}); download it again") from None
