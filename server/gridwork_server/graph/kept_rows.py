"""Computes only the rows that the requested logits depend on.

A step needs the logits of its last tokens, often of one. After the last layer's attention, the other tokens' rows are
unused. The rows to keep are therefore selected before the operations that compute each row independently, not after.
"""

from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch

from gridwork_server.graph.nodes import Graph, Node, Ref, Size, changed, mapped, refs

aten = torch.ops.aten

_TOKENS, _ROWS = Size(0, 1, 0), Size(0, 0, 1)


def by_kept_rows(graph: Graph) -> tuple[Graph, Graph] | None:
    """Returns a graph for steps with logits of every token, which selects no rows, and a graph for steps with fewer.
    Returns None when the graph selects rows in an unknown way."""
    choice = _choice(graph)
    if choice is None:
        return None
    return _without(graph, choice), _chosen_early(graph, choice)


def _choice(graph: Graph) -> Node | None:
    """The only operation that uses `kept`, if it is `x[:, kept]`, which keeps the order of tokens."""
    users = [node for node in graph.nodes if graph.kept in node.inputs()]
    if len(users) != 1 or users[0].target != aten.index.Tensor or users[0].kwargs:
        return None
    node = users[0]
    x, indices = node.args
    shape = _shapes(graph).get(x)
    return node if list(indices) == [None, graph.kept] and _is_of_tokens(shape) else None


def _without(graph: Graph, choice: Node) -> Graph:
    """The graph without the selection, where the number of rows is the number of tokens."""

    def same(leaf: Any) -> Any:
        return Size(leaf.constant, leaf.tokens + leaf.rows, 0) if type(leaf) is Size else leaf

    rest = _renamed(graph, [node for node in graph.nodes if node is not choice], {choice.out: choice.args[0]})
    rest.nodes = [
        replace(node, args=mapped(node.args, same), kwargs=mapped(node.kwargs, same), shape=mapped(node.shape, same))
        for node in rest.nodes
    ]
    return rest


def _renamed(graph: Graph, nodes: list[Node], names: dict[Ref, Ref]) -> Graph:
    def name(leaf: Any) -> Any:
        return names.get(leaf, leaf) if type(leaf) is Ref else leaf

    renamed = [replace(node, args=mapped(node.args, name), kwargs=mapped(node.kwargs, name)) for node in nodes]
    return replace(graph, nodes=renamed, result=name(graph.result))


def _chosen_early(graph: Graph, choice: Node) -> Graph:
    early = _early(graph, choice)
    made = {ref for node in early for ref in node.outputs}
    chosen: dict[Ref, Ref] = {}
    shapes, dtypes = _shapes(graph), {ref: node.dtype for node in graph.nodes for ref in node.outputs}
    moved = {id(node) for node in early}
    result = replace(graph)  # has its own count of references

    def choose(ref: Ref, nodes: list[Node]) -> None:
        """Adds the selection of a tensor's rows, once for each tensor."""
        if ref not in made and ref not in chosen:
            chosen[ref] = result.new_ref()
            shape = _with_rows(shapes[ref])
            nodes.append(Node(aten.index_select.default, (ref, 1, graph.kept), {}, (chosen[ref],), shape, dtypes[ref]))

    nodes: list[Node] = []
    for node in graph.nodes:
        if id(node) in moved:
            for ref in refs(node.args):
                choose(ref, nodes)
            args = mapped(node.args, lambda leaf: chosen.get(leaf, leaf) if type(leaf) is Ref else leaf)
            nodes.append(replace(node, args=args, shape=_with_rows(node.shape)))
        elif node is choice:
            choose(node.args[0], nodes)
        else:
            nodes.append(node)
    last = choice.args[0]
    # After the selection, all tensors have the kept rows only.
    return _renamed(result, nodes, {choice.out: chosen.get(last, last)})


def _early(graph: Graph, choice: Node) -> list[Node]:
    """Operations that compute each row independently, and whose results are used only by the selection, directly or
    through each other."""
    users: dict[Ref, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        for ref in node.inputs():
            users[ref].append(node)
    for_all = changed(graph) | {graph.result}
    shapes = _shapes(graph)
    early: list[Node] = []
    known = {id(choice)}
    for node in reversed(graph.nodes):
        needed = [user for ref in node.outputs if ref is not None for user in users[ref]]
        if (
            needed
            and all(id(user) in known for user in needed)
            and not for_all.intersection(node.outputs)
            and _is_by_row(node, shapes)
        ):
            early.append(node)
            known.add(id(node))
    return early


def _shapes(graph: Graph) -> dict[Ref, Any]:
    return {ref: node.shape for node in graph.nodes for ref in node.outputs if ref is not None}


def _is_of_tokens(shape: Any) -> bool:
    """`[1, T, features]`"""
    return shape is not None and len(shape) == 3 and shape[:2] == (1, _TOKENS) and type(shape[2]) is int


def _with_rows(shape: Any) -> Any:
    return (1, _ROWS, shape[2])


def _is_by_row(node: Node, shapes: dict[Ref, Any]) -> bool:
    """True if the operation computes each token's row of `[1, T, features]` independently, from rows, weights and
    numbers only."""
    ops = torch.ops.gridwork_cpu
    inputs = list(node.inputs())
    if node.uses_cache or not inputs or not _is_of_tokens(node.shape):
        return False
    if not all(_is_of_tokens(shapes.get(ref)) for ref in inputs):
        return False
    if node.target in (ops.linear.default, ops.int8_linear.default, ops.int4_linear.default):
        return True
    if node.target in (ops.rms_norm.default, ops.add_rms_norm.default, ops.layer_norm.default):
        return True
    if node.target in (ops.add_layer_norm.default, ops.gated_activation.default, ops.activation.default):
        return True
    if node.target == ops.scale.default:
        return True
    if node.target == aten.slice.Tensor:
        return len(node.args) == 4 and node.args[1] in (2, -1) and not any(isinstance(arg, Size) for arg in node.args)
    if node.target in (aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.tanh.default):
        return all(isinstance(arg, Ref | bool | int | float) for arg in node.args) and not node.kwargs
    return False
