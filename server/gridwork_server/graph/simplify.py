"""Removes operations whose results exist already, or are unused."""

import math
from typing import Any

import torch

from gridwork_server.graph.nodes import Graph, Node, Ref, Size, changed, mapped

_MOST_VALUES = 65536
"""Maximum number of values of a result that is computed once for all steps."""


@torch.inference_mode()
def simplify(graph: Graph) -> None:
    """Rewrites the graph in place."""
    _drop_aliases(graph)
    written = Written(graph)
    _compute_once(graph, written)
    _compute_constants(graph, written)


def _drop_aliases(graph: Graph) -> None:
    """Removes operations that return their input, such as a conversion to the type that it already has."""
    graph.nodes[:] = [
        node
        for node in graph.nodes
        if node.uses_cache or node.is_mutable or not set(node.outputs) <= set(node.inputs())
    ]


def drop_unused(graph: Graph) -> None:
    """Removes operations whose results are unused, and those that write to memory which nothing reads afterwards."""
    memory = _Memory(graph)
    used = {graph.result}
    read = {memory.of(graph.result)}
    kept = []
    for node in reversed(graph.nodes):
        writes_needed = node.is_mutable and (
            memory.may_be_constant(node) or any(memory.of(ref) in read for ref in node.inputs())
        )
        if node.uses_cache or writes_needed or any(output in used for output in node.outputs):
            used.update(node.inputs())
            read.update(memory.of(ref) for ref in node.inputs())
            kept.append(node)
    graph.nodes[:] = kept[::-1]


class _Memory:
    """Groups of tensors that may share memory. The graph's inputs are one group with what is made of them."""

    def __init__(self, graph: Graph) -> None:
        self._parents: dict[Ref, Ref] = {}
        aliases = [node for node in graph.nodes if node.is_mutable or _may_share_memory(node)]
        for node in aliases:
            refs = [*node.inputs(), *(ref for ref in node.outputs if ref is not None)]
            for ref in refs[1:]:
                self._parents[self.of(ref)] = self.of(refs[0])
        self._constant = {self.of(ref) for node in aliases if _constants(node) for ref in node.outputs if ref}

    def may_be_constant(self, node: Node) -> bool:
        """True if a node's memory may be that of a constant, which later steps read."""
        return any(ref is not None and self.of(ref) in self._constant for ref in node.outputs)

    def of(self, ref: Ref) -> Ref:
        """The tensor that stands for its group."""
        while ref in self._parents and self._parents[ref] != ref:
            ref = self._parents[ref]
        return ref


class Written:
    """Memory that operations of a graph write to, directly or through a tensor that shares it."""

    def __init__(self, graph: Graph) -> None:
        self._tensors = changed(graph)
        self._storages: set[int] = set()
        for node in graph.nodes:
            if node.is_mutable:
                self._storages.update(_storage(tensor) for tensor in _constants(node))
        grows = True
        while grows:
            before = len(self._tensors) + len(self._storages)
            for node in graph.nodes:
                if self.touches(node) and _may_share_memory(node):
                    self._tensors.update(node.inputs(), (ref for ref in node.outputs if ref is not None))
                    self._storages.update(_storage(tensor) for tensor in _constants(node))
            grows = len(self._tensors) + len(self._storages) > before

    def holds(self, tensor: torch.Tensor) -> bool:
        """True if a constant's memory is written to."""
        return _storage(tensor) in self._storages

    def touches(self, node: Node) -> bool:
        """True if the node has an input or output whose memory is written to."""
        used = {*node.inputs(), *node.outputs}
        return bool(used & self._tensors) or any(_storage(tensor) in self._storages for tensor in _constants(node))


def _may_share_memory(node: Node) -> bool:
    """True if results may share memory with arguments. Composite operations do not always declare it."""
    if node.uses_cache:
        return False
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    aliases = any(result.alias_info is not None for result in node.target._schema.returns)
    return aliases or node.target.has_kernel_for_dispatch_key(composite)


def _constants(node: Node) -> list[torch.Tensor]:
    return [leaf for leaf in _leaves(node) if isinstance(leaf, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _leaves(node: Node) -> list[Any]:
    """All leaves of the arguments."""
    found: list[Any] = []
    mapped((node.args, node.kwargs), found.append)
    return found


def _is_function(node: Node, graph: Graph, written: Written) -> bool:
    """True if the node always gives the same result for the same arguments, and nothing writes to either."""
    return not (
        node.uses_cache
        or node.is_mutable
        or torch.Tag.nondeterministic_seeded in node.target.tags
        or graph.result in node.outputs
        or written.touches(node)
    )


def _compute_constants(graph: Graph, written: Written) -> None:
    """Computes operations on weights and numbers, and makes their results constants."""
    known: dict[Ref, torch.Tensor] = {}

    def value(leaf: Any) -> Any:
        return known.get(leaf, leaf) if type(leaf) is Ref else leaf

    rest = []
    for node in graph.nodes:
        node.args, node.kwargs = mapped(node.args, value), mapped(node.kwargs, value)
        if _is_constant(node) and _is_function(node, graph, written):
            known[node.out] = node.target(*node.args, **node.kwargs)
        else:
            rest.append(node)
    graph.nodes[:] = rest


def _is_constant(node: Node) -> bool:
    """True if it gives one small tensor that does not depend on a step."""
    if len(node.outputs) != 1 or node.outputs[0] is None or node.shape is None:
        return False
    numbers = all(type(size) is int for size in node.shape)
    return (
        numbers
        and math.prod(node.shape) <= _MOST_VALUES  # type: ignore[arg-type]
        and not any(isinstance(leaf, Ref | Size) for leaf in _leaves(node))
    )


def _compute_once(graph: Graph, written: Written) -> None:
    """Replaces the results of equal operations by the first one's."""
    first: dict[Any, Node] = {}
    same: dict[Ref, Ref] = {}

    def name(leaf: Any) -> Any:
        return same.get(leaf, leaf) if type(leaf) is Ref else leaf

    rest = []
    for node in graph.nodes:
        node.args, node.kwargs = mapped(node.args, name), mapped(node.kwargs, name)
        if _is_function(node, graph, written):
            earlier = first.setdefault((node.target, _key(node.args), _key(node.kwargs)), node)
            if earlier is not node:
                pairs = zip(node.outputs, earlier.outputs, strict=True)
                same.update({own: other for own, other in pairs if own is not None and other is not None})
                continue
        rest.append(node)
    graph.nodes[:] = rest


def _key(tree: Any) -> Any:
    """A key that is equal for equal arguments: tensors by identity, numbers with their type."""
    if isinstance(tree, list | tuple):
        return tuple(_key(item) for item in tree)
    if isinstance(tree, dict):
        return tuple((key, _key(item)) for key, item in tree.items())
    if isinstance(tree, torch.Tensor):
        return torch.Tensor, id(tree)
    # 0.0 and -0.0 are equal as numbers.
    return type(tree), repr(tree) if isinstance(tree, float) else tree
