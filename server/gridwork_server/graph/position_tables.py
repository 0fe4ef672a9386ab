"""Tables of values that depend on a token's position alone, such as cosines and sines. Each is computed once."""

from typing import Any

import torch

from gridwork_server.graph.nodes import Graph, Node, Ref, Size, changed, mapped

aten = torch.ops.aten

_VIEWS = ("expand", "permute", "reshape", "select", "slice", "squeeze", "transpose", "unsqueeze", "view")
_CHANGES = ("_to_copy", "cat", "clone", "repeat_interleave", "stack", "to")
_ARITHMETIC = ("add", "bmm", "cos", "div", "mul", "neg", "pow", "sin", "sub")
"""Operations that a position's values may be computed by. Other operations may read tables that are shorter than the
longest sequence, or depend on other tokens."""

_FEWEST = 2
"""Minimum number of operations that a table replaces."""

_TRIED = ([7, 3], [10], [2, 9, 4, 4], list(range(1, 11)))
"""Positions that are computed together, to check that a position's values do not depend on the others."""

_FIRST = 1024
"""Number of positions that are computed at the start."""

_MOST_AT_ONCE = 4096


class PositionTables:
    """Tables that replace a graph's operations on positions. A row is filled before a step first needs it."""

    def __init__(self, graph: Graph) -> None:
        """Rewrites the graph in place: values that depend on the position alone become rows of a table, looked up by
        `aten.embedding`. Operations that are then unused remain, and must be dropped."""
        nodes = _of_positions(graph)
        producer = {ref: node for node in nodes for ref in node.outputs if ref is not None}
        results = [ref for ref in _needed(graph, nodes, producer) if _can_be_a_row(producer[ref])]
        self._position_ids = graph.position_ids
        self._plans = {ref: plan for ref in results if len(plan := _ancestors(ref, nodes)) >= _FEWEST}
        self._plans = {ref: plan for ref, plan in self._plans.items() if self._is_by_position(ref, plan)}
        self._tables: dict[Ref, torch.Tensor] = {}
        self._capacity = self._filled = 0
        replaced = {}
        for ref in self._plans:
            node = producer[ref]
            assert node.shape is not None and type(node.shape[-1]) is int and node.dtype is not None
            self._tables[ref] = torch.empty(0, node.shape[-1], dtype=node.dtype)
            arguments = self._tables[ref], graph.position_ids
            replaced[id(node)] = Node(aten.embedding.default, arguments, {}, (ref,), node.shape, node.dtype)
        graph.nodes[:] = [replaced.get(id(node), node) for node in graph.nodes]

    @property
    def count(self) -> int:
        """Number of tables."""
        return len(self._tables)

    def allocate(self, num_positions: int) -> None:
        """Allocates `num_positions` rows. The system gives memory only to rows that are written."""
        self._capacity, self._filled = num_positions, 0
        for table in self._tables.values():
            # The tensors stay the same, since programs refer to them.
            table.resize_(num_positions, table.shape[1])
        self.cover(min(_FIRST, num_positions))

    def cover(self, end: int) -> None:
        """Fills the tables for the positions below `end`."""
        if end <= self._filled:
            return
        if end > self._capacity:
            raise ValueError(f"position {end - 1} is beyond the {self._capacity} that there is room for")
        wanted = min(self._capacity, max(end, 2 * self._filled))
        for begin in range(self._filled, wanted, _MOST_AT_ONCE):
            positions = torch.arange(begin, min(wanted, begin + _MOST_AT_ONCE))
            for ref, plan in self._plans.items():
                self._tables[ref][positions] = self._compute(ref, plan, positions)
        self._filled = wanted

    @torch.inference_mode()
    def _compute(self, ref: Ref, plan: list[Node], positions: torch.Tensor) -> torch.Tensor:
        """`[P, features]`"""
        values: dict[Ref, Any] = {self._position_ids: positions[None]}

        def value(leaf: Any) -> Any:
            if type(leaf) is Size:
                return leaf.at(len(positions), 0)
            return values[leaf] if type(leaf) is Ref else leaf

        for node in plan:
            values[node.out] = node.target(*mapped(node.args, value), **mapped(node.kwargs, value))
        result: torch.Tensor = values[ref][0]
        return result

    def _is_by_position(self, ref: Ref, plan: list[Node]) -> bool:
        """True if a position's values are the same, bit for bit, whatever is computed with them."""
        every = self._compute(ref, plan, torch.arange(1 + max(map(max, _TRIED))))
        return all(
            torch.equal(self._compute(ref, plan, positions), every[positions])
            for positions in (torch.tensor(tried) for tried in _TRIED)
        )


def _of_positions(graph: Graph) -> list[Node]:
    """Operations that depend only on positions and constants."""
    known = {graph.position_ids}
    written = changed(graph)
    nodes = []
    for node in graph.nodes:
        if node.uses_cache or len(node.outputs) != 1 or written.intersection(node.outputs):
            continue
        name = node.target._schema.name.removeprefix("aten::")
        if (
            name in (*_VIEWS, *_CHANGES, *_ARITHMETIC)
            and known.issuperset(node.inputs())
            and not _depends_on_rows(node)
        ):
            known.update(ref for ref in node.outputs if ref is not None)
            nodes.append(node)
    return nodes


def _depends_on_rows(node: Node) -> bool:
    """True if one of its sizes depends on the number of rows of logits."""
    found = []

    def look(leaf: Any) -> Any:
        found.append(type(leaf) is Size and leaf.rows != 0)
        return leaf

    mapped((node.args, node.kwargs), look)
    return any(found)


def _needed(graph: Graph, nodes: list[Node], producer: dict[Ref, Node]) -> list[Ref]:
    """The results of these operations that other operations use, directly or through views."""
    inside = {id(node) for node in nodes}
    needed: dict[Ref, None] = {}
    for used in [graph.result, *(ref for node in graph.nodes if id(node) not in inside for ref in node.inputs())]:
        ref = used
        while ref in producer and producer[ref].target._schema.name.removeprefix("aten::") in _VIEWS:
            ref = next(producer[ref].inputs(), graph.position_ids)
        if ref in producer:
            needed[ref] = None
    return list(needed)


def _can_be_a_row(node: Node) -> bool:
    """True if its output has shape `[1, T, features]` and a floating-point type."""
    shape = node.shape
    of_tokens = shape is not None and len(shape) == 3 and shape[:2] == (1, Size(0, 1, 0)) and type(shape[2]) is int
    return of_tokens and node.dtype is not None and node.dtype.is_floating_point


def _ancestors(ref: Ref, nodes: list[Node]) -> list[Node]:
    """The operations that `ref` depends on, in order."""
    wanted = {ref}
    found = []
    for node in reversed(nodes):
        if node.out in wanted:
            found.append(node)
            wanted.update(node.inputs())
    return found[::-1]
