"""Plans which operations of a graph run in one native program.

Such operations work on rows, one for each token, whose values are contiguous. Views of rows (some of the values, other
dimensions) are not operations: they only change where an operand lies.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from gridwork_kernels.program import TYPES
from gridwork_server.graph.nodes import Attend, Graph, Node, Recur, Ref, Size, changed

aten = torch.ops.aten

_TOKENS = Size(0, 1, 0)
_FEWEST = 4
"""Minimum number of operations of a program."""

KERNEL_TENSORS = {
    "causal_conv": ((0,), ()),
    "gated_delta": ((0, 1, 2), (3, 4)),
    "scan_heads": ((0, 1, 3, 4), ()),
    "scan_channels": ((0, 1, 3, 4), ()),
}
"""By operation with a state, its arguments that are a step's tensors: those of the model's dtype, and those in
float32."""

_VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)


@dataclass(frozen=True)
class Rows:
    """Location of each token's values: `offset` values after the start of `base`, `stride` values apart for each
    token."""

    base: Ref
    offset: int
    stride: int
    features: int
    dtype: torch.dtype
    part_stride: int | None = None
    """Distance from one part (a head) to the next, where parts are not contiguous."""

    @property
    def is_whole(self) -> bool:
        """True if the rows of consecutive tokens are contiguous."""
        return self.stride == self.features


@dataclass
class Segment:
    """Consecutive operations that run as one program."""

    nodes: list[Node]
    needs: list[Ref] = field(default_factory=list)
    """Tensors that are computed outside."""
    outputs: list[Ref] = field(default_factory=list)
    """Tensors that are used outside."""

    def inputs(self) -> list[Ref]:
        """The same interface as a node's."""
        return self.needs


