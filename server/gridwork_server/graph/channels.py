"""Computes tensors of channels `[1, C, T]` as rows `[1, T, C]`, which kernels take.

Convolutions take channels, so models turn their tensors before and after them, and multiply or cut them in between.
"""

from typing import Any

import torch

from gridwork_server.graph.nodes import Node, Ref, Size, mapped
from gridwork_server.graph.rewriter import Rewriter

aten = torch.ops.aten

_ELEMENTWISE = (aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.silu.default, aten.sigmoid.default)
_CUTS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
Rows = dict[Ref, tuple[Ref, int]]
"""By tensor of channels, the tensor of the same values as rows, and the number of channels."""

_TURNS = ((1, 2), (2, 1), (-1, -2), (-2, -1))


def compute_by_rows(rewriter: Rewriter) -> None:
    """Moves operations on x.transpose(1, 2) to x, before the transpose, and drops transposes of transposes."""
    rows: Rows = {}
    same: dict[Ref, Ref] = {}
    replacements: dict[int, list[Node]] = {}
    for node in rewriter.graph.nodes:
        node.args = mapped(node.args, lambda leaf: same.get(leaf, leaf) if type(leaf) is Ref else leaf)
        if node.uses_cache or node.kwargs or any(ref in rewriter.changed for ref in (*node.outputs, *node.inputs())):
            continue
        if node.target == aten.mT.default or (node.target == aten.transpose.int and node.args[1:] in _TURNS):
            x = node.args[0]
            if x in rows:
                same[node.out] = rows[x][0]
            elif _is_channels(node.shape) and rewriter.source(x):
                rows[node.out] = x, node.shape[1]  # type: ignore[index, assignment]
        elif _is_channels(node.shape) and (args := _by_rows(node, rows)) is not None:
            if args == ():
                rows[node.out] = rows[node.args[0]]
                continue
            replacements[id(node)] = _replacement(rewriter, node, args, rows)
    rewriter.rewrite(replacements)


def _is_channels(shape: Any) -> bool:
    """True for `[1, C, T]`."""
    return (
        shape is not None and len(shape) == 3 and shape[0] == 1 and type(shape[1]) is int and shape[2] == Size(0, 1, 0)
    )


def _by_rows(node: Node, rows: Rows) -> tuple[Any, ...] | None:
    """The arguments of the same operation on rows; empty if it changes nothing; None if there is no such operation."""
    inputs = list(node.inputs())
    if not inputs or any(ref not in rows for ref in inputs):
        return None
    if node.target in _ELEMENTWISE:
        alike = all(rows[ref][1] == node.shape[1] for ref in inputs)  # type: ignore[index]
        return tuple(rows[arg][0] if type(arg) is Ref else arg for arg in node.args) if alike else None
    if node.target in _CUTS and len(node.args) == 3 and node.args[2] in (1, -2):
        return (rows[inputs[0]][0], node.args[1], 2)
    if node.target == aten.slice.Tensor and len(node.args) == 4:
        dim, begin, end = node.args[1:]
        if dim in (2, -1):  # all tokens, since the result has as many
            return ()
        if dim in (1, -2) and type(begin) is int and type(end) is int:
            return (rows[inputs[0]][0], 2, begin, end)
    return None


def _replacement(rewriter: Rewriter, node: Node, args: tuple[Any, ...], rows: Rows) -> list[Node]:
    """The operation on rows, and transposes of its results, which are dropped where nothing needs them."""
    assert node.shape is not None
    size: int = node.shape[1]  # type: ignore[assignment]
    sizes = [size]
    if node.target == aten.split_with_sizes.default:
        sizes = list(node.args[1])
    elif node.target in _CUTS:
        whole = rows[node.args[0]][1]
        sizes = [min(size, whole - begin) for begin in range(0, whole, size)]
    outputs = tuple(rewriter.graph.new_ref() for _ in node.outputs)
    nodes = [Node(node.target, args, {}, outputs, (1, node.shape[2], sizes[0]), node.dtype)]
    for out, own, size in zip(outputs, node.outputs, sizes, strict=True):
        assert own is not None
        rows[own] = out, size
        nodes.append(rewriter.new(aten.transpose.int, (out, 1, 2), (1, size, node.shape[2]), node.dtype, own))
    return nodes
