"""Operations with recurrent states: what their kernels and their plain forms share.

Tokens of several sequences lie in one flat batch. Each sequence's state lies in a slot of a pool, is read there when
the operation begins, and written back. `starts`, int32 `[B + 1]`: number of tokens before each sequence's, and of all.
`slots`, int64 `[B]`: rows of the pool, each once. `fresh`, bool `[B]`: the sequence begins with this call, so that its
state counts as zeros, whatever its slot holds. Results are the same to the bit however a sequence is cut into calls,
and whatever else is in a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gridwork_kernels import cpu_library

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class StateLayout:
    """The sequences of a step, whose tokens are consecutive, and where their states lie. B sequences."""

    starts: torch.Tensor
    """int32 `[B + 1]`"""
    slots: torch.Tensor
    """int64 `[B]`"""
    fresh: torch.Tensor
    """bool `[B]`"""


def has_kernels(*tensors: torch.Tensor | None) -> bool:
    """True if there are compiled kernels for tensors of tokens: all of one type on the CPU, and a token's values
    contiguous."""
    given = [tensor for tensor in tensors if tensor is not None]
    return (
        given[0].dtype in DTYPES
        and all(tensor.dtype == given[0].dtype and tensor.device.type == "cpu" for tensor in given)
        and all(is_rows(tensor) for tensor in given)
        and cpu_library.load() is not None
    )


def is_rows(tensor: torch.Tensor) -> bool:
    """True for `[T, …]` where each token's values are contiguous."""
    return tensor.shape[0] == 0 or tensor[0].is_contiguous()


def sequences(
    starts: torch.Tensor, slots: torch.Tensor, fresh: torch.Tensor, pool: torch.Tensor
) -> Iterator[tuple[range, int, torch.Tensor]]:
    """Tokens, slot and state of each sequence that has tokens."""
    bounds = starts.tolist()
    for i, slot in enumerate(slots.tolist()):
        if bounds[i] < bounds[i + 1]:
            state = torch.zeros_like(pool[slot]) if fresh[i] else pool[slot]
            yield range(bounds[i], bounds[i + 1]), slot, state


def softplus_of(steps: torch.Tensor, bias: torch.Tensor | None, softplus: bool) -> torch.Tensor:
    """Steps `[T, …]` with their bias, made positive where asked, each operation rounded to their dtype."""
    if bias is not None:
        steps = steps + bias.to(steps.dtype)
    return torch.nn.functional.softplus(steps) if softplus else steps
