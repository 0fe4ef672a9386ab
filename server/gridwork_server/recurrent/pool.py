"""Memory of all sequences' states, one slot a sequence, and what one step does with it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from gridwork_kernels.device_copies import to_device
from gridwork_kernels.states import StateLayout
from gridwork_server.recurrent.operations import KINDS, Recurrence, StateKey, Tensors, empty_result

if TYPE_CHECKING:
    from collections.abc import Mapping


def state_layout(
    sequence_ids: np.ndarray, num_tokens: np.ndarray, positions: np.ndarray, device: torch.device
) -> StateLayout:
    """The layout of a step. sequence_ids, num_tokens: int64 `[B]`; positions: int64 `[T]`. A sequence's slot is its
    id."""
    starts = np.zeros(len(num_tokens) + 1, dtype=np.int32)
    num_tokens.cumsum(out=starts[1:])
    return StateLayout(
        to_device(starts, device),
        to_device(np.ascontiguousarray(sequence_ids), device),
        to_device(positions[starts[:-1]] == 0, device),
    )


@dataclass(frozen=True)
class StateGeometry:
    """Shape and dtype of one sequence's state."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of one slot."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass
class StateProbe:
    """Notes every state's geometry while the model runs one token."""

    states: dict[StateKey, StateGeometry] = field(default_factory=dict)

    def recur(self, key: StateKey, operation: Recurrence, tensors: Tensors) -> torch.Tensor:
        """See StatePool.recur."""
        self.states[key] = StateGeometry(*KINDS[operation.name].state(*tensors))
        return empty_result(operation, tensors)


class StatePool:
    """Every state of every sequence."""

    def __init__(self, geometries: "Mapping[StateKey, StateGeometry]", num_slots: int, device: torch.device) -> None:
        self.tensors = {
            key: torch.zeros(num_slots, *geometry.shape, dtype=geometry.dtype, device=device)
            for key, geometry in geometries.items()
        }
        """`[num_slots, …]`"""

    @property
    def num_bytes(self) -> int:
        """Bytes of all slots."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def fill(self, value: float) -> None:
        """Sets every state to a value."""
        for tensor in self.tensors.values():
            tensor.fill_(value)

    def recur(self, key: StateKey, operation: Recurrence, tensors: Tensors, layout: StateLayout) -> torch.Tensor:
        """Computes an operation over a flat batch of tokens. Each sequence's state is read from its slot and written
        back. Returns the operation's result, `[T, …]`."""
        kernel = KINDS[operation.name].kernel
        return kernel(*tensors, *operation.options, layout.starts, layout.slots, layout.fresh, self.tensors[key])
