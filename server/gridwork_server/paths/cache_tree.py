"""Takes caches of any structure apart into tensors, and rebuilds them.

A cache may be one of Transformers' `Cache` classes, tuples of tensors as older code returns them, a list of states, or
an object of the model's own. The meaning of its dimensions is found by comparing the caches of a few short inputs.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from gridwork_server.errors import PathError

_ATOMS = (bool, float, str, bytes, type(None), type, torch.device, torch.dtype, torch.Size)


class _Visit:
    """One traversal of a cache, in an order that depends only on its structure."""

    def __init__(self, tree: Any) -> None:
        self.tensors: dict[int, torch.Tensor] = {}
        self.shared: dict[int, Any] = {}
        """Configs and modules, which many caches refer to and which are not copied."""
        self.numbers: list[tuple[Any, Any]] = []
        """Places of integers: a list or dictionary, and the index or key in it."""
        self._seen: set[int] = set()
        self._items([tree])

    def _items(self, holder: Any) -> None:
        entries = holder.items() if isinstance(holder, dict) else enumerate(holder)
        for key, value in list(entries):
            if isinstance(value, torch.Tensor):
                self.tensors.setdefault(id(value), value)
            elif isinstance(value, int) and not isinstance(value, bool):
                self.numbers.append((holder, key))
            elif not isinstance(value, _ATOMS) and id(value) not in self._seen:
                self._seen.add(id(value))
                self._value(value)

    def _value(self, value: Any) -> None:
        if isinstance(value, dict | list | tuple):
            self._items(value)
            if isinstance(value, dict) and hasattr(value, "__dict__"):
                return  # a model's output holds each value as an item and as an attribute
        elif isinstance(value, PretrainedConfig | nn.Module) or callable(value):
            self.shared[id(value)] = value
        elif hasattr(value, "__dict__"):
            self._items(vars(value))


def tensors_of(tree: Any) -> list[torch.Tensor]:
    """The tensors in a cache, each once."""
    return list(_Visit(tree).tensors.values())


def numbers_of(tree: Any) -> list[int]:
    """The integers in a cache, mostly lengths."""
    return [holder[key] for holder, key in _Visit(tree).numbers]


def rebuilt(tree: Any, tensors: Sequence[torch.Tensor], numbers: Sequence[int | None]) -> Any:
    """A copy of a cache with its tensors replaced, and its integers too where `numbers` is not None."""
    visit = _Visit(tree)
    memo: dict[int, Any] = {old: new for old, new in zip(visit.tensors, tensors, strict=True)}
    copied = copy.deepcopy(tree, memo | visit.shared)
    for (holder, key), number in zip(_Visit(copied).numbers, numbers, strict=True):
        if number is not None and holder[key] != number:
            holder[key] = number
    return copied


@dataclass(frozen=True)
class LeafKind:
    """Meaning of the dimensions of one tensor of a cache."""

    batch_dim: int | None
    """Dimension that counts sequences; None when the tensor belongs to no single sequence."""
    per_sequence: int
    """Indices that one sequence has in the batch dimension: more than 1 when heads are folded into it."""
    length_dim: int | None
    """Dimension that counts tokens; None when the size does not depend on the sequence's length."""
    grows: bool
    """True if decoding makes the tensor longer."""
    is_length: bool = False
    """True if the tensor holds one number: the sequence's length plus `offset`."""
    offset: int = 0


@dataclass
class Member:
    """One sequence's part of a cache: views of its tensors without padding, and a cache with the structure to copy."""

    tensors: list[torch.Tensor]
    tree: Any


@dataclass(frozen=True)
class CacheSpec:
    """Structure of a model's caches."""

    leaves: list[LeafKind]
    """Kind of each tensor."""
    numbers: list[int | None]
    """Difference of each integer from the sequence's length; None when the integer is not a length."""

    def stack(self, members: Sequence[Member], length: int) -> tuple[Any, list[list[int]]]:
        """Combines the members into one cache, with shorter ones padded by zeros before their first token.

        length: tokens of the longest member. Returns the cache, and for every member the sizes of its tensors along
        their length, without padding.
        """
        stacked = []
        sizes: list[list[int]] = [[] for _ in members]
        for leaf, kind in enumerate(self.leaves):
            parts = [member.tensors[leaf] for member in members]
            for size, part in zip(sizes, parts, strict=True):
                size.append(0 if kind.length_dim is None else part.shape[kind.length_dim])
            if kind.batch_dim is None:
                stacked.append(parts[0] if not kind.is_length else torch.full_like(parts[0], length + kind.offset))
                continue
            if kind.length_dim is not None:
                most = max(part.shape[kind.length_dim] for part in parts)
                parts = [_padded(part, kind.length_dim, most) for part in parts]
            stacked.append(torch.cat(parts, kind.batch_dim) if len(parts) > 1 else parts[0].clone())
        numbers = [None if offset is None else length + offset for offset in self.numbers]
        return rebuilt(members[0].tree, stacked, numbers), sizes

    def member(self, tree: Any, index: int, sizes: Sequence[int]) -> Member:
        """One sequence's part of a cache. sizes: sizes of its tensors along their length, without padding."""
        parts = []
        for tensor, kind, size in zip(tensors_of(tree), self.leaves, sizes, strict=True):
            if kind.batch_dim is not None:
                tensor = tensor.narrow(kind.batch_dim, index * kind.per_sequence, kind.per_sequence)
                if kind.length_dim is not None:
                    total = tensor.shape[kind.length_dim]
                    tensor = tensor.narrow(kind.length_dim, total - size, size)
            parts.append(tensor)
        return Member(parts, tree)

    def sizes_after_token(self, tree: Any, sizes: list[list[int]]) -> list[list[int]]:
        """Sizes without padding after one more token; a full window stays as it is."""
        totals = [
            0 if kind.length_dim is None else tensor.shape[kind.length_dim]
            for tensor, kind in zip(tensors_of(tree), self.leaves, strict=True)
        ]
        return [
            [min(size + kind.grows, total) for size, kind, total in zip(row, self.leaves, totals, strict=True)]
            for row in sizes
        ]

    def unpadded_sizes(self, tree: Any) -> list[int]:
        """Sizes along their length of the tensors of a cache without padding."""
        return [
            0 if kind.length_dim is None else tensor.shape[kind.length_dim]
            for tensor, kind in zip(tensors_of(tree), self.leaves, strict=True)
        ]


