"""Moves the rotary position embedding (Su et al. 2021, "RoFormer") of queries and keys into attention.

Models write it as `x * cos + turned(x) * sin`. Partners are dimensions i and i + size / 2, or 2i and 2i + 1. All
dimensions are rotated, or the first ones. It is computed in the type of the heads, where each operation rounds, or in
float32 and rounded once.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from gridwork_server.graph.nodes import Attend, Node, Ref
from gridwork_server.graph.rewriter import FLOATS, Rewriter

aten = torch.ops.aten


@dataclass(frozen=True)
class _Angles:
    """A rotation of heads: cosines and sines `[1, T, size]` or `[1, 1, T, size]`, and its form."""

    cos: Ref
    sin: Ref
    interleaved: bool
    wide: bool
    """Computed in float32."""


@dataclass(frozen=True)
class _Turned:
    """Heads `[1, heads, T, size]` and their rotation."""

    heads: Ref
    angles: _Angles


def fuse_rotary(rewriter: Rewriter) -> None:
    """Replaces the rotation of queries and keys by angles that attention rotates with."""
    replacements: dict[int, list[Node]] = {}
    tables: dict[tuple[Ref, bool], Ref] = {}
    for node in rewriter.graph.nodes:
        if not isinstance(node.target, Attend):
            continue
        query, key = (_match_rotated(rewriter, argument, node.dtype) for argument in node.args[:2])
        if query is None or key is None or query.angles != key.angles:
            continue
        angles, before = query.angles, []
        for table in (angles.cos, angles.sin):
            if (table, angles.wide) not in tables:
                rows = _rows_of_table(rewriter, table, angles.wide)
                before += rows
                tables[table, angles.wide] = rows[-1].out
        plain = []
        for turned, argument in zip((query, key), node.args[:2], strict=True):
            views = _by_token(rewriter, turned.heads, rewriter.producer[argument])
            before += views
            plain.append(views[-1].out)
        args = (*plain, *node.args[2:4], *(tables[table, angles.wide] for table in (angles.cos, angles.sin)))
        target = replace(node.target, interleaved=angles.interleaved)
        replacements[id(node)] = [*before, Node(target, args, {}, node.outputs, node.shape, node.dtype)]
    rewriter.rewrite(replacements)


def _rows_of_table(rewriter: Rewriter, table: Ref, wide: bool) -> list[Node]:
    """Nodes that turn `[1, T, size]` or `[1, 1, T, size]` into `[T, size]`, in float32 if `wide`."""
    made = rewriter.producer[table]
    assert made.shape is not None
    nodes, shape, dtype = [], made.shape[-2:], made.dtype
    if len(made.shape) == 4:
        # A copy, so that it can be a row of a table of positions.
        nodes.append(rewriter.new(aten.select.int, (table, 1, 0), (1, *shape), dtype))
        nodes.append(rewriter.new(aten.clone.default, (nodes[-1].out,), (1, *shape), dtype))
    if wide and dtype != torch.float32:
        dtype, source = torch.float32, nodes[-1].out if nodes else table
        nodes.append(rewriter.new(aten.to.dtype, (source, dtype), (1, *shape), dtype))
    nodes.append(rewriter.new(aten.select.int, (nodes[-1].out if nodes else table, 0, 0), shape, dtype))
    return nodes


def _by_token(rewriter: Rewriter, heads: Ref, rotated: Node) -> list[Node]:
    """Nodes that view heads `[1, heads, T, size]` as `[T, heads, size]`, the shape of attention's arguments."""
    made = rewriter.producer[heads]
    assert made.shape is not None
    one = rewriter.new(aten.select.int, (heads, 0, 0), made.shape[1:], made.dtype)
    return [one, rewriter.new(aten.transpose.int, (one.out, 0, 1), rotated.shape, rotated.dtype)]


def _match_rotated(rewriter: Rewriter, argument: Any, dtype: Any) -> _Turned | None:
    """The heads and angles of an attention's argument `[T, heads, size]` whose dimensions, or whose first ones, are
    rotated; else None."""
    copied = rewriter.made_by(argument, aten.contiguous.default)
    turned = rewriter.made_by(argument if copied is None else copied.args[0], aten.transpose.int)
    one = rewriter.made_by(turned.args[0], aten.select.int) if turned and turned.args[1:] == (0, 1) else None
    if one is None or one.args[1:] != (0, 0) or dtype not in FLOATS:
        return None
    joined = rewriter.made_by(one.args[0], aten.cat.default)
    if joined is None:
        return _match_turned(rewriter, one.args[0], dtype)
    if joined.shape is None or joined.args[1:] not in ((-1,), (3,)) or len(joined.args[0]) != 2:
        return None
    found = _match_turned(rewriter, joined.args[0][0], dtype)
    first = rewriter.made_by(found.heads, aten.slice.Tensor, aten.alias.default) if found else None
    rest = rewriter.made_by(joined.args[0][1], aten.slice.Tensor)
    if found is None or first is None or first.shape is None or rest is None:
        return None
    heads, size, rotated = first.args[0], joined.shape[-1], first.shape[-1]
    begins = first.target == aten.alias.default or first.args[1:] == (3, 0, rotated)
    ends = rest.args[:3] == (heads, 3, rotated) and len(rest.args) == 4
    source = rewriter.source(heads)
    if not begins or not ends or source is None or source.shape is None or source.shape[-1] != size:
        return None
    return _Turned(heads, found.angles)