class Plan:
    """The nodes of a graph, in which consecutive nodes with kernels form segments."""

    def __init__(self, graph: Graph) -> None:
        self.shapes: dict[Ref, tuple[Any, ...]] = {}
        self.dtypes: dict[Ref, torch.dtype] = {}
        self.rows: dict[Ref, Rows] = {}
        """Tensors that can be operands, and where they lie."""
        self.items: list[Node | Segment] = []
        """Nodes and segments in an order of execution."""
        self._views: dict[Ref, Node] = {}
        self._changed = changed(graph)
        self._ids = {graph.input_ids: graph.input_ids, graph.position_ids: graph.position_ids}
        """Tensors that hold the tokens or their positions, with the input that they are equal to."""
        self._open: list[Node] = []
        self._made: set[Ref] = set()
        for node in graph.nodes:
            self._describe(node)
            if self._is_view(node):
                continue
            if self._is_native(node):
                self._open.append(node)
                self._made.update(ref for ref in node.outputs if ref is not None)
            else:
                self._add(node)
        self._show(graph.result)
        self._close()
        self._find_outputs(graph)

    def base(self, ref: Ref) -> Ref:
        """The tensor that holds an operand's rows, or the step's tokens or positions."""
        rows = self.rows.get(ref)
        return self._ids.get(ref, ref) if rows is None else rows.base

    def _describe(self, node: Node) -> None:
        """Notes shape, dtype and rows of the node's outputs."""
        if node.shape is None or node.dtype is None:
            return
        for ref in node.outputs:
            if ref is not None and ref not in self._changed:
                self.shapes[ref], self.dtypes[ref] = node.shape, node.dtype
                if _is_of_tokens(node.shape) and node.dtype in TYPES:
                    features = features_of(node.shape)
                    self.rows[ref] = Rows(ref, 0, features, features, node.dtype)

    def _add(self, node: Node) -> None:
        """Adds a node that is executed alone: before the open segment if it does not depend on it, else after."""
        needs = set(node.inputs())
        if node.is_mutable or any(self._root(ref) in self._made for ref in needs):
            self._close()
        for ref in needs:
            self._show(ref)
        self.items.append(node)

    def _root(self, ref: Ref) -> Ref:
        while ref in self._views:
            ref = self._views[ref].args[0]
        return ref

    def _show(self, ref: Ref) -> None:
        """Adds the node of a view that is needed as a tensor."""
        node = self._views.get(ref)
        if node is None:
            return
        for output in node.outputs:
            self._views.pop(output, None)  # type: ignore[arg-type]
        if self._root(node.args[0]) in self._made:
            self._close()
        self._show(node.args[0])
        self.items.append(node)

    def _close(self) -> None:
        nodes, self._open, self._made = self._open, [], set()
        if len(nodes) >= _FEWEST:
            self.items.append(Segment(nodes))
            return
        for node in nodes:
            for ref in set(node.inputs()):
                self._show(ref)
            self.items.append(node)

    def _find_outputs(self, graph: Graph) -> None:
        made: dict[Ref, Segment] = {}
        for item in self.items:
            if isinstance(item, Segment):
                made.update({ref: item for node in item.nodes for ref in node.outputs if ref is not None})
        for item in self.items:
            if isinstance(item, Segment):
                own = {ref for node in item.nodes for ref in node.outputs}
                used = {self.base(ref) for node in item.nodes for ref in node.inputs()}
                item.needs = sorted(used - own, key=lambda ref: ref.index)
        for ref in [graph.result, *(ref for item in self.items for ref in item.inputs())]:
            segment = made.get(ref)
            if segment is not None and ref not in segment.outputs:
                segment.outputs.append(ref)

    def _is_view(self, node: Node) -> bool:
        """True if the node's outputs are views of rows; notes where they lie."""
        if node.uses_cache or not node.args or node.kwargs or not isinstance(node.args[0], Ref):
            return False
        if node.target in _VIEWS and node.args[0] in self._ids and node.shape == (1, _TOKENS):
            self._ids[node.out] = self._ids[node.args[0]]
            self._views[node.out] = node
            return True
        source = self.rows.get(node.args[0])
        if source is None or any(ref is None or ref in self._changed for ref in node.outputs):
            return False
        parts = _parts(node, self.shapes[node.args[0]], source.part_stride)
        if parts is None or len(parts) != len(node.outputs):
            return False
        for ref, part in zip(node.outputs, parts, strict=True):
            assert ref is not None
            self.shapes[ref], self.dtypes[ref] = part.shape, source.dtype
            offset, features = source.offset + part.begin, features_of(part.shape)
            self.rows[ref] = Rows(source.base, offset, source.stride, features, source.dtype, part.stride)
            self._views[ref] = node
        return True

    def _is_native(self, node: Node) -> bool:
        """True if there is a kernel for the node's operation and operands."""
        ops = torch.ops.gridwork_cpu
        if node.kwargs or node.dtype is None or any(ref is None or ref not in self.rows for ref in node.outputs):
            return False
        if node.target == aten.embedding.default:
            return self._is_lookup(node)
        operands = [self.rows.get(ref) for ref in node.inputs()]
        if any(rows is None for rows in operands):
            return False
        whole: list[Rows] = operands  # type: ignore[assignment]
        if isinstance(node.target, Attend):
            return self._is_attention(node)
        if any(rows.part_stride is not None for rows in whole):
            return False
        if isinstance(node.target, Recur):
            return self._is_recurrence(node, node.target)
        if node.target in (ops.linear.default, ops.int8_linear.default, ops.int4_linear.default):
            return len(whole) == 1 and whole[0].is_whole
        same = all(rows.dtype == node.dtype for rows in whole)
        if node.target == ops.rms_norm.default:
            return len(whole) == 1 and same and node.args[1].dtype == node.dtype
        if node.target == ops.add_rms_norm.default:
            width = len(node.args[2])
            return len(whole) == 2 and same and all(rows.features == width for rows in whole)
        if node.target in (ops.layer_norm.default, ops.add_layer_norm.default):
            expected = 1 if node.target == ops.layer_norm.default else 2
            # Only norms over all values of a token; norms over heads are left to PyTorch.
            return len(whole) == expected and same and all(rows.features == last_dim(node) for rows in whole)
        if node.target in (ops.activation.default, ops.scale.default):
            return len(whole) == 1 and same and self.shapes[node.args[0]] == node.shape
        if node.target == ops.gated_norm.default:
            x, gate, weight = node.args[:3]
            return len(whole) == 2 and weight.dtype == self.rows[gate].dtype and self.shapes[x] == self.shapes[gate]
        if node.target == ops.softplus_scaled.default:
            return len(whole) == 1
        if node.target == aten.to.dtype:
            types = {whole[0].dtype, node.dtype}
            return len(node.args) == 2 and len(types) == 2 and torch.float32 in types
        if node.target in (ops.gated_activation.default, aten.add.Tensor, aten.mul.Tensor):
            expected = 3 if node.target == ops.gated_activation.default else 2
            alike = {self.shapes[ref] for ref in node.inputs()} == {node.shape}
            return len(whole) == 2 and same and alike and len(node.args) == expected
        return False

    def _is_attention(self, node: Node) -> bool:
        """True if query, key, value and angles are the step's tensors of supported types, and sinks are constant."""
        query, key, value, sinks, *angles = node.args
        if isinstance(sinks, Ref) or not all(isinstance(ref, Ref) for ref in (query, key, value, *angles)):
            return False
        heads, tables = [self.rows[ref] for ref in (query, key, value)], [self.rows[ref] for ref in angles]
        types = {rows.dtype for rows in tables}
        return (
            all(rows.dtype == node.dtype for rows in heads)
            and all(len(self.shapes[ref]) == 3 for ref in (query, key, value))
            and (types <= {node.dtype} or types == {torch.float32})
            and all(rows.part_stride is None for rows in tables)
        )

    def _is_recurrence(self, node: Node, target: Recur) -> bool:
        """True if the tensors of tokens are of the types that the kernel takes, and the others are constants."""
        name, args = target.operation.name, node.args
        refs = [arg for arg in args if isinstance(arg, Ref)]
        constants = [arg for arg in args if isinstance(arg, torch.Tensor)]
        of_model, wide = KERNEL_TENSORS[name]
        if len(refs) != len(of_model) + len(wide) or any(not isinstance(args[i], Ref) for i in (*of_model, *wide)):
            return False
        dtype = self.rows[args[0]].dtype
        if name == "causal_conv":
            known = 2 <= args[1].shape[1] <= 8 and all(constant.dtype == dtype for constant in constants)
        else:
            known = all(constant.dtype == torch.float32 for constant in constants)
        return (
            known
            and all(constant.is_contiguous() for constant in constants)
            and all(self.rows[args[i]].dtype == dtype for i in of_model)
            and all(self.rows[args[i]].dtype == torch.float32 for i in wide)
        )

    def _is_lookup(self, node: Node) -> bool:
        """True if it looks up rows of a constant table by the step's tokens or positions."""
        table, ids = node.args[:2]
        return isinstance(table, torch.Tensor) and table.is_contiguous() and isinstance(ids, Ref) and ids in self._ids


