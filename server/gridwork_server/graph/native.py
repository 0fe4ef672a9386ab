"""Consecutive operations for which there are kernels, as a program that the compiled library runs in one call."""

import ctypes
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from gridwork_kernels import cpu_library
from gridwork_kernels.paged_attention import PagedLayout
from gridwork_server.attention import LayerKey
from gridwork_server.graph.nodes import Attend, Node, Ref, Size
from gridwork_server.graph.plan import TYPES, Plan, Rows, Segment, features_of, last_dim

aten = torch.ops.aten

Caches = dict[LayerKey, tuple[torch.Tensor, torch.Tensor]]

OPERATIONS = (
    "linear",
    "quantized_linear",
    "norm",
    "add_norm",
    "add",
    "gated_activation",
    "paged_attention",
    "gated_linear",
    "embedding",
    "activation",
    "scale",
)
"""In the order of their numbers in `kernels/cpu/program.cpp`."""


class NativeProgram:
    """A segment as the compiled library runs it."""

    def __init__(self, plan: Plan, segment: Segment) -> None:
        """Keeps the segment, whose weights' addresses stand in the program."""
        self._plan, self._segment = plan, segment
        self._external = [*segment.needs, *segment.outputs]
        self._slots: dict[Ref, int] = {ref: i for i, ref in enumerate(self._external)}
        self._operations = self._joined()
        self._sections = self._cut()
        self._places, self._lasting_bytes, self._passing_bytes = self._place()
        self._shapes = [(plan.shapes[ref], plan.dtypes[ref]) for ref in segment.outputs]
        self._call = np.zeros(_HEADER + len(self._external), dtype=np.int64)
        self._address = self._call.ctypes.data
        self._program: int | None = None

    def bind(self, caches: Caches, chunks: dict[int, int], sharing: set[LayerKey], windowed: set[LayerKey]) -> None:
        """Writes the program for these caches. See Program for the others."""
        writer = _Writer(self._plan, self._slots, caches, chunks, sharing, windowed)
        numbers: list[int] = []
        for section in self._sections:
            for nodes in section:
                if len(nodes) == 2:
                    writer.gated_linear(*nodes)
                else:
                    writer.node(*nodes)
            sign = -1 if _is_attention(section[0]) else 1
            numbers += [sign * len(writer.code), *writer.code]
            writer.code.clear()
        code = np.array(numbers, dtype=np.int64)
        places = np.array([place.begin if place.lasting else ~place.begin for place in self._places], dtype=np.int64)
        self._delete()
        self._program = _library().gridwork_program_new(
            code.ctypes.data,
            len(code),
            len(self._external),
            places.ctypes.data,
            len(places),
            self._lasting_bytes,
            self._passing_bytes,
        )

    def __call__(
        self, num_tokens: int, near: PagedLayout, far: PagedLayout, *inputs: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Computes the segment's outputs."""
        whole = [tensor.contiguous() for tensor in inputs]
        outputs = [
            torch.empty([size.at(num_tokens, 0) if type(size) is Size else size for size in shape], dtype=dtype)
            for shape, dtype in self._shapes
        ]
        self._call[:] = (
            num_tokens,
            *_layout_numbers(near),
            *(_layout_numbers(far) if far is not near else (0,) * 5),
            *(tensor.data_ptr() for tensor in whole),
            *(tensor.data_ptr() for tensor in outputs),
        )
        if far is near:
            self._call[6:11] = self._call[1:6]
        _library().gridwork_program_run(self._program, self._address)
        return tuple(outputs)

    def _joined(self) -> list[tuple[Node, ...]]:
        """The segment's nodes, those together that are one operation: a linear layer and the activation behind it."""
        operations: list[tuple[Node, ...]] = []
        for node in self._segment.nodes:
            if operations and len(operations[-1]) == 1 and self._is_gated_linear(operations[-1][0], node):
                operations[-1] = (*operations[-1], node)
            else:
                operations.append((node,))
        return operations

    def _is_gated_linear(self, linear: Node, gated: Node) -> bool:
        """Whether the second node multiplies the activation of the first half of a linear layer's features with its
        second half, and nothing else needs them."""
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
        # Whole panels, and one row for each token.
        panels = width % packed.shape[2] == 0
        return only and panels and not float32_out and self._plan.rows[linear.out].features == features

    def _cut(self) -> list[list[tuple[Node, ...]]]:
        """The operations in sections: each attention, and what is between them."""
        sections: list[list[tuple[Node, ...]]] = []
        for nodes in self._operations:
            if not sections or _is_attention(nodes) or _is_attention(sections[-1][0]):
                sections.append([])
            sections[-1].append(nodes)
        return sections

    def _place(self) -> tuple[list["_Place"], int, int]:
        """Where every tensor lies that only the segment uses, and how many bytes those that last and the others take
        for each token; gives each a slot.

        Memory of one that is not needed any more is used again. Blocks of tokens are at different operations of a
        section: what lasts is free when the section that reads it last has ended, other memory behind the operation
        that does."""
        last_section: dict[Ref, int] = {}
        last_operation: dict[Ref, tuple[int, int]] = {}
        for i, section in enumerate(self._sections):
            for j, nodes in enumerate(section):
                for ref in (self._plan.base(ref) for node in nodes for ref in node.inputs()):
                    last_section[ref], last_operation[ref] = i, (i, j)
        places: list[_Place] = []
        lasting, passing = _Memory(), _Memory()
        for i, section in enumerate(self._sections):
            attention = _is_attention(section[0])
            for j, nodes in enumerate(section):
                for ref in (output for node in nodes for output in node.outputs if output is not None):
                    if ref in self._slots:
                        continue
                    size = features_of(self._plan.shapes[ref]) * self._plan.dtypes[ref].itemsize
                    lasts = attention or last_section.get(ref, i) > i
                    begin = (lasting if lasts else passing).take(ref, size)
                    self._slots[ref] = len(self._external) + len(places)
                    places.append(_Place(begin, lasts))
                passing.free(lambda ref, now=(i, j): last_operation.get(ref, now) <= now)  # type: ignore[misc]
            lasting.free(lambda ref, now=i: last_section.get(ref, now) <= now)  # type: ignore[misc]
        return places, lasting.size, passing.size

    def _delete(self) -> None:
        if self._program is not None:
            _library().gridwork_program_delete(self._program)
            self._program = None

    def __del__(self) -> None:
        self._delete()


class _Place(NamedTuple):
    """Of a tensor in the program's own memory."""

    begin: int
    """Bytes before it for each token."""
    lasting: bool
    """Whether other sections than the one that makes it read it."""


class _Memory:
    """Bytes of a token, given to tensors and taken back."""

    def __init__(self) -> None:
        self.size = 0
        self._taken: list[tuple[int, int, Ref]] = []  # begin, end

    def take(self, ref: Ref, size: int) -> int:
        """The first free place for so many bytes."""
        begin = 0
        for start, end, _ in sorted(self._taken, key=lambda item: item[:2]):
            if start - begin >= size:
                break
            begin = max(begin, end)
        self._taken.append((begin, begin + size, ref))
        self.size = max(self.size, begin + size)
        return begin

    def free(self, is_free: Callable[[Ref], bool]) -> None:
        self._taken = [item for item in self._taken if not is_free(item[2])]


class _Writer:
    """The numbers of one program, in the order in which `kernels/cpu/program.cpp` reads them."""

    def __init__(
        self,
        plan: Plan,
        slots: dict[Ref, int],
        caches: Caches,
        chunks: dict[int, int],
        sharing: set[LayerKey],
        windowed: set[LayerKey],
    ) -> None:
        self.code: list[int] = []
        self._plan, self._slots, self._caches = plan, slots, caches
        self._chunks, self._sharing, self._windowed = chunks, sharing, windowed

    def node(self, node: Node) -> None:
        ops = torch.ops.gridwork_cpu
        assert node.dtype is not None
        if isinstance(node.target, Attend):
            self._begin("paged_attention", node.dtype)
            self._attention(node, node.target)
        elif node.target == ops.linear.default:
            x, packed, bias, features, float32_out = node.args
            rows = self._plan.rows[x]
            self._begin("linear", rows.dtype)
            self._linear(rows, node, float32_out, features)
            self._weights(packed, bias, features)
        elif node.target in (ops.int8_linear.default, ops.int4_linear.default):
            x, packed, scales, bias, features, float32_out = node.args
            rows = self._plan.rows[x]
            self._begin("quantized_linear", rows.dtype)
            self._linear(rows, node, float32_out, features)
            four_bits = int(node.target == ops.int4_linear.default)
            self.code += [four_bits, packed.data_ptr(), scales.data_ptr(), len(packed), features, _address(bias)]
        elif node.target == aten.embedding.default:
            table, ids = node.args[:2]
            self._begin("embedding", node.dtype)
            self.code += [self._slots[self._plan.base(ids)], table.data_ptr(), *table.shape, self._slots[node.out]]
        elif node.target in (ops.rms_norm.default, ops.layer_norm.default):
            x, *norm = node.args
            self._begin("norm", node.dtype)
            self._rows(x)
            self.code += [self._slots[node.out], self._plan.rows[x].features // last_dim(node)]
            self._norm(node, *norm)
        elif node.target in (ops.add_rms_norm.default, ops.add_layer_norm.default):
            a, b, *norm = node.args
            self._begin("add_norm", node.dtype)
            self._rows(a)
            self._rows(b)
            self.code += [self._slots[ref] for ref in node.outputs if ref is not None]
            self._norm(node, *norm)
        elif node.target == ops.activation.default:
            self._begin("activation", node.dtype)
            self._rows(node.args[0])
            self.code += [self._slots[node.out], self._plan.rows[node.out].features, node.args[1]]
        elif node.target == ops.scale.default:
            x, factor, divide = node.args
            self._begin("scale", node.dtype)
            self._rows(x)
            self.code += [self._slots[node.out], self._plan.rows[node.out].features, int(divide), _bits(factor)]
        else:
            gated = node.target == ops.gated_activation.default
            self._begin("gated_activation" if gated else "add", node.dtype)
            self._rows(node.args[0])
            self._rows(node.args[1])
            self.code += [self._slots[node.out], self._plan.rows[node.out].features, *node.args[2:]]

    def gated_linear(self, linear: Node, gated: Node) -> None:
        """Both in one operation."""
        x, packed, bias, features, _ = linear.args
        rows = self._plan.rows[x]
        self._begin("gated_linear", rows.dtype)
        self._rows(x)
        self.code += [self._slots[linear.out], self._slots[gated.out], rows.features, gated.args[2]]
        self._weights(packed, bias, features)

    def _weights(self, packed: torch.Tensor, bias: torch.Tensor | None, features: int) -> None:
        numbers = TYPES[packed.dtype], packed.data_ptr(), len(packed), packed.shape[1], features
        self.code += [*numbers, _address(bias)]

    def _begin(self, name: str, dtype: torch.dtype) -> None:
        self.code += [OPERATIONS.index(name), TYPES[dtype]]

    def _rows(self, ref: Ref | None) -> None:
        rows = self._plan.rows[ref] if ref is not None else None
        self.code += [self._slots[rows.base], rows.offset, rows.stride] if rows is not None else [0, 0, 0]

    def _linear(self, rows: Rows, node: Node, float32_out: bool, features: int) -> None:
        self.code += [self._slots[rows.base], rows.offset, rows.stride, self._slots[node.out]]
        parts = self._plan.rows[node.out].features // features
        self.code += [parts, rows.features // parts, int(float32_out)]

    def _norm(self, node: Node, weight: torch.Tensor | None, *rest: Any) -> None:
        """rest: eps and form of an RMS norm, bias and eps of a layer norm."""
        ops = torch.ops.gridwork_cpu
        if node.target in (ops.layer_norm.default, ops.add_layer_norm.default):
            kind, (bias, eps) = _LAYER, rest
        else:
            eps, kind = rest
            bias = None
        self.code += [kind, _address(weight), _address(bias), last_dim(node), _bits(eps)]

    def _attention(self, node: Node, target: Attend) -> None:
        query, key, value, sinks, *angles = node.args
        cos, sin = angles or (None, None)
        layer = target.layer, target.nth
        keys, values = self._caches[layer]
        heads, key_size = self._plan.shapes[query][-2:]
        kv_heads, block_size, value_size = keys.shape[1], keys.shape[3], values.shape[3]
        for ref in (query, key, value):
            self._rows(ref)
        for ref, size in ((query, key_size), (key, key_size), (value, value_size)):
            self.code.append(self._plan.rows[ref].part_stride or size)
        self.code += [self._slots[node.out], heads, kv_heads, key_size, value_size, block_size]
        self.code += [int(layer not in self._sharing), keys.data_ptr(), values.data_ptr()]
        self.code += [*keys.stride()[:2], *values.stride()[:2]]
        self.code.append(int(layer in self._windowed))
        wide = cos is not None and self._plan.rows[cos].dtype == torch.float32
        self.code += [int(wide), int(target.interleaved)]
        self._rows(cos)
        self._rows(sin)
        self.code += [self._plan.rows[cos].features if cos is not None else 0, _address(sinks)]
        self.code += [target.window, self._chunks.get(target.layer, 0), _bits(target.scale), _bits(target.softcap)]


_LAYER = 3
"""The `NormKind` of `kernels/cpu/kernels.h` behind the forms of RMS norms."""

_HEADER = 11
"""Numbers before the external slots of a call: how many tokens, and two layouts."""


def _layout_numbers(layout: PagedLayout) -> tuple[int, ...]:
    tables = layout.block_tables
    return (
        tables.data_ptr(),
        tables.stride(0),
        layout.sequence.data_ptr(),
        layout.length.data_ptr(),
        layout.slots.data_ptr(),
    )


def _is_attention(nodes: tuple[Node, ...]) -> bool:
    return isinstance(nodes[0].target, Attend)


def _bits(value: float) -> int:
    number: int = struct.unpack("q", struct.pack("d", value))[0]
    return number


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _library() -> Any:
    library = cpu_library.library()
    if library.gridwork_program_new.restype is not ctypes.c_void_p:
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        library.gridwork_program_new.restype = pointer
        library.gridwork_program_new.argtypes = [pointer, number, number, pointer, *[number] * 3]
        library.gridwork_program_delete.argtypes = [pointer]
        library.gridwork_program_run.argtypes = [pointer, pointer]
        library.gridwork_program_measured.argtypes = [pointer, pointer]
    return library


class Measurement:
    """Seconds and calls of each operation of all programs while it is open."""

    def __enter__(self) -> "Measurement":
        self.seconds = np.zeros(len(OPERATIONS))
        self.calls = np.zeros(len(OPERATIONS), dtype=np.int64)
        _library().gridwork_program_measure()
        return self

    def __exit__(self, *_: object) -> None:
        _library().gridwork_program_measured(self.seconds.ctypes.data, self.calls.ctypes.data)
