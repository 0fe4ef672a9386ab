"""Native programs: segments of a graph that the compiled library runs in one call.

A program writes the results of its own operations to memory that it reuses: `_allocate` decides where each lies.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from gridwork_kernels.paged_attention import PagedLayout
from gridwork_kernels.program import Call, CompiledProgram
from gridwork_kernels.states import StateLayout
from gridwork_server.attention import LayerKey
from gridwork_server.graph.nodes import Node, Ref, Size
from gridwork_server.graph.operations import Caches, OperationWriter
from gridwork_server.graph.plan import Plan, Segment, features_of
from gridwork_server.recurrent.pool import StatePool


class NativeProgram:
    """A segment as the compiled library runs it."""

    def __init__(self, plan: Plan, segment: Segment) -> None:
        """Keeps the segment: the program holds the addresses of its weights."""
        self._plan, self._segment = plan, segment
        self._external = [*segment.needs, *segment.outputs]
        self._slots: dict[Ref, int] = {ref: i for i, ref in enumerate(self._external)}
        self._operations = self._merge_gated_linears()
        self._sections = self._split_sections()
        self._places, self._persistent_bytes, self._temporary_bytes = self._allocate()
        self._shapes = [(plan.shapes[ref], plan.dtypes[ref]) for ref in segment.outputs]
        self._call = Call(len(self._external))
        self._program: CompiledProgram

    def bind(
        self,
        caches: Caches,
        pool: StatePool | None,
        chunks: dict[int, int],
        sharing: set[LayerKey],
        windowed: set[LayerKey],
    ) -> None:
        """Writes the program for these caches. For the other arguments see Program."""
        writer = OperationWriter(self._plan, self._slots, caches, pool, chunks, sharing, windowed)
        for section in self._sections:
            writer.begin_section()
            for nodes in section:
                if len(nodes) == 2:
                    writer.gated_linear(*nodes)
                else:
                    writer.node(*nodes)
            writer.end_section(independent_tokens=not section[0][0].uses_cache)
        places = [place.begin if place.is_persistent else ~place.begin for place in self._places]
        self._program = CompiledProgram(
            writer.code, len(self._external), places, self._persistent_bytes, self._temporary_bytes
        )

    def __call__(
        self, num_tokens: int, near: PagedLayout, far: PagedLayout, states: StateLayout | None, *inputs: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Computes the segment's outputs. near, far: the layouts of layers without and with a window; states: places
        of recurrent states."""
        whole = [tensor.contiguous() for tensor in inputs]
        outputs = [
            torch.empty([size.at(num_tokens, 0) if type(size) is Size else size for size in shape], dtype=dtype)
            for shape, dtype in self._shapes
        ]
        self._call.set(num_tokens, near, far, states, [*whole, *outputs])
        self._program.run(self._call)
        return tuple(outputs)

    def _merge_gated_linears(self) -> list[tuple[Node, ...]]:
        """The nodes of each operation: one node, or a linear layer and the gated activation that follows it."""
        operations: list[tuple[Node, ...]] = []
        for node in self._segment.nodes:
            if operations and len(operations[-1]) == 1 and self._is_gated_linear(operations[-1][0], node):
                operations[-1] = (*operations[-1], node)
            else:
                operations.append((node,))
        return operations

    def _is_gated_linear(self, linear: Node, gated: Node) -> bool:
        """True if `gated` multiplies the activation of the first half of the layer's features by the second half, and
        nothing else needs the features."""
        ops = torch.ops.gridwork_cpu
        if linear.target != ops.linear.default or gated.target != ops.gated_activation.default:
            return False
        _, packed, _, features, float32_out = linear.args
        gate, up = (self._plan.rows[ref] for ref in gated.args[:2])
        width = features // 2
        halves = [(rows.base, rows.offset, rows.stride, rows.features) for rows in (gate, up)]
        if halves != [(linear.out, 0, features, width), (linear.out, width, features, width)]:
            return False
        users = sum(self._plan.base(ref) == linear.out for node in self._segment.nodes for ref in node.inputs())
        only = users == 2 and linear.out not in self._segment.outputs
        # The kernel needs whole panels, and one row for each token.
        panels = width % packed.shape[2] == 0
        return only and panels and not float32_out and self._plan.rows[linear.out].features == features

    def _split_sections(self) -> list[list[tuple[Node, ...]]]:
        """The operations in sections: each that uses the cache is one, and so are those between two of them."""
        sections: list[list[tuple[Node, ...]]] = []
        for nodes in self._operations:
            if not sections or nodes[0].uses_cache or sections[-1][0][0].uses_cache:
                sections.append([])
            sections[-1].append(nodes)
        return sections

    def _allocate(self) -> tuple[list["_Place"], int, int]:
        """Gives a slot and a place in memory to every tensor that only the segment uses. Returns the places, and the
        bytes of persistent and of temporary memory for each token.

        Memory is reused when its tensor is no longer needed. Blocks of tokens are at different operations of a section
        at a time. Persistent memory is therefore free after the section that reads it last, and temporary memory after
        the operation that reads it last."""
        last_section: dict[Ref, int] = {}
        last_operation: dict[Ref, tuple[int, int]] = {}
        for i, section in enumerate(self._sections):
            for j, nodes in enumerate(section):
                for ref in (self._plan.base(ref) for node in nodes for ref in node.inputs()):
                    last_section[ref], last_operation[ref] = i, (i, j)
        places: list[_Place] = []
        persistent, temporary = _Memory(), _Memory()
        for i, section in enumerate(self._sections):
            uses_cache = section[0][0].uses_cache
            for j, nodes in enumerate(section):
                for ref in (output for node in nodes for output in node.outputs if output is not None):
                    if ref in self._slots:
                        continue
                    size = features_of(self._plan.shapes[ref]) * self._plan.dtypes[ref].itemsize
                    is_persistent = uses_cache or last_section.get(ref, i) > i
                    begin = (persistent if is_persistent else temporary).take(ref, size)
                    self._slots[ref] = len(self._external) + len(places)
                    places.append(_Place(begin, is_persistent))
                temporary.free(lambda ref, now=(i, j): last_operation.get(ref, now) <= now)  # type: ignore[misc]
            persistent.free(lambda ref, now=i: last_section.get(ref, now) <= now)  # type: ignore[misc]
        return places, persistent.size, temporary.size


class _Place(NamedTuple):
    """The place of a tensor in the program's own memory."""

    begin: int
    """Bytes before it for each token."""
    is_persistent: bool
    """True if other sections read it than the one that computes it."""


class _Memory:
    """Allocates the bytes of one token to tensors."""

    def __init__(self) -> None:
        self.size = 0
        self._taken: list[tuple[int, int, Ref]] = []  # begin, end

    def take(self, ref: Ref, size: int) -> int:
        """Allocates the first free place of `size` bytes, and returns where it begins."""
        begin = 0
        for start, end, _ in sorted(self._taken, key=lambda item: item[:2]):
            if start - begin >= size:
                break
            begin = max(begin, end)
        self._taken.append((begin, begin + size, ref))
        self.size = max(self.size, begin + size)
        return begin

    def free(self, is_free: Callable[[Ref], bool]) -> None:
        """Frees the places of all tensors for which `is_free` is true."""
        self._taken = [item for item in self._taken if not is_free(item[2])]
