"""The seam between a Transformers model and the paged cache: one attention function, registered by name.

A model's layers call it with their queries, keys and values; what it does with them comes with the step, through the
keyword arguments of `forward()`, so that there is no global state.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

from gridwork_kernels.paged_attention import AttentionOptions, PagedAttention, PagedLayout
from gridwork_server.errors import PathError

NAME = "gridwork_paged"
"""Name of the attention function in Transformers' registry."""

ARGUMENT = "gridwork_step"
"""Keyword argument of `forward()` that carries a step's context to every layer."""


LayerKey = tuple[int, int]
"""A layer's `layer_idx`, and which of its calls in one forward pass this is: some layers attend more than once."""


class StepContext(Protocol):
    """What a layer's attention is done by."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        """query, key, value: `[num_tokens, heads, size]`; returns `[num_tokens, query heads, value size]`."""


@dataclass(frozen=True)
class LayerGeometry:
    """What one layer writes to the cache, and how it attends."""

    num_heads: int
    num_kv_heads: int
    key_size: int
    value_size: int
    window: int
    has_softcap: bool = False
    has_sinks: bool = False
    source: "LayerKey | None" = None
    """The layer whose keys and values it attends to, where those are not its own."""


@dataclass
class Probe:
    """Finds out every layer's geometry by running the model once."""

    layers: dict[LayerKey, LayerGeometry] = field(default_factory=dict)
    calls: dict[int, int] = field(default_factory=dict)
    """Of each layer so far."""
    _owners: dict[tuple[int, int], LayerKey] = field(default_factory=dict)
    _kept: list[torch.Tensor] = field(default_factory=list)
    """So that no other layer's tensors come to lie in the same memory."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        if query.shape[1] % key.shape[1] != 0:
            raise PathError(f"layer {layer} has {query.shape[1]} query heads for {key.shape[1]} KV heads")
        if not query.shape[0] == key.shape[0] == value.shape[0]:
            raise PathError(f"layer {layer} attends to something else than the tokens")
        nth = self.calls.get(layer, 0)
        self.calls[layer] = nth + 1
        # One token's keys reach here as they are: layers that share them bring the same memory.
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
    """Writes keys and values into the cache and attends to all that the sequences have there."""

    keys: dict[LayerKey, torch.Tensor]
    """As the implementation has them."""
    values: dict[LayerKey, torch.Tensor]
    layout: PagedLayout
    implementations: dict[LayerKey, PagedAttention]
    chunks: dict[int, int] = field(default_factory=dict)
    """Of layers that attend within chunks: positions in a chunk."""
    sharing: set[LayerKey] = field(default_factory=set)
    """Layers that attend to another's keys and values, which that one has written."""
    windowed: set[LayerKey] = field(default_factory=set)
    """Layers whose keys and values lie where `window_layout` says."""
    window_layout: PagedLayout | None = None
    calls: dict[int, int] = field(default_factory=dict)
    """Of each layer so far."""

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


def register() -> None:
    """Makes the attention function known to Transformers. It needs no mask: Transformers makes none for it."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, paged_attention_forward)


def paged_attention_forward(
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
    """Transformers' attention interface. query: `[1, heads, num_tokens, size]`, key and value likewise with the KV
    heads. Returns `[1, num_tokens, heads, value_size]`. Raises PathError for what paged attention cannot express."""
    step: StepContext | None = kwargs.get(ARGUMENT)
    name = type(module).__name__
    if step is None:
        raise PathError(f"{name} does not get the keyword arguments of forward()")
    if attention_mask is not None:
        raise PathError(f"{name} attends with a mask of its own")
    if kwargs.get("position_bias") is not None or kwargs.get("head_mask") is not None:
        raise PathError(f"{name} attends with a bias")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise PathError(f"{name} attends in both directions")
    options = AttentionOptions(
        scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        window=int(sliding_window or 0),
        softcap=float(softcap or 0.0),
        sinks=None if s_aux is None else s_aux.float(),
    )
    out = step.attend(
        module.layer_idx,  # type: ignore[arg-type]
        query[0].transpose(0, 1).contiguous(),
        key[0].transpose(0, 1).contiguous(),
        value[0].transpose(0, 1).contiguous(),
        options,
    )
    return out[None], None
