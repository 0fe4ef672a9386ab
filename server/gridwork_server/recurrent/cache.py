"""The cache that a model's layers get in place of Transformers': their states stay in the pool.

A layer asks its cache for a state, calls a function for the heavy part, and gives the new state back. Here it gets no
state, and the function (`functions.py`) uses the pool instead, at the place that the layer has asked for last.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache

from gridwork_server.errors import PathError
from gridwork_server.recurrent.operations import Recurrence, StateKey, Tensors


class StateContext(Protocol):
    """Computes the operations with states of one forward pass."""

    def recur(self, key: StateKey, operation: Recurrence, tensors: Tensors) -> torch.Tensor:
        """See StatePool.recur."""


class StateCache(Cache):
    """The cache of one forward pass. Raises PathError for layers that keep their states by other means."""

    def __init__(self, context: StateContext) -> None:
        super().__init__(layers=[])
        self._context = context
        self._place: dict[bool, tuple[int, int]] = {}
        """Layer and index of the state that was asked for last, by `is_conv`."""
        self._unused: dict[bool, tuple[int, int]] = {}
        """Places that no operation has used since a layer has asked for them, by `is_conv`."""
        self._calls: Counter[tuple[int, int, bool]] = Counter()
        self._nothing = torch.zeros(0)

    # --- what layers call ------------------------------------------------------------------------------------------

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """Returns None: a layer then computes as at the start of a sequence."""
        self._ask(True, layer_idx, state_idx)

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """See get_conv_state."""
        self._ask(False, layer_idx, state_idx)

    def update_conv_state(
        self, conv_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **_: Any
    ) -> torch.Tensor:
        """Returns the new inputs `[1, C, T]`, without those of former steps, which the operation reads itself."""
        self._ask(True, layer_idx, state_idx)
        return conv_states

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **_: Any
    ) -> torch.Tensor:
        """Takes the state of an operation, which has written it already."""
        if self._place.get(False) != (layer_idx, state_idx) or False in self._unused:
            raise PathError(f"layer {layer_idx} computes its recurrent state by code of its own")
        return recurrent_states

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns keys and values as they are: the attention function writes them into the paged cache."""
        return key_states, value_states

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """False: see get_conv_state."""
        return False

    def is_recording_past(self, layer_idx: int | None = None) -> bool:
        """False: the pool keeps one state of each sequence."""
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: positions are always given."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Sizes of a mask, which our attention function does not take."""
        return query_length, 0

    # --- what the functions call -----------------------------------------------------------------------------------

    def recur(self, is_conv: bool, operation: Recurrence, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes an operation at the place that its layer has asked for. Returns its result, and an empty tensor in
        the place of the new state."""
        place = self._place.get(is_conv)
        if place is None:
            raise PathError(f"`{operation.name}` is computed without a state")
        self._unused.pop(is_conv, None)
        self._calls[*place, is_conv] += 1
        key = StateKey(*place, is_conv, self._calls[*place, is_conv] - 1)
        return self._context.recur(key, operation, tensors), self._nothing

    def check_all_used(self) -> None:
        """Raises PathError when a layer has asked for a state that no operation has used."""
        for is_conv, (layer, _) in self._unused.items():
            what = "convolution" if is_conv else "recurrent state"
            raise PathError(f"layer {layer} computes its {what} by code of its own")

    def _ask(self, is_conv: bool, layer_idx: int, state_idx: int) -> None:
        place = (layer_idx, state_idx)
        if self._unused.get(is_conv, place) != place:
            self.check_all_used()
        self._place[is_conv] = self._unused[is_conv] = place


_active: list[StateCache] = []
"""The cache of the forward pass that runs, if it is one with states. A model runs in one thread at a time."""


def active() -> StateCache | None:
    """The cache of the forward pass that runs; None when its layers keep states by themselves."""
    return _active[-1] if _active else None


@contextmanager
def used(cache: StateCache) -> Iterator[StateCache]:
    """Makes a cache the active one within the context, at whose end all states must have been used."""
    _active.append(cache)
    try:
        yield cache
        cache.check_all_used()
    finally:
        _active.pop()
