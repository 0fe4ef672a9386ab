"""A forward pass as a list of operations, without the Python code of the model around them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Ref:
    """A tensor that an operation has given, or an input."""

    index: int


@dataclass(frozen=True)
class Size:
    """A whole number that depends on what a step computes: `constant + tokens * T + rows * K`, for T tokens of which K
    give logits."""

    constant: int
    tokens: int
    rows: int

    def at(self, num_tokens: int, num_rows: int) -> int:
        """Its value."""
        return self.constant + self.tokens * num_tokens + self.rows * num_rows


@dataclass(frozen=True)
class Attend:
    """Stands for a layer's attention, with the cache: the target of a node whose arguments are query, key, value and
    sinks; cosines and sines too where attention rotates."""

    layer: int
    nth: int
    """Which of the layer's calls in one forward pass this is."""
    scale: float
    window: int
    softcap: float
    interleaved: bool = False
    """Whether dimensions 2i and 2i + 1 are turned together, in place of i and i + size / 2."""


@dataclass(eq=False)
class Node:
    """One operation."""

    target: Any
    """A `torch._ops.OpOverload`, or `Attend`."""
    args: tuple[Any, ...]
    """Of Ref, Size, tensors (weights), numbers, and lists of these."""
    kwargs: dict[str, Any]
    outputs: tuple["Ref | None", ...]
    """None for what is no tensor."""
    shape: tuple["int | Size", ...] | None = None
    """Of the first output."""
    dtype: torch.dtype | None = None

    @property
    def name(self) -> str:
        """Of the operation, as `aten.mul`."""
        if isinstance(self.target, Attend):
            return "attend"
        schema = self.target._schema
        return f"{schema.name.replace('::', '.')}"

    @property
    def out(self) -> Ref:
        """The one output."""
        (ref,) = self.outputs
        assert ref is not None
        return ref

    def inputs(self) -> Iterator[Ref]:
        """Every Ref among the arguments, as often as it is there."""
        yield from refs(self.args)
        yield from refs(self.kwargs)


@dataclass
class Graph:
    """All operations in their order. What the graph gives are logits `[1, K, vocab_size]`."""

    input_ids: Ref
    position_ids: Ref
    kept: Ref
    nodes: list[Node]
    result: Ref
    next_index: int = field(default=0)

    def new_ref(self) -> Ref:
        """A Ref that is not in use."""
        self.next_index += 1
        return Ref(self.next_index - 1)


def changed(graph: Graph) -> set[Ref]:
    """Tensors that some operation writes to."""
    tensors: set[Ref] = set()
    for node in graph.nodes:
        if not isinstance(node.target, Attend) and node.target._schema.is_mutable:
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
    """The same tree with `function` of every leaf."""
    kind = type(tree)
    if kind is tuple:
        return tuple([mapped(item, function) for item in tree])
    if kind is list:
        return [mapped(item, function) for item in tree]
    if kind is dict:
        return {key: mapped(item, function) for key, item in tree.items()}
    return function(tree)
