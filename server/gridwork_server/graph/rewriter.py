"""What rewrites of a graph ask about it, and how they put nodes in the places of others."""

from collections import defaultdict
from typing import Any

import torch

from gridwork_server.graph.nodes import Attend, Graph, Node, Ref

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""What there are kernels for."""


class Rewriter:
    """What is asked about a graph, and nodes that take the place of others."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producer: dict[Ref, Node] = {}
        self.uses: dict[Ref, list[Node]] = defaultdict(list)
        self.changed: set[Ref] = {graph.result}
        """Tensors that a rewrite must leave alone: those that operations write to, and what the graph gives."""
        for node in graph.nodes:
            for ref in node.inputs():
                self.uses[ref].append(node)
            for output in node.outputs:
                if output in self.producer:
                    self.changed.add(output)
                elif output is not None:
                    self.producer[output] = node
            if not isinstance(node.target, Attend) and node.target._schema.is_mutable:
                self.changed.update(node.inputs())

    def made_by(self, ref: Any, *targets: Any) -> Node | None:
        """The node that gives `ref`, when its operation is one of `targets`."""
        node = self.source(ref)
        return node if node is not None and node.target in targets else None

    def source(self, ref: Any) -> Node | None:
        """The node that gives `ref`, where that is a tensor which nothing writes to."""
        return self.producer.get(ref) if isinstance(ref, Ref) and ref not in self.changed else None

    def only_use(self, ref: Ref) -> bool:
        """Whether one operation alone uses it, once."""
        return len(self.uses[ref]) == 1 and ref not in self.changed

    def new(self, target: Any, args: tuple[Any, ...], shape: Any, dtype: Any, out: Ref | None = None) -> Node:
        """A node that is in no list yet."""
        return Node(target, args, {}, (out or self.graph.new_ref(),), shape, dtype)

    def rewrite(self, replacements: dict[int, list[Node]]) -> None:
        """By identity of a node: what takes its place."""
        nodes: list[Node] = []
        for node in self.graph.nodes:
            nodes += replacements.get(id(node), [node])
        self.graph.nodes[:] = nodes
