"""Calls a model's `forward()` with the arguments that it takes, and finds logits and cache in its output."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache

from gridwork_server.errors import PathError
from gridwork_server.lengths.call_lengths import CallLengths
from gridwork_server.paths.cache_tree import CacheSnapshot, CacheSpec, spec_of
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
"""Names of the cache in models' arguments and outputs over the years."""


Within = Callable[[], AbstractContextManager[None]]

_SHORT = 5
"""Number of tokens of the shortest input whose cache is examined."""


@dataclass(frozen=True)
class CacheProbe:
    """Findings about a model's caches."""

    alone: CacheSnapshot
    longer: CacheSnapshot
    spec: CacheSpec | None
    """Structure of the cache; None when it was not requested."""
    more_tokens: int
    """Maximum number of tokens that the second sample has more than the first."""


class _Inputs(NamedTuple):
    """Inputs of a call with a cache; see Caller.with_cache."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    positions: torch.Tensor
    keep_all: bool


class Caller:
    """Calls one model's `forward()` by its signature."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model, self.device = model, device
        self.lengths: CallLengths | None = None
        """Modules of the model that depend on how many tokens are computed together; None when there are none."""
        self.parameters = inspect.signature(model.forward).parameters
        self._takes_any = any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())
        self._keeps_mask: bool | None = None
        self._module_state: ModuleState | None = None
        self._name_of_cache = ""
        self._makes_cache = False
        """True if the model must be given an empty cache at first, as `generate()` does, and returns none by itself."""
        self.cache_names = [name for name in _CACHE_NAMES if name in self.parameters]

    def takes(self, name: str) -> bool:
        """Tells whether `forward()` has an argument of this name."""
        return name in self.parameters

    def offset(self, num_prompt: np.ndarray) -> np.ndarray:
        """Number of a sequence's tokens that precede the next one without being in its cache. int64 [B], as
        num_prompt."""
        return np.zeros_like(num_prompt)

    def first_tokens(self, num_first: int) -> int:
        """Number of tokens in the first call that `generate()` makes for a sequence with `num_first` known tokens."""
        return num_first

    def plain(self, tokens: np.ndarray, num_prompt: int) -> torch.Tensor:
        """Computes a whole sequence, integers `[num_tokens]`, without a cache, with the inputs that the model's own
        code prepares for generating. Returns logits `[num_tokens, vocab_size]`; some models give only the last
        token's."""
        input_ids = self._row(tokens)
        prepare = getattr(self.model, "prepare_inputs_for_generation", None)
        inputs: dict[str, Any] = {"input_ids": input_ids}
        mask = torch.ones_like(input_ids)
        if prepare is not None:
            positions = {"position_ids": self._positions(input_ids, mask)} if self.takes("position_ids") else {}
            try:
                inputs = dict(prepare(input_ids, attention_mask=mask, use_cache=False, **positions))
            except Exception:  # a model's own code may raise anything
                inputs = {"input_ids": input_ids, "attention_mask": mask}
        for name in (*_CACHE_NAMES, "use_cache"):
            inputs.pop(name, None)
        inputs = {name: value for name, value in inputs.items() if value is not None and self._may_take(name)}
        return logits_of(self.model(**inputs, **self._options(use_cache=False)))[0]

    def first(
        self, tokens: np.ndarray, num_prompt: int, keep_all: bool, within: Within = nullcontext
    ) -> tuple[torch.Tensor, Any]:
        """Computes a sequence's first tokens, integers `[num_tokens]`. within: makes the context for the call. Returns
        logits `[num_tokens or 1, vocab_size]` and the cache."""
        input_ids = self._row(tokens)
        positions = torch.arange(len(tokens), device=self.device)[None]
        with within():
            logits, cache = self.with_cache(input_ids, None, torch.ones_like(input_ids), positions, keep_all)
        return logits[0], cache

    def probe(self, token: int, share: bool) -> CacheProbe:
        """Examines the caches of a few short inputs."""
        tree = self.first(np.full(_SHORT, token), _SHORT, False)[1]
        alone = CacheSnapshot.of(tree)
        longer = CacheSnapshot.of(self.first(np.full(_SHORT + 2, token), _SHORT + 2, False)[1])
        if not share:
            return CacheProbe(alone, longer, None, 2)
        input_ids = torch.full((2, _SHORT), token, dtype=torch.int64, device=self.device)
        positions = torch.arange(_SHORT, device=self.device).expand(2, -1)
        pair = CacheSnapshot.of(self.with_cache(input_ids, None, torch.ones_like(input_ids), positions, False)[1])
        decoded = CacheSnapshot.of(self.next(np.array([token]), tree, np.array([_SHORT]))[1])
        return CacheProbe(alone, longer, spec_of(alone, longer, pair, decoded, _SHORT), 2)

    def next(self, tokens: np.ndarray, cache: Any, lengths: np.ndarray) -> tuple[torch.Tensor, Any]:
        """Computes one token of every sequence in a cache. tokens: int64 [B]; lengths: int64 [B], each sequence's
        length in the cache, where shorter ones are padded on the left. Returns logits `[B, vocab_size]` and the
        cache."""
        positions = torch.from_numpy(lengths)[:, None].to(self.device)
        input_ids = torch.from_numpy(tokens)[:, None].to(self.device)
        logits, cache = self.with_cache(input_ids, cache, self._mask(lengths), positions, False)
        return logits[:, -1], cache

    def _mask(self, lengths: np.ndarray) -> torch.Tensor:
        """Attention mask, int64 `[B, longest + 1]`: 0 for padding on the left."""
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
        """Computes tokens that follow those in a cache.

        input_ids: int64 `[batch, num_tokens]`; cache: None at first; attention_mask: int64 `[batch, num_cached +
        num_tokens]`, 0 for padding; positions: int64 `[batch, num_tokens]`; keep_all: return the logits of all tokens,
        not only of the last. Returns logits `[batch, num_tokens or 1, vocab_size]` and the cache. Raises PathError when
        the model returns no cache.
        """
        inputs = _Inputs(input_ids, attention_mask, positions, keep_all)
        if self._module_state is None:
            self._module_state = ModuleState(self.model)
            logits, made = self._with_cache(inputs, cache)
            self._module_state.find()
        else:
            logits, made = self._with_cache(inputs, self._module_state.swap_in(cache))
        return logits, self._module_state.swap_out(made)

    def _with_cache(self, inputs: _Inputs, cache: Any) -> tuple[torch.Tensor, Any]:
        arguments: dict[str, Any] = {}
        if cache is not None and self._keeps_mask is None:
            self._keeps_mask = self._wants_mask_when_decoding(cache)
        if self.takes("attention_mask") and (cache is None or self._keeps_mask):
            arguments["attention_mask"] = inputs.attention_mask
        if self.takes("position_ids"):
            arguments["position_ids"] = inputs.positions
        if not inputs.keep_all and self.takes("logits_to_keep"):
            arguments["logits_to_keep"] = 1
        if cache is None and self._makes_cache:
            cache = DynamicCache(config=self.model.config)  # type: ignore[arg-type]
        if cache is not None:
            arguments[self._name_of_cache] = cache
        out = self.model(input_ids=inputs.input_ids, **arguments, **self._options(use_cache=True))
        if cache is not None:
            returned = self._cache(out, self._name_of_cache)
            # A cache that is changed in place need not be returned.
            return logits_of(out), cache if returned is None and isinstance(cache, Cache) else returned
        found = [(name, self._cache(out, name)) for name in self.cache_names]
        for name, returned in found:
            if returned is not None:
                self._name_of_cache = name
                return logits_of(out), returned
        if "past_key_values" in self.cache_names and not isinstance(out, tuple):
            self._name_of_cache, self._makes_cache = "past_key_values", True
            return self._with_cache(inputs, None)
        raise PathError("forward() returns no cache" if self.cache_names else "forward() takes no cache")

    def _wants_mask_when_decoding(self, cache: Any) -> bool:
        """Tells whether decode steps take a mask. Some models with recurrent state take one with the prompt only: the
        method that prepares their inputs then drops it."""
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
        except Exception:  # a model's own code may raise anything
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
    """Finds the logits `[batch, num_tokens, vocab_size]` in a model's output."""
    logits = out if isinstance(out, torch.Tensor) else getattr(out, "logits", None)
    if logits is None and isinstance(out, tuple | list) and out:
        logits = out[0]
    if logits is None and isinstance(out, dict):
        logits = out.get("logits")
    if not isinstance(logits, torch.Tensor) or logits.dim() != 3:
        raise PathError("forward() returns no logits of shape [batch, tokens, vocabulary]")
    return logits
