"""A model's forward pass as recorded, fused programs."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from gridwork_kernels.packed_linear import PackedLinear
from gridwork_kernels.paged_attention import PagedLayout
from gridwork_kernels.quantized_linear import QuantizedLinear
from gridwork_server.graph.fuse import fuse, replace_scales
from gridwork_server.graph.kept_rows import by_kept_rows
from gridwork_server.graph.nodes import Graph, Node
from gridwork_server.graph.packing import pack_constants
from gridwork_server.graph.position_tables import PositionTables
from gridwork_server.graph.program import Program
from gridwork_server.graph.record import Forward, RecordError, record
from gridwork_server.graph.simplify import drop_unused

if TYPE_CHECKING:
    from gridwork_kernels.states import StateLayout
    from gridwork_server.attention import LayerKey
    from gridwork_server.graph.nodes import Graph
    from gridwork_server.lengths.call_lengths import CallLengths
    from gridwork_server.recurrent.pool import StatePool


_PRODUCTS = ("addmm", "baddbmm", "bmm", "convolution", "einsum", "linear", "matmul", "mm", "_grouped_mm")

_FUNCTIONS = ("cos", "erf", "exp", "gelu", "log", "log1p", "pow", "sigmoid", "silu", "sin", "softplus", "tanh")
"""PyTorch computes whole vectors of values in one way, and the values that are left in another."""


def foreign_operations(graph: Graph) -> list[str]:
    """Names of the graph's PyTorch operations whose results for a token may be rounded by how many tokens there are."""
    suspects = {*_PRODUCTS, *_FUNCTIONS}
    return sorted(
        {node.name for node in graph.nodes if node.name.removeprefix("aten.") in suspects and not _squares(node)}
    )


def _squares(node: Node) -> bool:
    """True for x ** 2, which PyTorch computes as x * x."""
    return node.target == torch.ops.aten.pow.Tensor_Scalar and node.args[1] == 2


class RecordedModel:
    """Programs for any number of tokens: one for steps with logits of every token, and one for other steps."""

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        chunks: dict[int, int],
        sharing: "set[LayerKey]",
        windowed: "set[LayerKey]",
        lengths: "CallLengths | None" = None,
    ) -> None:
        """forward: calls the model; lengths: gives tables that positions index, which replace what modules compute from
        positions; for the others see Program. Raises RecordError when the model cannot be recorded."""
        packed = [module for module in model.modules() if isinstance(module, PackedLinear | QuantizedLinear)]
        owners = {
            id(buffer): (module, name)
            for module in packed
            for name, buffer in module.named_buffers(recurse=False)
            if name != "bias"
        }

        def replace_weight(old: torch.Tensor, new: torch.Tensor) -> None:
            if id(old) in owners:  # other tensors belong to the graph
                module, name = owners[id(old)]
                setattr(module, name, new)

        graph = record(forward)
        self._lengths = lengths
        if lengths is not None:
            drop_unused(graph)
            _check_positions(graph, lengths)
        pack_constants(graph)
        fuse(graph, replace_weight)
        self._positions = PositionTables(graph)
        drop_unused(graph)
        replace_scales(graph)
        graphs = by_kept_rows(graph) or (graph,)
        programs = [Program(each, chunks, sharing, windowed) for each in graphs]
        self._for_all_rows, self._for_some_rows = programs[0], programs[-1]
        self.foreign_operations = foreign_operations(graph)
        """See the function of this name."""

    @property
    def num_operations(self) -> int:
        """Number of operations of a forward pass with logits of every token."""
        return self._for_all_rows.num_operations

    def bind(
        self,
        keys: "dict[LayerKey, torch.Tensor]",
        values: "dict[LayerKey, torch.Tensor]",
        num_positions: int,
        pool: "StatePool | None" = None,
    ) -> None:
        """Sets the layers' caches and states. num_positions: maximum length of a sequence."""
        if self._lengths is not None:
            self._lengths.allocate(num_positions)
        self._positions.allocate(num_positions)
        for program in {self._for_all_rows, self._for_some_rows}:
            program.bind(keys, values, pool)

    def run(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        kept: torch.Tensor,
        layout: PagedLayout,
        window_layout: PagedLayout | None,
        states: "StateLayout | None" = None,
    ) -> torch.Tensor:
        """input_ids, position_ids: int64 `[1, T]`; kept: int64 `[K]`, ascending. Returns logits `[1, K, vocab]`."""
        if self._positions.count:
            self._positions.cover(max(layout.end, default=0))
        program = self._for_some_rows if kept.shape[0] < input_ids.shape[1] else self._for_all_rows
        return program.run(input_ids, position_ids, kept, layout, window_layout or layout, states)


def _check_positions(graph: "Graph", lengths: "CallLengths") -> None:
    """Raises RecordError where positions are used other than to look up rows of `lengths`' tables: a program receives
    the rows' indices as its positions."""
    for node in graph.nodes:
        looks_up = node.target == torch.ops.aten.embedding.default and lengths.owns(node.args[0])
        if graph.position_ids in node.inputs() and not looks_up:
            raise RecordError(f"{node.name} uses positions, beside rotary frequencies that depend on the length")
