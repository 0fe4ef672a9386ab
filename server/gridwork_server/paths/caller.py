"""Calls a model's `forward()` with what it takes, and finds logits and cache in what it returns."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache

from gridwork_server.paths.base import PathError

_CACHE_NAMES = (
    "past_key_values",
    "cache_params",
    "state",
    "past",
    "layer_past",
    "past_key_value",
    "mems",
    "past_buckets_states",
)
"""What models have called their cache over the years, as argument and in what they return."""


@dataclass
class _CacheAndModules:
    """A cache, and what the model's modules keep of a sequence in attributes of their own."""

    cache: Any
    attributes: list[Any]


class _ModuleState:
    """Attributes of modules that hold a sequence's state: they are swapped in before a call, and out after it."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self._before = [dict(self._held(module)) for module in self._modules]
        self._places: list[tuple[nn.Module, str]] = []
        self._initial: list[Any] = []

    @staticmethod
    def _held(module: nn.Module) -> dict[str, Any]:
        return {name: value for name, value in vars(module).items() if value is None or isinstance(value, torch.Tensor)}

    def find(self) -> None:
        """Compares with how it was before the first call."""
        for module, before in zip(self._modules, self._before, strict=True):
            for name, value in self._held(module).items():
                if isinstance(value, torch.Tensor) and name in before and before[name] is not value:
                    self._places.append((module, name))
                    self._initial.append(before[name])

    def swap_in(self, cache: Any) -> Any:
        """Gives the modules what belongs to a cache, and returns the cache alone."""
        if not self._places:
            return cache
        attributes = self._initial if cache is None else cache.attributes
        for (module, name), value in zip(self._places, attributes, strict=True):
            setattr(module, name, value)
        return None if cache is None else cache.cache

    def swap_out(self, cache: Any) -> Any:
        """Returns a cache with what the modules have of it now."""
        if not self._places:
            return cache
        return _CacheAndModules(cache, [getattr(module, name) for module, name in self._places])


class Caller:
    """The signature of one model's `forward()`."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parameters = inspect.signature(model.forward).parameters
        self._takes_any = any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())
        self._keeps_mask: bool | None = None
        self._module_state: _ModuleState | None = None
        self._name_of_cache = ""
        self._makes_cache = False
        """Whether the model wants to be given an empty cache at first, as `generate()` does, and returns none."""
        self.cache_names = [name for name in _CACHE_NAMES if name in self.parameters]

    def takes(self, name: str) -> bool:
        """Whether `forward()` names an argument so."""
        return name in self.parameters

    def plain(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits `[batch, num_tokens, vocab_size]` of whole sequences, int64 `[batch, num_tokens]`, without a cache, from
        what the model's own code makes ready for generating."""
        prepare = getattr(self.model, "prepare_inputs_for_generation", None)
        inputs: dict[str, Any] = {"input_ids": input_ids}
        mask = torch.ones_like(input_ids)
        if prepare is not None:
            positions = {"position_ids": self._positions(input_ids, mask)} if self.takes("position_ids") else {}
            try:
                inputs = dict(prepare(input_ids, attention_mask=mask, use_cache=False, **positions))
            except Exception:  # custom code, of whatever kind
                inputs = {"input_ids": input_ids, "attention_mask": mask}
        for name in (*_CACHE_NAMES, "use_cache"):
            inputs.pop(name, None)
        inputs = {name: value for name, value in inputs.items() if value is not None and self._may_take(name)}
        return logits_of(self.model(**inputs, **self._options(use_cache=False)))

    def _positions(self, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        prepare = getattr(self.model, "_prepare_position_ids_for_generation", None)
        if prepare is not None:
            return prepare(input_ids, {"attention_mask": mask})
        return torch.arange(input_ids.shape[1], device=input_ids.device)[None].expand_as(input_ids)

    def with_cache(
        self,
        input_ids: torch.Tensor,
        cache: Any,
        attention_mask: torch.Tensor,
        positions: torch.Tensor,
        keep_all: bool,
        more: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, Any]:
        """Computes tokens that follow what is in a cache.

        input_ids: int64 `[batch, num_tokens]`; cache: None at first; attention_mask: int64 `[batch, num_cached +
        num_tokens]`, 0 for padding; positions: int64 `[batch, num_tokens]`; keep_all: whether all logits are wanted, or
        those of the last token. Returns logits `[batch, num_tokens or 1, vocab_size]` and the cache. Raises PathError
        when no cache comes back.
        """
        if self._module_state is None:
            self._module_state = _ModuleState(self.model)
            logits, made = self._with_cache(input_ids, cache, attention_mask, positions, keep_all, more or {})
            self._module_state.find()
        else:
            cache = self._module_state.swap_in(cache)
            logits, made = self._with_cache(input_ids, cache, attention_mask, positions, keep_all, more or {})
        return logits, self._module_state.swap_out(made)

    def _with_cache(
        self,
        input_ids: torch.Tensor,
        cache: Any,
        attention_mask: torch.Tensor,
        positions: torch.Tensor,
        keep_all: bool,
        more: dict[str, Any],
    ) -> tuple[torch.Tensor, Any]:
        arguments: dict[str, Any] = dict(more)
        if cache is not None and self._keeps_mask is None:
            self._keeps_mask = self._wants_mask_when_decoding(cache)
        if self.takes("attention_mask") and (cache is None or self._keeps_mask):
            arguments["attention_mask"] = attention_mask
        if self.takes("position_ids"):
            arguments["position_ids"] = positions
        if not keep_all and self.takes("logits_to_keep"):
            arguments["logits_to_keep"] = 1
        if cache is None and self._makes_cache:
            cache = DynamicCache(config=self.model.config)
        if cache is not None:
            arguments[self._name_of_cache] = cache
        out = self.model(input_ids=input_ids, **arguments, **self._options(use_cache=True))
        if cache is not None:
            returned = self._cache(out, self._name_of_cache)
            # What is changed in place need not come back.
            return logits_of(out), cache if returned is None and isinstance(cache, Cache) else returned
        found = [(name, self._cache(out, name)) for name in self.cache_names]
        for name, returned in found:
            if returned is not None:
                self._name_of_cache = name
                return logits_of(out), returned
        if "past_key_values" in self.cache_names and not isinstance(out, tuple):
            self._name_of_cache, self._makes_cache = "past_key_values", True
            return self._with_cache(input_ids, None, attention_mask, positions, keep_all, more)
        raise PathError("forward() returns no cache" if self.cache_names else "forward() takes no cache")

    def _wants_mask_when_decoding(self, cache: Any) -> bool:
        """Some models with recurrent state take a mask with the prompt only; what makes their inputs ready leaves it out."""
        prepare = getattr(self.model, "prepare_inputs_for_generation", None)
        if prepare is None:
            return True
        tokens = torch.ones(1, 2, dtype=torch.int64)
        try:
            inputs = prepare(
                tokens,
                attention_mask=torch.ones_like(tokens),
                use_cache=True,
                is_first_iteration=False,
                **{self._name_of_cache: cache},
            )
        except Exception:  # custom code, of whatever kind
            return True
        return inputs.get("attention_mask") is not None

    def _cache(self, out: Any, name: str) -> Any:
        if isinstance(out, tuple) and not hasattr(out, "_fields"):
            return out[1] if len(out) > 1 else None
        return getattr(out, name, None)

    def _may_take(self, name: str) -> bool:
        return self._takes_any or name in self.parameters

    def _options(self, use_cache: bool) -> dict[str, bool]:
        options = {"use_cache": use_cache, "return_dict": True}
        return {name: value for name, value in options.items() if self.takes(name) or (self._takes_any and use_cache)}


def logits_of(out: Any) -> torch.Tensor:
    """Logits `[batch, num_tokens, vocab_size]` in whatever a model returned."""
    logits = out if isinstance(out, torch.Tensor) else getattr(out, "logits", None)
    if logits is None and isinstance(out, tuple | list) and out:
        logits = out[0]
    if logits is None and isinstance(out, dict):
        logits = out.get("logits")
    if not isinstance(logits, torch.Tensor) or logits.dim() != 3:
        raise PathError("forward() gives no logits [batch, tokens, vocabulary]")
    return logits