@dataclass(frozen=True)
class CacheSnapshot:
    """Snapshot of a cache's structure, since decoding may change its tensors in place."""

    shapes: list[list[int]]
    scalars: list[int | None]
    """Values of tensors that hold one integer; None for other tensors."""
    numbers: list[int]
    num_bytes: int

    @staticmethod
    def of(tree: Any) -> "CacheSnapshot":
        """Takes the snapshot of a cache."""
        tensors = tensors_of(tree)
        shapes = [list(t.shape) for t in tensors]
        return CacheSnapshot(shapes, [_scalar(t) for t in tensors], numbers_of(tree), sum(t.nbytes for t in tensors))


def _scalar(tensor: torch.Tensor) -> int | None:
    return int(tensor) if tensor.numel() == 1 and tensor.dim() <= 1 and not tensor.is_floating_point() else None


def spec_of(
    alone: CacheSnapshot, longer: CacheSnapshot, pair: CacheSnapshot, decoded: CacheSnapshot, length: int
) -> CacheSpec:
    """Derives the meaning of a cache's tensors and integers from four snapshots.

    alone: of a sequence of `length` tokens; longer: of a sequence with two more tokens; pair: of two sequences of
    `length` tokens; decoded: of the first sequence after one more token. Raises PathError when the meaning is not
    clear, or when sequences cannot share such a cache.
    """
    samples = (alone, longer, pair, decoded)
    if len({len(sample.shapes) for sample in samples}) > 1 or len({len(sample.numbers) for sample in samples}) > 1:
        raise PathError("its cache is built differently for other inputs")
    leaves = [
        _leaf_kind(a, b, c, d, x, y, length)
        for a, b, c, d, x, y in zip(
            alone.shapes, longer.shapes, pair.shapes, decoded.shapes, alone.scalars, longer.scalars, strict=True
        )
    ]
    numbers: list[int | None] = []
    for a, b, c in zip(alone.numbers, longer.numbers, pair.numbers, strict=True):
        if b - a not in (0, 2) or c != a:
            raise PathError("its cache holds numbers whose meaning is not clear")
        numbers.append(a - length if b != a else None)
    return CacheSpec(leaves, numbers)


def _leaf_kind(
    a: list[int], b: list[int], c: list[int], d: list[int], value: int | None, longer: int | None, length: int
) -> LeafKind:
    if not len(a) == len(b) == len(c) == len(d):
        raise PathError("its cache has tensors with another number of dimensions for other inputs")
    lengths = [i for i in range(len(a)) if a[i] != b[i]]
    batch = [i for i in range(len(a)) if a[i] != c[i]]
    if len(lengths) > 1 or len(batch) > 1 or (lengths and lengths == batch):
        raise PathError("its cache has tensors that grow in several dimensions")
    if lengths and b[lengths[0]] - a[lengths[0]] != 2:
        raise PathError("its cache does not grow by one entry a token")
    if batch and c[batch[0]] != 2 * a[batch[0]]:
        raise PathError("its cache does not grow with the number of sequences")
    if lengths and not batch:
        raise PathError("its cache has tensors that grow with a sequence's length and that all sequences share")
    grown = [i for i in range(len(a)) if d[i] != a[i]]
    if grown and (grown != lengths or d[grown[0]] != a[grown[0]] + 1):
        raise PathError("its cache grows differently in decoding")
    is_length = value is not None and longer is not None and longer - value == 2
    return LeafKind(
        batch_dim=batch[0] if batch else None,
        per_sequence=a[batch[0]] if batch else 1,
        length_dim=lengths[0] if lengths else None,
        grows=bool(grown),
        is_length=is_length,
        offset=value - length if is_length and value is not None else 0,
    )


def _padded(part: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    missing = size - part.shape[dim]
    if missing == 0:
        return part
    shape = list(part.shape)
    shape[dim] = missing
    return torch.cat([part.new_zeros(shape), part], dim)