def _is_of_tokens(shape: tuple[Any, ...]) -> bool:
    """True if a shape is `[T, …]`, `[1, T, …]` or `[T * parts, …]`, where the other sizes are constant."""
    rest = _of_a_token(shape)
    return rest is not None and all(type(size) is int for size in rest)


def _of_a_token(shape: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if len(shape) >= 2 and shape[0] == _TOKENS:
        return shape[1:]
    if len(shape) >= 3 and type(shape[0]) is int and shape[0] == 1 and shape[1] == _TOKENS:
        return shape[2:]
    first = shape[0] if len(shape) >= 2 else None
    if type(first) is Size and first.tokens > 1 and first == Size(0, first.tokens, 0):
        return (first.tokens, *shape[1:])
    return None


def features_of(shape: tuple[Any, ...]) -> int:
    """Number of values of a token in a tensor `[T, …]`, `[1, T, …]` or `[T * parts, …]`."""
    rest = _of_a_token(shape)
    assert rest is not None
    return int(np.prod(rest, dtype=np.int64))


def last_dim(node: Node) -> int:
    """The last dimension of a node's output."""
    assert node.shape is not None and isinstance(node.shape[-1], int)
    return node.shape[-1]


@dataclass(frozen=True)
class _Part:
    """A part of a token's values: where it begins, its shape as a tensor, and its part_stride."""

    begin: int
    shape: tuple[Any, ...]
    stride: int | None


def _parts(node: Node, shape: tuple[Any, ...], apart: int | None) -> list[_Part] | None:
    """The parts of each token's values that the node's outputs are, or None where they are not such parts. apart:
    part_stride of the input's rows."""
    rest = _of_a_token(shape)
    assert rest is not None and node.shape is not None
    first = node.target == aten.select.int and node.args[1:] == (0, 0)
    if first or node.target in (*_VIEWS, aten.unsqueeze.default, aten.contiguous.default):
        same = _is_of_tokens(node.shape) and features_of(node.shape) == features_of(shape)
        # Heads that are not contiguous cannot be viewed with other dimensions.
        return [_Part(0, node.shape, apart)] if (same and apart is None) or _of_a_token(node.shape) == rest else None
    cuts = _cuts(node, shape)
    if cuts is None:
        return None
    dim, sizes = cuts
    axis, inner = dim - (len(shape) - len(rest)), int(np.prod(rest[1:], dtype=np.int64))
    if axis not in (0, len(rest) - 1) or (axis == 1 and len(rest) != 2):
        return None
    step, stride = inner if apart is None else apart, apart
    if axis == 1:  # a cut of every head
        step, stride = 1, step if rest[0] > 1 else None
    return [_Part(begin * step, (*shape[:dim], size, *shape[dim + 1 :]), stride) for begin, size in sizes]


def _cuts(node: Node, shape: tuple[Any, ...]) -> tuple[int, list[tuple[int, int]]] | None:
    """The dimension that the node cuts, with begin and size of each piece."""
    if node.target == aten.slice.Tensor and len(node.args) == 4:
        dim, begin = node.args[1] % len(shape), node.args[2]
        assert node.shape is not None
        whole, count = shape[dim], node.shape[dim]
        numbers = all(type(number) is int for number in (begin, whole, count))
        return (dim, [(begin, count)]) if numbers and 0 <= begin <= whole - count else None
    if node.target in (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default) and len(node.args) == 3:
        dim = node.args[2] % len(shape)
        whole = shape[dim]
        if type(whole) is not int:
            return None
        size = -(-whole // node.args[1]) if node.target == aten.chunk.default else node.args[1]
        sizes = size if isinstance(size, list) else [min(size, whole - begin) for begin in range(0, whole, size)]
        return dim, list(zip(np.cumsum([0, *sizes[:-1]]).tolist(), sizes, strict=True))
    return None
