"""Views that are moved and shortened."""

import pytest
import torch

from gridwork_kernels import cpu_attention
from gridwork_server.graph.nodes import Graph, Node, Ref, Size
from gridwork_server.graph.rewriter import Rewriter
from gridwork_server.graph.views import sink_transposes

pytestmark = pytest.mark.skipif(not cpu_attention.supports(torch.float32), reason="no compiled kernels for this CPU")

aten = torch.ops.aten
T = Size(0, 1, 0)
WEIGHT = torch.rand(8)


def sunk(*operations: tuple[object, tuple[object, ...], int, tuple[object, ...]]) -> list[str]:
    """Names of the operations after the rewrite, of (target, arguments, output, shape) on transposed heads `[1, T, 4,
    8]`."""
    norm = torch.ops.gridwork_cpu.rms_norm.default
    nodes = [
        Node(target or norm, args, {}, (Ref(out),), shape, torch.float32)
        for target, args, out, shape in (
            (aten.embedding.default, (torch.rand(9, 4, 8), Ref(0)), 3, (1, T, 4, 8)),
            (aten.transpose.int, (Ref(3), 1, 2), 4, (1, 4, T, 8)),
            *operations,
        )
    ]
    graph = Graph(Ref(0), Ref(1), Ref(2), nodes, nodes[-1].out, next_index=50)
    sink_transposes(Rewriter(graph))
    return [node.name.split(".")[1] for node in graph.nodes[1:]]


SELECT = (aten.select.int, (Ref(5), 0, 0), 6, (4, T, 8))
TURN = (aten.transpose.int, (Ref(6), 0, 1), 7, (T, 4, 8))
NEG = (aten.neg.default, (Ref(7),), 8, (T, 4, 8))


def test_norms_of_attended_heads_move_before_the_transpose() -> None:
    norm = (None, (Ref(4), WEIGHT, 1e-6, 0), 5, (1, 4, T, 8))
    assert sunk(norm, SELECT, TURN, NEG) == ["transpose", "rms_norm", "transpose", "select", "transpose", "neg"]


def test_norms_with_other_users_stay() -> None:
    norm = (None, (Ref(4), WEIGHT, 1e-6, 0), 5, (1, 4, T, 8))
    flat = (aten.view.default, (Ref(5), [1, -1]), 9, (1, Size(0, 32, 0)))
    assert sunk(norm, SELECT, TURN, flat) == ["transpose", "rms_norm", "select", "transpose", "view"]


def test_cuts_of_the_last_dimension_move_before_the_transpose() -> None:
    for dim, end, shape in ((3, 4, (1, 4, T, 4)), (-1, 4, (1, 4, T, 4)), (1, 2, (1, 2, T, 8))):
        cut = (aten.slice.Tensor, (Ref(4), dim, 0, end), 5, shape)
        neg = (aten.neg.default, (Ref(5),), 6, shape)
        turns = ["transpose", "slice", *(["transpose"] if dim != 1 else []), "neg"]
        assert sunk(cut, neg) == turns
