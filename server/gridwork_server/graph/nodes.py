"""A forward pass as a list of operations, without the Python code of the model around them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from gridwork_server.recurrent.operations import Recurrence, StateKey


@dataclass(frozen=True)
class Ref:
    """A tensor: an input of the graph, or an output of an operation."""

    index: int


@dataclass(frozen=True)
class Size:
    """A whole number that depends on the step: `constant + tokens * T + rows * K`, for T tokens of which K give
    logits."""

    constant: int
    tokens: int
    rows: int

    def at(self, num_tokens: int, num_rows: int) -> int:
        """Its value."""
        return self.constant + self.tokens * num_tokens + self.rows * num_rows


@dataclass(frozen=True)
class Attend:
    """A layer's attention over the cache, as the target of a node. The node's arguments are query, key, value and
    sinks, and cosines and sines where attention rotates."""

    layer: int
    nth: int
    """Index of the call among the layer's attention calls in one forward pass."""
    scale: float
    window: int
    softcap: float
    interleaved: bool = False
    """True if dimensions 2i and 2i + 1 are partners in the rotation, not i and i + size / 2."""


@dataclass(frozen=True)
class Recur:
    """An operation with a recurrent state, as the target of a node. The node's arguments are its tensors."""

    key: StateKey
    operation: Recurrence


@dataclass(eq=False)
class Node:
    """An operation of a graph."""

    target: Any
    """A `torch._ops.OpOverload`, `Attend` or `Recur`."""
    args: tuple[Any, ...]
    """Ref, Size, tensors (weights), numbers, and lists of these."""
    kwargs: dict[str, Any]
    outputs: tuple["Ref | None", ...]
    """None for an output that is not a tensor."""
    shape: tuple["int | Size", ...] | None = None
    """Shape of the first output."""
    dtype: torch.dtype | None = None

    @property
    def name(self) -> str:
        """Name of the operation, such as `aten.mul`."""
        if isinstance(self.target, Attend):
            return "attend"
        if isinstance(self.target, Recur):
            return self.target.operation.name
        schema = self.target._schema
        return f"{schema.name.replace('::', '.')}"

    @property
    def uses_cache(self) -> bool:
        """True if it reads and writes what the cache holds of sequences: keys and values, or states."""
        return isinstance(self.target, Attend | Recur)

    @property
    def is_mutable(self) -> bool:
        """True if it writes to one of its arguments."""
        return not self.uses_cache and bool(self.target._schema.is_mutable)

    @property
    def out(self) -> Ref:
        """The only output."""
        (ref,) = self.outputs
        assert ref is not None
        return ref

    def inputs(self) -> Iterator[Ref]:
        """Every Ref among the arguments, with repetitions."""
        yield from refs(self.args)
        yield from refs(self.kwargs)


@dataclass
class Graph:
    """All operations in order. The result is logits `[1, K, vocab_size]`."""

    input_ids: Ref
    position_ids: Ref
    kept: Ref
    nodes: list[Node]
    result: Ref
    next_index: int = field(default=0)

    def new_ref(self) -> Ref:
        """Returns an unused Ref."""
        self.next_index += 1
        return Ref(self.next_index - 1)


def changed(graph: Graph) -> set[Ref]:
    """Tensors that some operation writes to in place."""
    tensors: set[Ref] = set()
    for node in graph.nodes:
        if node.is_mutable:
            tensors.update(node.inputs())
            tensors.update(ref for ref in node.outputs if ref is not None)
    return tensors


def refs(tree: Any) -> Iterator[Ref]:
    """Every Ref in nested lists, tuples and dictionaries."""
    kind = type(tree)
    if kind is Ref:
        yield tree
    elif kind is tuple or kind is list:
        for item in tree:
            yield from refs(item)
    elif kind is dict:
        for item in tree.values():
            yield from refs(item)


def mapped(tree: Any, function: Callable[[Any], Any]) -> Any:
    """Applies `function` to every leaf of nested lists, tuples and dictionaries."""
    kind = type(tree)
    if kind is tuple:
        return tuple([mapped(item, function) for item in tree])
    if kind is list:
        return [mapped(item, function) for item in tree]
    if kind is dict:
        return {key: mapped(item, function) for key, item in tree.items()}
    return function(tree)
