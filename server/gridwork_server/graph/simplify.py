"""Takes out operations whose results are there already, or that nothing needs."""

import math
from typing import Any

import torch

from gridwork_server.graph.nodes import Attend, Graph, Node, Ref, Size, changed, mapped

_MOST_VALUES = 65536
"""Of a result that is kept for the next step."""


@torch.inference_mode()
def simplify(graph: Graph) -> None:
    """Rewrites the graph in place."""
    _drop_aliases(graph)
    written = Written(graph)
    _compute_once(graph, written)
    _compute_constants(graph, written)


def _drop_aliases(graph: Graph) -> None:
    """Operations that give what they were given, a conversion to the type that it has already for example."""
    graph.nodes[:] = [
        node
        for node in graph.nodes
        if isinstance(node.target, Attend)
        or node.target._schema.is_mutable
        or not set(node.outputs) <= set(node.inputs())
    ]


def drop_unused(graph: Graph) -> None:
    """Takes out what nothing needs."""
    used = {graph.result}
    kept = []
    for node in reversed(graph.nodes):
        is_needed = isinstance(node.target, Attend) or node.target._schema.is_mutable
        if is_needed or any(output in used for output in node.outputs):
            used.update(node.inputs())
            kept.append(node)
    graph.nodes[:] = kept[::-1]


class Written:
    """What operations of a graph write to, itself or by way of a tensor with the same memory."""

    def __init__(self, graph: Graph) -> None:
        self._tensors = changed(graph)
        self._storages: set[int] = set()
        for node in graph.nodes:
            if not isinstance(node.target, Attend) and node.target._schema.is_mutable:
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
        """Whether that is a constant with memory that is written to."""
        return _storage(tensor) in self._storages

    def touches(self, node: Node) -> bool:
        """Whether that is among what the node is given or gives."""
        used = {*node.inputs(), *node.outputs}
        return bool(used & self._tensors) or any(_storage(tensor) in self._storages for tensor in _constants(node))


def _may_share_memory(node: Node) -> bool:
    """Whether results can lie where arguments lie. Operations that are made of others do not always say so."""
    if isinstance(node.target, Attend):
        return False
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    aliases = any(result.alias_info is not None for result in node.target._schema.returns)
    return aliases or node.target.has_kernel_for_dispatch_key(composite)


def _constants(node: Node) -> list[torch.Tensor]:
    return [leaf for leaf in _leaves(node) if isinstance(leaf, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _leaves(node: Node) -> list[Any]:
    """Everything among the arguments."""
    found: list[Any] = []
    mapped((node.args, node.kwargs), found.append)
    return found


def _is_function(node: Node, graph: Graph, written: Written) -> bool:
    """Whether the node gives the same for the same arguments, and nothing happens to either."""
    return not (
        isinstance(node.target, Attend)
        or node.target._schema.is_mutable
        or torch.Tag.nondeterministic_seeded in node.target.tags
        or graph.result in node.outputs
        or written.touches(node)
    )


def _compute_constants(graph: Graph, written: Written) -> None:
    """Operations on weights and numbers alone are computed now."""
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
    """Whether it gives one small tensor, of no step's values."""
    if len(node.outputs) != 1 or node.outputs[0] is None or node.shape is None:
        return False
    numbers = all(type(size) is int for size in node.shape)
    return (
        numbers
        and math.prod(node.shape) <= _MOST_VALUES  # type: ignore[arg-type]
        and not any(isinstance(leaf, Ref | Size) for leaf in _leaves(node))
    )


def _compute_once(graph: Graph, written: Written) -> None:
    """Of equal operations, the first one's results stand for the others'."""
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
    """Equal for arguments that are: tensors by identity, numbers with their type."""
    if isinstance(tree, list | tuple):
        return tuple(_key(item) for item in tree)
    if isinstance(tree, dict):
        return tuple((key, _key(item)) for key, item in tree.items())
    if isinstance(tree, torch.Tensor):
        return torch.Tensor, id(tree)
    # Zeros of both signs are equal as numbers.
    return type(tree), repr(tree) if isinstance(tree, float) else tree
