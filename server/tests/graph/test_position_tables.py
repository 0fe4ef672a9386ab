"""Tables of positions against the operations that they replace."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gridwork_kernels import cpu_attention
from gridwork_server.graph.position_tables import PositionTables
from gridwork_server.graph.program import Program
from gridwork_server.graph.record import record
from gridwork_server.graph.simplify import drop_unused

from .. import models
from .test_native import _layout
from .test_recorded_models import LIMITS, all_logits, loaded

pytestmark = pytest.mark.skipif(not cpu_attention.supports(torch.float32), reason="no compiled kernels for this CPU")

FREQUENCIES = 1.0 / 100 ** (torch.arange(4) / 4)


def angles(positions: torch.Tensor) -> torch.Tensor:
    """`[1, T, 8]`"""
    half = positions[:, :, None].float() * FREQUENCIES
    return torch.cat([half, half], -1)


def rotated(input_ids: torch.Tensor, positions: torch.Tensor, kept: torch.Tensor, _step: Any) -> torch.Tensor:
    x = input_ids[:, :, None].float()
    all_angles = angles(positions)
    return (x * all_angles.cos() + (x + 1) * all_angles.sin().unsqueeze(1)[0])[:, kept]


def run(forward: Any, positions: torch.Tensor, num_positions: int) -> tuple[PositionTables, torch.Tensor]:
    graph = record(forward)
    tables = PositionTables(graph)
    drop_unused(graph)
    tables.allocate(num_positions)
    tables.cover(int(positions.max()) + 1)
    program = Program(graph, {}, set(), set())
    program.bind({}, {})
    kept = torch.arange(positions.shape[1])
    return tables, program.run(2 * positions, positions, kept, _layout(), _layout())  # type: ignore[arg-type]


@pytest.mark.parametrize("highest", [5, 1500, 9999])
def test_tables_equal_the_operations(highest: int) -> None:
    positions = torch.tensor([[highest, 0, 3, highest // 2, 3]])
    tables, result = run(rotated, positions, 10000)
    assert tables.count == 2, "cosines and sines"
    assert torch.equal(result, rotated(2 * positions, positions, torch.arange(5), None))


def test_positions_beyond_the_tables_are_refused() -> None:
    tables, _ = run(rotated, torch.tensor([[99]]), 100)
    with pytest.raises(ValueError, match="position 100 is beyond the 100"):
        tables.cover(101)


def test_operations_on_other_tokens_and_lookups_stay() -> None:
    learned = torch.randn(400, 8)

    def relative(input_ids: torch.Tensor, positions: torch.Tensor, kept: torch.Tensor, _step: Any) -> torch.Tensor:
        return (angles(positions - positions.amin()).sin() + input_ids[:, :, None])[:, kept]

    def summed(input_ids: torch.Tensor, positions: torch.Tensor, kept: torch.Tensor, _step: Any) -> torch.Tensor:
        return (angles(positions).sin().expand(2, -1, -1)[:1].cumsum(1) + input_ids[:, :, None])[:, kept]

    def looked_up(input_ids: torch.Tensor, positions: torch.Tensor, kept: torch.Tensor, _step: Any) -> torch.Tensor:
        return (torch.nn.functional.embedding(positions + 2, learned) + input_ids[:, :, None])[:, kept]

    positions = torch.tensor([[17, 30, 18]])
    for forward, count in ((relative, 0), (summed, 1), (looked_up, 0)):
        tables, result = run(forward, positions, 100)
        assert tables.count == count, forward.__name__
        assert torch.equal(result, forward(2 * positions, positions, torch.arange(3), None))


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3"])
def test_models_look_up_angles(name: str, tmp_path: Path) -> None:
    path = loaded(models.save(name, tmp_path))
    recorded: Any = path._recorded
    assert recorded._positions.count == 2
    assert torch.isfinite(all_logits(path, [200, 90])).all()
    # A row for each token of the longest sequence, and for a step in flight.
    assert all(len(table) == LIMITS.max_total_tokens + 2 for table in recorded._positions._tables.values())
