"""Connects a Transformers model with the paged cache: one attention function, registered by name.

A model's layers call the function with their queries, keys and values. The step comes through a keyword argument of
`forward()`; layers that do not pass it on get the step of the forward pass that runs.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

from gridwork_kernels.paged_attention import AttentionOptions, PagedAttention, PagedLayout
from gridwork_kernels.states import StateLayout
from gridwork_server.errors import PathError
from gridwork_server.recurrent.operations import Recurrence, StateKey, Tensors
from gridwork_server.recurrent.pool import StatePool, StateProbe

NAME = "gridwork_paged"
"""Name of the attention function in Transformers' registry."""

ARGUMENT = "gridwork_step"
"""Keyword argument of `forward()` that carries a step's context to every layer."""


LayerKey = tuple[int, int]
"""A layer's `layer_idx`, and the number of its call in a forward pass: some layers attend more than once."""


class StepContext(Protocol):
    """Computes the attention of layers in one forward pass."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        """query, key, value: `[num_tokens, heads, size]`; returns `[num_tokens, query heads, value size]`."""

    def recur(self, key: StateKey, operation: Recurrence, tensors: Tensors) -> torch.Tensor:
        """Computes an operation of a layer with a recurrent state. See StatePool.recur."""


@dataclass(frozen=True)
class LayerGeometry:
    """Shape of what one layer writes to the cache, and the kind of its attention."""

    num_heads: int
    num_kv_heads: int
    key_size: int
    value_size: int
    window: int
    has_softcap: bool = False
    has_sinks: bool = False
    source: "LayerKey | None" = None
    """The layer whose keys and values this one attends to; None: its own."""


@dataclass
class Probe(StateProbe):
    """Notes every layer's geometry while the model runs one token."""

    layers: dict[LayerKey, LayerGeometry] = field(default_factory=dict)
    calls: dict[int, int] = field(default_factory=dict)
    """Number of calls so far, by `layer_idx`."""
    _owners: dict[tuple[int, int], LayerKey] = field(default_factory=dict)
    _kept: list[torch.Tensor] = field(default_factory=list)
    """Keys and values of layers so far. They are kept so that no other layer's tensors get the same memory."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        if query.shape[1] % key.shape[1] != 0:
            raise PathError(f"layer {layer} has {query.shape[1]} query heads for {key.shape[1]} KV heads")
        if not query.shape[0] == key.shape[0] == value.shape[0]:
            raise PathError(f"layer {layer} attends to something other than the tokens")
        nth = self.calls.get(layer, 0)
        self.calls[layer] = nth + 1
        # Keys of one token get here without a copy: layers that share keys bring the same memory.
        place = key.data_ptr(), value.data_ptr()
        source = self._owners.get(place)
        self._owners.setdefault(place, (layer, nth))
        self._kept += [key, value]
        self.layers[layer, nth] = LayerGeometry(
            num_heads=query.shape[1],
            num_kv_heads=key.shape[1],
            key_size=key.shape[2],
            value_size=value.shape[2],
            window=options.window,
            has_softcap=options.softcap > 0,
            has_sinks=options.sinks is not None,
            source=source,
        )
        return value.new_zeros(query.shape[0], query.shape[1], value.shape[2])


@dataclass
class PagedStep:
    """Writes keys and values into the cache and attends to everything the sequences have there."""

    keys: dict[LayerKey, torch.Tensor]
    """Caches by layer, in the implementation's own shape."""
    values: dict[LayerKey, torch.Tensor]
    layout: PagedLayout
    implementations: dict[LayerKey, PagedAttention]
    chunks: dict[int, int] = field(default_factory=dict)
    """Positions in a chunk, by `layer_idx`, for layers that attend within chunks."""
    sharing: set[LayerKey] = field(default_factory=set)
    """Layers that attend to keys and values which another layer has written."""
    windowed: set[LayerKey] = field(default_factory=set)
    """Layers whose keys and values lie as in `window_layout`."""
    window_layout: PagedLayout | None = None
    calls: dict[int, int] = field(default_factory=dict)
    """Number of calls so far, by `layer_idx`."""
    pool: StatePool | None = None
    """Recurrent states, of models that have some."""
    states: StateLayout | None = None

    def recur(self, key: StateKey, operation: Recurrence, tensors: Tensors) -> torch.Tensor:
        assert self.pool is not None and self.states is not None
        return self.pool.recur(key, operation, tensors, self.states)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        nth = self.calls.get(layer, 0)
        self.calls[layer] = nth + 1
        keys, values = self.keys[layer, nth], self.values[layer, nth]
        if layer in self.chunks:
            options = replace(options, chunk=self.chunks[layer])
        layout = self.layout
        if self.window_layout is not None and (layer, nth) in self.windowed:
            layout = self.window_layout
        implementation = self.implementations[layer, nth]
        if (layer, nth) in self.sharing:
            return implementation.attend(query, None, None, keys, values, layout, options)
        return implementation.attend(query, key, value, keys, values, layout, options)


_running: list[StepContext] = []
"""The step of the forward pass that runs. A model runs in one thread at a time."""


@contextmanager
def running(step: StepContext) -> Iterator[None]:
    """Makes a step the one of the forward pass that runs."""
    _running.append(step)
    try:
        yield
    finally:
        _running.pop()


Attend = Callable[
    [nn.Module, Any, torch.Tensor, torch.Tensor, torch.Tensor, AttentionOptions, bool], tuple[torch.Tensor, None]
]
"""Called with the module, what `forward()` was given for its layers, query, key, value, options, and whether the layer
is causal."""


AttentionFunction = Callable[..., tuple[torch.Tensor, None]]


def attention_function(argument: str, biases: Iterable[str], attend: Attend) -> AttentionFunction:
    """Makes a function of Transformers' attention interface.

    argument: keyword argument of `forward()` that the function needs; biases: keyword arguments that would change the
    result, and that `attend` does not handle. The function takes query `[batch, heads, num_tokens, size]`, and key and
    value likewise with the KV heads. It raises PathError for a call that `attend` could not compute.
    """

    def forward(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        is_causal: bool | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        name = type(module).__name__
        given = kwargs.get(argument)
        if given is None and argument == ARGUMENT:
            given = _running[-1] if _running else None
        if given is None:
            raise PathError(f"{name} does not get the keyword arguments of forward()")
        if attention_mask is not None:
            raise PathError(f"{name} attends with a mask of its own")
        if (bias := next((bias for bias in biases if kwargs.get(bias) is not None), None)) is not None:
            raise PathError(f"{name} attends with `{bias}`")
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        options = AttentionOptions(
            scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
            window=int(sliding_window or 0),
            softcap=float(softcap or 0.0),
            sinks=None if s_aux is None else s_aux.float(),
        )
        return attend(module, given, query, key, value, options, bool(causal))

    return forward


def _attend_paged(
    module: nn.Module,
    step: StepContext,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    options: AttentionOptions,
    is_causal: bool,
) -> tuple[torch.Tensor, None]:
    """See attention_function. A batch of 1; returns `[1, num_tokens, heads, value_size]`."""
    if not is_causal:
        raise PathError(f"{type(module).__name__} attends in both directions")
    flat = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    out = step.attend(module.layer_idx, *flat, options)  # type: ignore[arg-type, call-arg]
    return out[None], None


paged_attention_forward = attention_function(ARGUMENT, ("position_bias", "head_mask"), _attend_paged)


def register() -> None:
    """Makes the attention function known to Transformers, which makes no masks for functions that it does not know."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, paged_attention_forward)
