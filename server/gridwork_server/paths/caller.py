"""Calls a model's `forward()` with what it takes, and finds logits and cache in what it returns."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache

from gridwork_server.errors import PathError
from gridwork_server.lengths.call_lengths import CallLengths
from gridwork_server.paths.cache_tree import CacheSpec, Sample, spec_of
from gridwork_server.paths.module_state import ModuleState

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


Within = Callable[[], AbstractContextManager[None]]

_SHORT = 5
"""Tokens of the shortest input whose cache is looked at."""


@dataclass(frozen=True)
class CacheProbe:
    """What was found out about a model's caches."""

    alone: Sample
    longer: Sample
    spec: CacheSpec | None
    """None when it was not asked for."""
    more_tokens: int
    """How many tokens the second has more than the first, at most."""


class Caller:
    """The signature of one model's `forward()`."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model, self.device = model, device
        self.lengths: CallLengths | None = None
        """What of the model depends on how many tokens are computed together."""
        self.parameters = inspect.signature(model.forward).parameters
        self._takes_any = any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())
        self._keeps_mask: bool | None = None
        self._module_state: ModuleState | None = None
        self._name_of_cache = ""
        self._makes_cache = False
        """Whether the model wants to be given an empty cache at first, as `generate()` does, and returns none."""
        self.cache_names = [name for name in _CACHE_NAMES if name in self.parameters]

    def takes(self, name: str) -> bool:
        """Whether `forward()` names an argument so."""
        return name in self.parameters

    def offset(self, num_prompt: np.ndarray) -> np.ndarray:
        """How many tokens of a sequence, besides those in its cache, come before the next one. int64 [B] each."""
        return np.zeros_like(num_prompt)

    def first_tokens(self, num_first: int) -> int:
        """Tokens of the first call that `generate()` makes for a sequence, of `num_first` that it knows then."""
        return num_first

    def plain(self, tokens: np.ndarray, num_prompt: int) -> torch.Tensor:
        """Logits `[num_tokens, vocab_size]` of a whole sequence, integers `[num_tokens]`, without a cache, from what
        the model's own code makes ready for generating. Some models give those of the last token only."""
        input_ids = self._row(tokens)
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
        return logits_of(self.model(**inputs, **self._options(use_cache=False)))[0]

    def first(
        self, tokens: np.ndarray, num_prompt: int, keep_all: bool, within: Within = nullcontext
    ) -> tuple[torch.Tensor, Any]:
        """Logits `[num_tokens or 1, vocab_size]` and cache of a sequence's first tokens, integers `[num_tokens]`.
        within: what the call is made in."""
        input_ids = self._row(tokens)
        positions = torch.arange(len(tokens), device=self.device)[None]
        with within():
            logits, cache = self.with_cache(input_ids, None, torch.ones_like(input_ids), positions, keep_all)
        return logits[0], cache

    def probe(self, token: int, share: bool) -> CacheProbe:
        """Looks at the caches of a few short inputs."""
        tree = self.first(np.full(_SHORT, token), _SHORT, False)[1]
        alone = Sample.of(tree)
        longer = Sample.of(self.first(np.full(_SHORT + 2, token), _SHORT + 2, False)[1])
        if not share:
            return CacheProbe(alone, longer, None, 2)
        input_ids = torch.full((2, _SHORT), token, dtype=torch.int64, device=self.device)
        positions = torch.arange(_SHORT, device=self.device).expand(2, -1)
        pair = Sample.of(self.with_cache(input_ids, None, torch.ones_like(input_ids), positions, False)[1])
        decoded = Sample.of(self.next(np.array([token]), tree, np.array([_SHORT]))[1])
        return CacheProbe(alone, longer, spec_of(alone, longer, pair, decoded, _SHORT), 2)

    def next(self, tokens: np.ndarray, cache: Any, lengths: np.ndarray) -> tuple[torch.Tensor, Any]:
        """Computes one token of every sequence of a cache. tokens, lengths: int64 [B], the length of each sequence in
        the cache; shorter ones are padded on the left. Returns logits `[B, vocab_size]` and the cache."""
        positions = torch.from_numpy(lengths)[:, None].to(self.device)
        input_ids = torch.from_numpy(tokens)[:, None].to(self.device)
        logits, cache = self.with_cache(input_ids, cache, self._mask(lengths), positions, False)
        return logits[:, -1], cache

    def _mask(self, lengths: np.ndarray) -> torch.Tensor:
        """int64 `[B, longest + 1]`: 0 for padding on the left."""
        longest = int(lengths.max())
        mask = np.arange(longest + 1) >= (longest - lengths)[:, None]
        return torch.from_numpy(mask).to(torch.int64).to(self.device)

    def _row(self, tokens: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(tokens.astype(np.int64))[None].to(self.device)

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
    ) -> tuple[torch.Tensor, Any]:
        """Computes tokens that follow what is in a cache.

        input_ids: int64 `[batch, num_tokens]`; cache: None at first; attention_mask: int64 `[batch, num_cached +
        num_tokens]`, 0 for padding; positions: int64 `[batch, num_tokens]`; keep_all: whether all logits are wanted, or
        those of the last token. Returns logits `[batch, num_tokens or 1, vocab_size]` and the cache. Raises PathError
        when no cache comes back.
        """
        if self._module_state is None:
            self._module_state = ModuleState(self.model)
            logits, made = self._with_cache(input_ids, cache, attention_mask, positions, keep_all)
            self._module_state.find()
        else:
            cache = self._module_state.swap_in(cache)
            logits, made = self._with_cache(input_ids, cache, attention_mask, positions, keep_all)
        return logits, self._module_state.swap_out(made)

    def _with_cache(
        self,
        input_ids: torch.Tensor,
        cache: Any,
        attention_mask: torch.Tensor,
        positions: torch.Tensor,
        keep_all: bool,
    ) -> tuple[torch.Tensor, Any]:
        arguments: dict[str, Any] = {}
        if cache is not None and self._keeps_mask is None:
            self._keeps_mask = self._wants_mask_when_decoding(cache)
        if self.takes("attention_mask") and (cache is None or self._keeps_mask):
            arguments["attention_mask"] = attention_mask
        if self.takes("position_ids"):
            arguments["position_ids"] = positions
        if not keep_all and self.takes("logits_to_keep"):
            arguments["logits_to_keep"] = 1
        if cache is None and self._makes_cache:
            cache = DynamicCache(config=self.model.config)  # type: ignore[arg-type]
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
            return self._with_cache(input_ids, None, attention_mask, positions, keep_all)
        raise PathError("forward() returns no cache" if self.cache_names else "forward() takes no cache")

    def _wants_mask_when_decoding(self, cache: Any) -> bool:
        """Some models with recurrent state take a mask with the prompt only; what prepares their inputs drops it."""
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
