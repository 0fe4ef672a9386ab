"""Moves and shortens views between the computation of heads and attention."""

from typing import Any

import torch

from gridwork_server.graph.nodes import Node, Ref
from gridwork_server.graph.rewriter import Rewriter

aten = torch.ops.aten


def sink_transposes(rewriter: Rewriter) -> None:
    """Moves norms and cuts of the last dimension from x.transpose(1, 2) to x `[1, T, heads, size]`, before the
    transpose."""
    replacements: dict[int, list[Node]] = {}
    turned: dict[Ref, tuple[Ref, int]] = {}  # the tensor before the transpose, and the last dimension
    for node in rewriter.graph.nodes:
        if node.shape is None or len(node.shape) != 4 or any(ref in rewriter.changed for ref in node.outputs):
            continue
        last = node.shape[3]
        if not isinstance(last, int):
            continue
        if node.target == aten.transpose.int and node.args[1:] == (1, 2) and rewriter.source(node.args[0]):
            turned[node.out] = node.args[0], last
        elif node.args and isinstance(node.args[0], Ref) and node.args[0] in turned:
            x, whole = turned[node.args[0]]
            sizes = _last_sizes(rewriter, node, whole, last)
            if sizes is None:
                continue
            outputs = tuple(rewriter.graph.new_ref() for _ in sizes)
            args, shape = (x, *node.args[1:]), _swapped(node.shape)
            replacements[id(node)] = [Node(node.target, args, node.kwargs, outputs, shape, node.dtype)]
            for out, own, size in zip(outputs, node.outputs, sizes, strict=True):
                turned[own] = out, size  # type: ignore[index]
                turn = rewriter.new(aten.transpose.int, (out, 1, 2), (*node.shape[:3], size), node.dtype, own)
                replacements[id(node)].append(turn)
    rewriter.rewrite(replacements)


def _swapped(shape: tuple[Any, ...]) -> tuple[Any, ...]:
    return (shape[0], shape[2], shape[1], shape[3])


def _last_sizes(rewriter: Rewriter, node: Node, whole: int, last: int) -> list[int] | None:
    """The last dimension of each of the node's outputs, if it works only on that dimension of `[1, heads, T, whole]`.
    last: the first output's last dimension."""
    ops = torch.ops.gridwork_cpu
    if node.target in (ops.rms_norm.default, ops.layer_norm.default):
        # Their results are contiguous, which other users than attention may rely on.
        return [whole] if _is_attended_with(rewriter, node.out) else None
    if node.target == aten.slice.Tensor:
        return [last] if node.args[1] in (3, -1) else None
    if node.target in (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default):
        if len(node.args) != 3 or node.args[2] not in (3, -1):
            return None
        sizes: list[int] = node.args[1] if isinstance(node.args[1], list) else [last] * len(node.outputs)
        return sizes if sum(sizes) == whole and len(sizes) == len(node.outputs) else None
    return None


def _is_attended_with(rewriter: Rewriter, heads: Ref) -> bool:
    """True if heads `[1, heads, T, size]` are used only as `[T, heads, size]`, the shape of attention's arguments."""
    first = rewriter.uses[heads]
    then = [user for node in first for user in rewriter.uses[node.outputs[0]]]  # type: ignore[index]
    return (
        bool(then)
        and all(node.target == aten.select.int and node.args[1:] == (0, 0) for node in first)
        and all(node.target == aten.transpose.int and node.args[1:] == (0, 1) for node in then)
    )


def shorten_views(rewriter: Rewriter) -> None:
    """Replaces chains of views of attention's arguments and results by one view."""
    replacements: dict[int, list[Node]] = {}
    for node in rewriter.graph.nodes:
        replacement = _without_turns(rewriter, node) or _without_first(rewriter, node)
        if replacement is not None:
            replacements[id(node)] = [replacement]
    rewriter.rewrite(replacements)


def _without_turns(rewriter: Rewriter, node: Node) -> Node | None:
    """Replaces x.transpose(1, 2)[0].transpose(0, 1) by `x[0]`, and by one view where x is a view of `[1, T,
    features]`."""
    if node.target != aten.transpose.int or node.args[1:] != (0, 1):
        return None
    one = rewriter.made_by(node.args[0], aten.select.int)
    turned = rewriter.made_by(one.args[0], aten.transpose.int) if one and one.args[1:] == (0, 0) else None
    if turned is None or turned.args[1:] != (1, 2) or turned.args[0] in rewriter.changed:
        return None
    view = rewriter.made_by(turned.args[0], aten.view.default, aten.reshape.default)
    source = rewriter.producer.get(view.args[0]) if view else None
    assert node.shape is not None
    if view is not None and source is not None and source.shape is not None and source.shape[:-1] == (1, node.shape[0]):
        return rewriter.new(view.target, (view.args[0], list(node.shape)), node.shape, node.dtype, node.out)
    return rewriter.new(aten.select.int, (turned.args[0], 0, 0), node.shape, node.dtype, node.out)


def _without_first(rewriter: Rewriter, node: Node) -> Node | None:
    """Replaces x.unsqueeze(0).reshape(1, T, -1) by one view of x."""
    if node.target not in (aten.reshape.default, aten.view.default) or node.shape is None:
        return None
    wider = rewriter.made_by(node.args[0], aten.unsqueeze.default)
    if wider is None or wider.args[1] != 0:
        return None
    return rewriter.new(node.target, (wider.args[0], list(node.shape)), node.shape, node.dtype, node.out)
