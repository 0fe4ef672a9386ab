"""Queries about a graph's nodes, and their replacement."""

from collections import defaultdict
from typing import Any

import torch

from gridwork_server.graph.nodes import Graph, Node, Ref

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""Data types that there are kernels for."""


class Rewriter:
    """An index of a graph's nodes by producer and use, for one rewrite."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producer: dict[Ref, Node] = {}
        self.uses: dict[Ref, list[Node]] = defaultdict(list)
        self.changed: set[Ref] = {graph.result}
        """Tensors that a rewrite must not touch: those that operations write to, and the graph's result."""
        for node in graph.nodes:
            for ref in node.inputs():
                self.uses[ref].append(node)
            for output in node.outputs:
                if output in self.producer:
                    self.changed.add(output)
                elif output is not None:
                    self.producer[output] = node
            if node.is_mutable:
                self.changed.update(node.inputs())

    def made_by(self, ref: Any, *targets: Any) -> Node | None:
        """The node that computes `ref`, if its operation is one of `targets`."""
        node = self.source(ref)
        return node if node is not None and node.target in targets else None

    def source(self, ref: Any) -> Node | None:
        """The node that computes `ref`, if nothing writes to that tensor."""
        return self.producer.get(ref) if isinstance(ref, Ref) and ref not in self.changed else None

    def only_use(self, ref: Ref) -> bool:
        """True if exactly one operation uses it, once."""
        return len(self.uses[ref]) == 1 and ref not in self.changed

    def new(self, target: Any, args: tuple[Any, ...], shape: Any, dtype: Any, out: Ref | None = None) -> Node:
        """Makes a node, without adding it to the graph."""
        return Node(target, args, {}, (out or self.graph.new_ref(),), shape, dtype)

    def rewrite(self, replacements: dict[int, list[Node]]) -> None:
        """replacements: by id of a node, the nodes that replace it."""
        nodes: list[Node] = []
        for node in self.graph.nodes:
            nodes += replacements.get(id(node), [node])
        self.graph.nodes[:] = nodes
