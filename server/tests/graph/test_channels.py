"""Tensors of channels that are computed as rows, and operations that must stay as they are."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gridwork_kernels import cpu_attention
from gridwork_server.graph.channels import compute_by_rows
from gridwork_server.graph.nodes import Graph
from gridwork_server.graph.program import Program
from gridwork_server.graph.record import record
from gridwork_server.graph.rewriter import Rewriter
from gridwork_server.graph.simplify import drop_unused, simplify

from .test_native import _layout

pytestmark = pytest.mark.skipif(not cpu_attention.supports(torch.float32), reason="no compiled kernels for this CPU")

TABLE = torch.rand(16, 12)
IDS = torch.tensor([[5, 0, 3, 9]])

Compute = Callable[[torch.Tensor], torch.Tensor]


def rewritten(compute: Compute) -> Graph:
    """The graph of operations on rows `[1, T, 12]`."""

    def forward(input_ids: torch.Tensor, _positions: torch.Tensor, kept: torch.Tensor, _step: Any) -> torch.Tensor:
        return compute(torch.nn.functional.embedding(input_ids, TABLE))[:, kept]

    graph = record(forward)
    simplify(graph)
    compute_by_rows(Rewriter(graph))
    drop_unused(graph)
    return graph


def result(graph: Graph) -> torch.Tensor:
    program = Program(graph, {}, set(), set())
    program.bind({}, {})
    return program.run(IDS, IDS, torch.arange(IDS.shape[1]), _layout(), _layout())  # type: ignore[arg-type]


def names(graph: Graph) -> Counter[str]:
    return Counter(node.name.removeprefix("aten.") for node in graph.nodes)


def products(x: torch.Tensor) -> torch.Tensor:
    first, second, third = x.transpose(1, 2).chunk(3, dim=1)
    product = (first * second.sigmoid())[:, :, -x.shape[1] :]
    return (product + third).transpose(-1, -2)


def cuts(x: torch.Tensor) -> torch.Tensor:
    first, second = x.transpose(2, 1).split([7, 5], dim=-2)
    return torch.cat([(first[:, 1:6] * second).transpose(1, 2), torch.nn.functional.silu(first).mT], dim=2)


@pytest.mark.parametrize("compute", [products, cuts])
def test_products_and_cuts_of_channels_are_computed_by_rows(compute: Compute) -> None:
    graph = rewritten(compute)
    assert torch.equal(result(graph), compute(TABLE[IDS]))
    assert names(graph)["transpose"] == 0


def sums_over_tokens(x: torch.Tensor) -> torch.Tensor:
    turned = x.transpose(1, 2)
    return (turned * turned.mean(2, keepdim=True)).transpose(1, 2)


def cut_of_tokens(x: torch.Tensor) -> torch.Tensor:
    turned = x.transpose(1, 2)
    return torch.cat([turned[:, :, 1:], turned[:, :, :1]], dim=2).transpose(1, 2)


def written_to(x: torch.Tensor) -> torch.Tensor:
    turned = (x * 2).transpose(1, 2)
    turned[:, :3].mul_(3.0)
    return (turned * turned).transpose(1, 2)


@pytest.mark.parametrize("compute", [sums_over_tokens, cut_of_tokens, written_to])
def test_other_operations_on_channels_stay(compute: Compute) -> None:
    graph = rewritten(compute)
    assert torch.equal(result(graph), compute(TABLE[IDS]))
    assert names(graph)["transpose"] > 0
