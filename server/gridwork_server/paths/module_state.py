"""Saves and restores sequence state that modules keep in their own attributes instead of in a cache."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass
class _CacheAndModules:
    """A cache, and the values of the modules' attributes that belong to it."""

    cache: Any
    attributes: list[Any]


class ModuleState:
    """Attributes of modules that hold a sequence's state. They are set before a call and read after it."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self._before = [dict(self._held(module)) for module in self._modules]
        self._places: list[tuple[nn.Module, str]] = []
        self._initial: list[Any] = []

    @staticmethod
    def _held(module: nn.Module) -> dict[str, Any]:
        return {name: value for name, value in vars(module).items() if value is None or isinstance(value, torch.Tensor)}

    def find(self) -> None:
        """Finds the attributes that the first call has changed."""
        for module, before in zip(self._modules, self._before, strict=True):
            for name, value in self._held(module).items():
                if isinstance(value, torch.Tensor) and name in before and before[name] is not value:
                    self._places.append((module, name))
                    self._initial.append(before[name])

    def swap_in(self, cache: Any) -> Any:
        """Sets the modules' attributes to the values that belong to a cache, and returns the cache alone."""
        if not self._places:
            return cache
        attributes = self._initial if cache is None else cache.attributes
        for (module, name), value in zip(self._places, attributes, strict=True):
            setattr(module, name, value)
        return None if cache is None else cache.cache

    def swap_out(self, cache: Any) -> Any:
        """Returns the cache together with the modules' present values."""
        if not self._places:
            return cache
        return _CacheAndModules(cache, [getattr(module, name) for module, name in self._places])
