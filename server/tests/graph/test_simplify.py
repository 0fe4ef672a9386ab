"""Operations that are removed, and operations that must stay."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gridwork_kernels import cpu_attention
from gridwork_server.graph.nodes import Graph
from gridwork_server.graph.program import Program
from gridwork_server.graph.record import record
from gridwork_server.graph.simplify import drop_unused, simplify

from .test_native import _layout

pytestmark = pytest.mark.skipif(not cpu_attention.supports(torch.float32), reason="no compiled kernels for this CPU")

IDS = torch.tensor([[5, 0, 3, 9]])


def simplified(compute: Callable[[torch.Tensor], torch.Tensor]) -> Graph:
    """A graph of operations on the tokens as numbers, `[1, T]`."""

    def forward(input_ids: torch.Tensor, _positions: torch.Tensor, kept: torch.Tensor, _step: Any) -> torch.Tensor:
        return compute(input_ids * 1.0)[:, kept]

    graph = record(forward)
    simplify(graph)
    drop_unused(graph)
    return graph


def result(graph: Graph) -> torch.Tensor:
    program = Program(graph, {}, set(), set())
    program.bind({}, {})
    return program.run(IDS, IDS, torch.arange(IDS.shape[1]), _layout(), _layout())  # type: ignore[arg-type]


def names(graph: Graph) -> Counter[str]:
    return Counter(node.name.removeprefix("aten.") for node in graph.nodes)


def test_equal_operations_are_computed_once() -> None:
    weight = torch.rand(1)

    def compute(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([(x + weight).sin(), (x + weight).sin(), x + weight.clone()])[1]

    graph = simplified(compute)
    assert torch.equal(result(graph), compute(IDS * 1.0))
    assert names(graph)["sin"] == 1 and names(graph)["add"] == 2 and names(graph)["clone"] == 0


def test_operations_with_other_arguments_stay() -> None:
    first, second = torch.rand(1), torch.rand(1)

    def compute(x: torch.Tensor) -> torch.Tensor:
        sums = [x + first, x + second, x + 1, x + 1.5, x.add(1, alpha=2)]
        return torch.stack(sums).sum(0) + torch.stack([x * 0.0, x * -0.0]).signbit().sum(0)

    graph = simplified(compute)
    assert torch.equal(result(graph), compute(IDS * 1.0))
    assert sum(node.name == "aten.add" and len(node.args) == 2 for node in graph.nodes) == 5 + 1


@pytest.mark.parametrize("by_view", [False, True])
def test_operations_on_written_tensors_are_repeated(by_view: bool) -> None:
    def compute(x: torch.Tensor) -> torch.Tensor:
        seen = x.view(-1) if by_view else x
        before = seen + 1
        x.add_(10)
        return (before * (seen + 1)).view(1, -1)

    graph = simplified(compute)
    assert torch.equal(result(graph), compute(IDS * 1.0))
    assert names(graph)["add"] == 2


def test_constants_are_computed_once() -> None:
    weight = torch.rand(3, 2)

    def compute(x: torch.Tensor) -> torch.Tensor:
        return x * weight.double().sum().float() + torch.arange(3).sum()

    graph = simplified(compute)
    assert torch.equal(result(graph), compute(IDS * 1.0))
    assert names(graph) == Counter({"mul": 2, "add": 1, "index": 1})


def test_large_constants_are_computed_in_each_step() -> None:
    graph = simplified(lambda x: x + torch.ones(300, 300).sum())
    assert names(graph)["ones"] == names(graph)["sum"] == 1


@pytest.mark.parametrize("by_view", [False, True])
def test_constants_that_are_written_to_are_read_in_each_step(by_view: bool) -> None:
    counter = torch.zeros(1)

    def compute(x: torch.Tensor) -> torch.Tensor:
        (counter.view(1) if by_view else counter).add_(1)
        return x + counter * 2

    graph = simplified(compute)
    counter.zero_()
    assert [float(result(graph)[0, 1]) for _ in range(3)] == [2, 4, 6]


def test_writes_that_nothing_reads_are_removed() -> None:
    def compute(x: torch.Tensor) -> torch.Tensor:
        unused, used = torch.stack([x, x + 1]), torch.stack([x, x + 2])
        unused[0, :, :1].copy_(x[:, :1] * 3)
        used[0, :, :1].copy_(x[:, :1] * 4)
        return used[0] + used[1]

    graph = simplified(compute)
    assert torch.equal(result(graph), compute(IDS * 1.0))
    assert names(graph)["copy_"] == 1 and names(graph)["stack"] == 1