def _match_turned(rewriter: Rewriter, ref: Any, dtype: torch.dtype) -> _Turned | None:
    """The heads and angles of `ref` `[1, heads, T, size]`, if all its dimensions are rotated and it has the type."""
    rounded = rewriter.made_by(ref, aten.to.dtype)
    wide = rounded is not None
    if rounded is not None and (len(rounded.args) != 2 or rounded.kwargs or rounded.dtype != dtype):
        return None
    total = rewriter.made_by(ref if rounded is None else rounded.args[0], aten.add.Tensor)
    products = [rewriter.made_by(term, aten.mul.Tensor) for term in total.args] if total is not None else []
    if total is None or total.kwargs or total.shape is None or len(total.shape) != 4 or len(products) != 2:
        return None
    computed_in = torch.float32 if wide else dtype
    if any(node is None or node.dtype != computed_in for node in (total, *products)):
        return None
    for straight, crossed in (products, products[::-1]):
        assert straight is not None and crossed is not None
        x = straight.args[0]
        interleaved = _turns(rewriter, crossed.args[0], x, total.shape)
        cos, sin = (_table(rewriter, product.args[1], total, dtype) for product in (straight, crossed))
        heads = _heads(rewriter, x, dtype, wide)
        if interleaved is not None and heads is not None and cos is not None and sin is not None:
            return _Turned(heads, _Angles(cos, sin, interleaved, wide))
    return None


def _heads(rewriter: Rewriter, x: Any, dtype: torch.dtype, wide: bool) -> Ref | None:
    """The heads that x is, or that x is a float32 copy of."""
    converted = rewriter.made_by(x, aten.to.dtype) if wide else None
    if converted is not None and converted.dtype == torch.float32 and len(converted.args) == 2:
        x = converted.args[0]
    source = rewriter.source(x)
    return x if source is not None and source.dtype == dtype else None


def _turns(rewriter: Rewriter, ref: Any, x: Any, shape: tuple[Any, ...]) -> bool | None:
    """True if `ref` is x turned with adjacent partners (True) or with partners half of the dimensions apart (False)."""
    size, source = shape[-1], rewriter.source(x)
    if source is None or source.shape != shape or not isinstance(size, int) or size % 2:
        return None
    half = rewriter.made_by(ref, aten.cat.default)
    if half is not None:
        # cat([-x[..., half:], x[..., :half]], -1)
        ends = (size // 2, size), (0, size // 2)
        return False if half.args[1:] in ((-1,), (3,)) and _are_parts(rewriter, half, x, ends, ()) else None
    # stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2); every view with this shape keeps the order of values.
    flat = rewriter.made_by(ref, aten.flatten.using_ints, aten.reshape.default, aten.view.default)
    pairs = rewriter.made_by(flat.args[0], aten.stack.default) if flat is not None and flat.shape == shape else None
    ends = (1, size), (0, size)
    return True if pairs and pairs.args[1:] in ((-1,), (4,)) and _are_parts(rewriter, pairs, x, ends, (2,)) else None


def _are_parts(
    rewriter: Rewriter, joined: Node, x: Any, ends: tuple[tuple[int, int], tuple[int, int]], step: tuple[int, ...]
) -> bool:
    """True if `joined` joins two parts of x with these begins and ends, the first one negated."""
    if len(joined.args[0]) != 2 or joined.kwargs:
        return False
    size = max(end for _, end in ends)
    negated = rewriter.made_by(joined.args[0][0], aten.neg.default)
    parts = negated.args[0] if negated is not None else None, joined.args[0][1]
    for part, (begin, end) in zip(parts, ends, strict=True):
        cut = rewriter.made_by(part, aten.slice.Tensor)
        if cut is None or cut.kwargs or cut.args[:3] != (x, 3, begin) or cut.args[4:] != step:
            return False
        if not isinstance(cut.args[3], int) or min(cut.args[3], size) != end:
            return False
    return True


def _table(rewriter: Rewriter, argument: Any, rotated: Node, dtype: torch.dtype) -> Ref | None:
    """The table `[1, T, size]` that an argument `[1, 1, T, size]` is a view of, or the argument itself."""
    made = rewriter.source(argument)
    assert rotated.shape is not None
    if made is None or made.shape != (1, 1, *rotated.shape[2:]) or made.dtype not in (dtype, torch.float32):
        return None
    table = rewriter.source(made.args[0]) if made.target == aten.unsqueeze.default and made.args[1] == 1 else None
    found: Ref = made.args[0] if table is not None else argument
    return found
