"""Products with constant weights become packed linear layers."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from gridwork_kernels import cpu_library
from gridwork_server.graph.packing import pack_constants
from gridwork_server.graph.program import Program
from gridwork_server.graph.record import record

from .. import models
from .test_recorded_models import all_logits, loaded

pytestmark = pytest.mark.skipif(cpu_library.load() is None, reason="no compiled kernels for this CPU")

PACKED = "gridwork_cpu.linear"


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_constant_and_converted_weights_are_packed(dtype: torch.dtype) -> None:
    table, weight, bias = torch.randn(50, 24).to(dtype), torch.randn(5, 24).to(dtype), torch.randn(5).to(dtype)

    def forward(input_ids: torch.Tensor, _positions: torch.Tensor, kept: torch.Tensor, _step: Any) -> torch.Tensor:
        x = torch.nn.functional.embedding(input_ids, table)
        plain, converted = linear(x, weight, bias), linear(x.float(), weight.float())
        return (linear(x, weight).float() + plain.float() * converted)[:, kept]

    graph = record(forward)
    pack_constants(graph)
    names = Counter(node.name for node in graph.nodes)
    assert names[PACKED] == 3 and names["aten.linear"] == 0
    ids, kept = torch.arange(20)[None], torch.arange(3, 20)
    layout: Any = type("Layout", (), dict.fromkeys(("block_tables", "sequence", "length", "slots")))
    got = Program(graph, {}, set(), set(), native=False).run(ids, ids, kept, layout, layout)
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    torch.testing.assert_close(got, forward(ids, ids, kept, None), rtol=tolerance, atol=tolerance)
    shared = {id(node.args[1]) for node in graph.nodes if node.name == PACKED}
    assert len(shared) == (1 if dtype == torch.float32 else 2), "each weight is packed once for each type"


@torch.inference_mode()
def test_computed_and_written_weights_are_not_packed() -> None:
    weight, sums = torch.randn(24, 24), torch.zeros(24, 24)

    def computed(input_ids: torch.Tensor, _positions: torch.Tensor, kept: torch.Tensor, _step: Any) -> torch.Tensor:
        x = input_ids[..., None].float().expand(-1, -1, 24)
        return linear(x, weight * x.mean())[:, kept]

    def other_type(input_ids: torch.Tensor, _positions: torch.Tensor, kept: torch.Tensor, _step: Any) -> torch.Tensor:
        return linear(input_ids[..., None].double().expand(-1, -1, 24), weight.double())[:, kept]

    def written(input_ids: torch.Tensor, _positions: torch.Tensor, kept: torch.Tensor, _step: Any) -> torch.Tensor:
        sums.add_(1)
        return linear(input_ids[..., None].float().expand(-1, -1, 24), sums)[:, kept]

    def written_in_part(input_ids: torch.Tensor, _ids: torch.Tensor, kept: torch.Tensor, _step: Any) -> torch.Tensor:
        sums[:1].add_(1)
        x = input_ids[..., None].float().expand(-1, -1, 24)
        return (linear(x, other) + linear(x, other.to(torch.float32)))[:, kept]

    other = sums.view(24, 24)  # another tensor with the same memory
    for forward in (computed, other_type, written, written_in_part):
        graph = record(forward)
        pack_constants(graph)
        assert PACKED not in {node.name for node in graph.nodes}, forward.__name__


def test_the_router_of_experts_is_packed(tmp_path: Path) -> None:
    path = loaded(models.save("qwen3_moe", tmp_path), "bfloat16")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        all_logits(path, [3])
    assert not {"aten::linear", "aten::mm", "aten::addmm"} & {event.key for event in profiler.key_averages()}
