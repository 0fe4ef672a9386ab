"""The operations of layers with a recurrent state, which read and write slots of a pool."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from gridwork_kernels import causal_conv, gated_delta, selective_scan


class StateKey(NamedTuple):
    """Name of a state of a model's layer."""

    layer: int
    """`layer_idx`"""
    number: int
    """Number of the state among those of the layer's kind, as Transformers' caches count them."""
    is_conv: bool
    """True for the last inputs of a convolution, false for a recurrent state."""
    nth: int
    """Number of the operation among those that use the same state in one forward pass."""


@dataclass(frozen=True)
class Recurrence:
    """An operation with a state, without its tensors."""

    name: str
    """A name in `KINDS`."""
    options: tuple[bool | float, ...]
    """The kernel's arguments that follow its tensors."""


@dataclass(frozen=True)
class Kind:
    """How an operation is computed."""

    kernel: Callable[..., torch.Tensor]
    """Takes the tensors, the options, then `starts`, `slots`, `fresh` and the pool's tensor."""
    state: Callable[..., tuple[tuple[int, ...], torch.dtype]]
    """Shape and dtype of a sequence's state, from the tensors."""
    like: int
    """Index of the tensor whose shape the result has."""
    is_wide: bool = False
    """True if the result is float32 whatever the tensors are; else it has the dtype of that tensor."""


def _conv_state(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> tuple[tuple[int, ...], torch.dtype]:
    return (weight.shape[1] - 1, weight.shape[0]), x.dtype


def _delta_state(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any
) -> tuple[tuple[int, ...], torch.dtype]:
    return (value.shape[1], key.shape[2], value.shape[2]), torch.float32


def _heads_state(
    x: torch.Tensor, dt: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *_: Any
) -> tuple[tuple[int, ...], torch.dtype]:
    return (x.shape[1], b.shape[2], x.shape[2]), torch.float32


def _channels_state(x: torch.Tensor, dt: torch.Tensor, a: torch.Tensor, *_: Any) -> tuple[tuple[int, ...], torch.dtype]:
    return tuple(a.shape), torch.float32


KINDS = {
    "causal_conv": Kind(causal_conv.causal_conv, _conv_state, 0),
    "gated_delta": Kind(gated_delta.gated_delta, _delta_state, 2),
    "scan_heads": Kind(selective_scan.scan_heads, _heads_state, 0, is_wide=True),
    "scan_channels": Kind(selective_scan.scan_channels, _channels_state, 0, is_wide=True),
}


Tensors = tuple[torch.Tensor | None, ...]
"""An operation's tensors, those of tokens `[T, …]`."""


def empty_result(operation: Recurrence, tensors: Tensors) -> torch.Tensor:
    """Zeros in the place of the operation's result."""
    kind = KINDS[operation.name]
    like = tensors[kind.like]
    assert like is not None
    return like.new_zeros(like.shape, dtype=torch.float32 if kind.is_wide else like.dtype)
