"""Puts fewer, larger operations in the place of many, by what they compute.

Every rewrite gives the values that the operations gave that it replaces, rounded where they were rounded.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from gridwork_server.graph.nodes import Attend, Graph, Node, Ref

aten = torch.ops.aten


def fuse(graph: Graph, replace_weight: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
    """Rewrites the graph in place. replace_weight(old, new): the weights of `old` now lie in `new` too, a view of
    others, and its memory can be given back."""
    _drop_aliases(graph)
    for rewrite in (
        lambda rewriter: _merge_siblings(rewriter, replace_weight),
        _fuse_gated_activations,
        _replace_activations,
        _fuse_rotary,
        _shorten_views,
        _replace_layer_norms,
        _fuse_norms,
    ):
        rewrite(_Rewriter(graph))
        drop_unused(graph)


class _Rewriter:
    """What is asked about a graph, and nodes that take the place of others."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producer: dict[Ref, Node] = {}
        self.uses: dict[Ref, list[Node]] = defaultdict(list)
        self.changed: set[Ref] = {graph.result}
        """Tensors that a rewrite must leave alone: those that operations write to, and what the graph gives."""
        for node in graph.nodes:
            for ref in node.inputs():
                self.uses[ref].append(node)
            for output in node.outputs:
                if output in self.producer:
                    self.changed.add(output)
                elif output is not None:
                    self.producer[output] = node
            if not isinstance(node.target, Attend) and node.target._schema.is_mutable:
                self.changed.update(node.inputs())

    def made_by(self, ref: Any, *targets: Any) -> Node | None:
        """The node that gives `ref`, when its operation is one of `targets`."""
        node = self.producer.get(ref) if isinstance(ref, Ref) and ref not in self.changed else None
        return node if node is not None and node.target in targets else None

    def only_use(self, ref: Ref) -> bool:
        """Whether one operation alone uses it, once."""
        return len(self.uses[ref]) == 1 and ref not in self.changed

    def new(self, target: Any, args: tuple[Any, ...], shape: Any, dtype: Any, out: Ref | None = None) -> Node:
        """A node that is in no list yet."""
        return Node(target, args, {}, (out or self.graph.new_ref(),), shape, dtype)

    def rewrite(self, replacements: dict[int, list[Node]]) -> None:
        """By identity of a node: what takes its place."""
        nodes: list[Node] = []
        for node in self.graph.nodes:
            nodes += replacements.get(id(node), [node])
        self.graph.nodes[:] = nodes


def _drop_aliases(graph: Graph) -> None:
    """Operations that give what they were given, a conversion to the type that it has already for example."""
    graph.nodes[:] = [
        node
        for node in graph.nodes
        if isinstance(node.target, Attend)
        or node.target._schema.is_mutable
        or not set(node.outputs) <= set(node.inputs())
    ]


def drop_unused(graph: Graph) -> None:
    """Takes out what nothing needs."""
    used = {graph.result}
    kept = []
    for node in reversed(graph.nodes):
        is_needed = isinstance(node.target, Attend) or node.target._schema.is_mutable
        if is_needed or any(output in used for output in node.outputs):
            used.update(node.inputs())
            kept.append(node)
    graph.nodes[:] = kept[::-1]


def _linears() -> dict[Any, int]:
    """Operations (x, weights …, bias, out_features, float32_out), and how many tensors of weights each has."""
    ops = torch.ops.gridwork_cpu
    return {ops.linear.default: 1, ops.int8_linear.default: 2, ops.int4_linear.default: 2}


def _merge_siblings(rewriter: _Rewriter, replace_weight: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
    """Linear layers with the same input become one, of which each has a part of the output."""
    families: dict[Any, list[Node]] = defaultdict(list)
    panel, linears = torch.ops.gridwork_cpu.linear_panel(), _linears()
    seen: set[int] = set()
    for node in rewriter.graph.nodes:
        if node.target not in linears or node.args[0] in rewriter.changed or node.shape is None:
            continue
        x, packed, *_, bias, features, wide = node.args
        # A layer that is used twice has its weights in one place only.
        if features % panel == 0 and not wide and id(packed) not in seen:
            seen.add(id(packed))
            families[x, node.target, packed.dtype, bias is None].append(node)
    replacements: dict[int, list[Node]] = {}
    for nodes in families.values():
        if len(nodes) > 1:
            replacements |= _merged(rewriter, nodes, linears[nodes[0].target], replace_weight)
    rewriter.rewrite(replacements)


def _merged(
    rewriter: _Rewriter,
    nodes: list[Node],
    num_weights: int,
    replace_weight: Callable[[torch.Tensor, torch.Tensor], None],
) -> dict[int, list[Node]]:
    """What takes the places of siblings. Their weights become parts of one tensor."""
    weights = []
    for i in range(1, 1 + num_weights):
        parts = [node.args[i] for node in nodes]
        weights.append(torch.cat(parts))
        for part, place in zip(parts, weights[-1].split([len(part) for part in parts]), strict=True):
            replace_weight(part, place)
    first = nodes[0]
    assert first.shape is not None
    bias = None if first.args[-3] is None else torch.cat([node.args[-3] for node in nodes])
    total, dim = sum(node.args[-2] for node in nodes), len(first.shape) - 1
    args = (first.args[0], *weights, bias, total, False)
    whole = rewriter.new(first.target, args, (*first.shape[:-1], total), first.dtype)
    replacements, begin = {}, 0
    for node in nodes:
        end = begin + node.args[-2]
        part = rewriter.new(aten.slice.Tensor, (whole.out, dim, begin, end), node.shape, node.dtype, node.out)
        replacements[id(node)] = [whole, part] if node is first else [part]
        begin = end
    return replacements


def _fuse_gated_activations(rewriter: _Rewriter) -> None:
    """activation(gate) * up."""
    kinds = {aten.silu.default: 0, aten.gelu.default: 2}
    replacements: dict[int, list[Node]] = {}
    for node in rewriter.graph.nodes:
        if node.target != aten.mul.Tensor or len(node.args) != 2:
            continue
        for active, up in (node.args, node.args[::-1]):
            activation = rewriter.made_by(active, *kinds)
            other = rewriter.producer.get(up) if isinstance(up, Ref) else None
            if activation is None or other is None or not rewriter.only_use(active) or up in rewriter.changed:
                continue
            kind = 1 if activation.kwargs.get("approximate") == "tanh" else kinds[activation.target]
            if node.shape != activation.shape or node.shape != other.shape or not _is_rows(node.shape):
                continue
            if not node.dtype == activation.dtype == other.dtype or node.dtype not in _FLOATS:
                continue
            target = torch.ops.gridwork_cpu.gated_activation.default
            args = (activation.args[0], up, kind)
            replacements[id(node)] = [rewriter.new(target, args, node.shape, node.dtype, node.out)]
            break
    rewriter.rewrite(replacements)


_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def _is_rows(shape: Any) -> bool:
    """`[1, …, rows, width]`"""
    return shape is not None and len(shape) >= 2 and all(size == 1 for size in shape[:-2])


def _replace_activations(rewriter: _Rewriter) -> None:
    """Activations by themselves, also those that are written out in several operations."""
    kinds = {aten.silu.default: 0, aten.gelu.default: 2, aten.relu.default: 3}
    target = torch.ops.gridwork_cpu.activation.default
    replacements: dict[int, list[Node]] = {}
    for node in rewriter.graph.nodes:
        if node.dtype not in _FLOATS or not _is_rows(node.shape):
            continue
        x: Any
        if node.target in kinds:
            x = node.args[0]
            kind = 1 if node.kwargs.get("approximate") == "tanh" else kinds[node.target]
        else:
            x, kind = _match_gelu_in_steps(rewriter, node), 4
        source = rewriter.producer.get(x) if isinstance(x, Ref) and x not in rewriter.changed else None
        if source is not None and (source.shape, source.dtype) == (node.shape, node.dtype):
            replacements[id(node)] = [rewriter.new(target, (x, kind), node.shape, node.dtype, node.out)]
    rewriter.rewrite(replacements)


def _match_gelu_in_steps(rewriter: _Rewriter, node: Node) -> Ref | None:
    """x of 0.5 * x * (1.0 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))."""

    def scaled(ref: Any, factor: float) -> Any:
        product = rewriter.made_by(ref, aten.mul.Tensor)
        return product.args[0] if product is not None and _is_number(product.args[1], factor) else None

    if node.target != aten.mul.Tensor or len(node.args) != 2:
        return None
    x = scaled(node.args[0], 0.5)
    one_more = rewriter.made_by(node.args[1], aten.add.Tensor)
    is_one_more = one_more is not None and _is_number(one_more.args[1], 1.0)
    tanh = rewriter.made_by(one_more.args[0], aten.tanh.default) if one_more is not None and is_one_more else None
    total = rewriter.made_by(scaled(tanh.args[0], math.sqrt(2 / math.pi)), aten.add.Tensor) if tanh else None
    if one_more is None or total is None or one_more.kwargs or total.kwargs or len(total.args) != 2:
        return None
    power = rewriter.made_by(scaled(total.args[1], 0.044715), aten.pow.Tensor_Scalar)
    found = isinstance(x, Ref) and total.args[0] == x and power is not None and power.args[0] == x
    return x if found and power is not None and _is_number(power.args[1], 3.0) else None


def _is_number(argument: Any, value: float) -> bool:
    """Whether an argument is this number: it may be a tensor, which cannot be compared."""
    return isinstance(argument, int | float) and argument == value


def _replace_layer_norms(rewriter: _Rewriter) -> None:
    """Layer norms over the last dimension."""
    target = torch.ops.gridwork_cpu.layer_norm.default
    replacements: dict[int, list[Node]] = {}
    for node in rewriter.graph.nodes:
        if node.target != aten.layer_norm.default or node.dtype not in _FLOATS or node.shape is None:
            continue
        x, normalized, weight, bias, eps = (*node.args, *(None, None, 1e-5)[len(node.args) - 2 :])[:5]
        source = rewriter.producer.get(x) if isinstance(x, Ref) and x not in rewriter.changed else None
        same = source is not None and (source.shape, source.dtype) == (node.shape, node.dtype)
        # Weights are constants: a norm that is scaled by what was computed stays as it is.
        plain = all(
            w is None or (isinstance(w, torch.Tensor) and w.dtype == node.dtype and w.is_contiguous())
            for w in (weight, bias)
        )
        if same and plain and not node.kwargs and list(normalized) == [node.shape[-1]]:
            args = (x, weight, bias, eps)
            replacements[id(node)] = [rewriter.new(target, args, node.shape, node.dtype, node.out)]
    rewriter.rewrite(replacements)


def _fuse_norms(rewriter: _Rewriter) -> None:
    """x + residual, and the norm of it."""
    ops = torch.ops.gridwork_cpu
    norms = {ops.rms_norm.default: ops.add_rms_norm.default, ops.layer_norm.default: ops.add_layer_norm.default}
    replacements: dict[int, list[Node]] = {}
    for node in rewriter.graph.nodes:
        total = rewriter.made_by(node.args[0], aten.add.Tensor) if node.target in norms else None
        if total is None or id(total) in replacements or len(total.args) != 2 or total.kwargs:
            continue
        terms = [rewriter.producer.get(term) if isinstance(term, Ref) else None for term in total.args]
        if any(term is None or (term.shape, term.dtype) != (node.shape, node.dtype) for term in terms):
            continue
        arguments = (*total.args, *node.args[1:])
        fused = Node(norms[node.target], arguments, {}, (total.out, node.out), node.shape, node.dtype)
        replacements[id(total)], replacements[id(node)] = [fused], []
    rewriter.rewrite(replacements)


def _fuse_rotary(rewriter: _Rewriter) -> None:
    """Attention rotates queries and keys itself."""
    replacements: dict[int, list[Node]] = {}
    angles: dict[Ref, Ref] = {}
    for node in rewriter.graph.nodes:
        if not isinstance(node.target, Attend):
            continue
        query, key = (_match_rotated(rewriter, argument) for argument in node.args[:2])
        if query is None or key is None or query[1:] != key[1:]:
            continue
        before: list[Node] = []
        for table in query[1:]:
            if table not in angles:
                made = rewriter.producer[table]
                assert made.shape is not None
                row = rewriter.new(aten.select.int, (table, 0, 0), made.shape[1:], made.dtype)
                before.append(row)
                angles[table] = row.out
        plain = []
        for (heads, *_), argument in zip((query, key), node.args[:2], strict=True):
            rotated = rewriter.producer[argument]
            made = rewriter.producer[heads]
            assert made.shape is not None
            one = rewriter.new(aten.select.int, (heads, 0, 0), made.shape[1:], made.dtype)
            turned = rewriter.new(aten.transpose.int, (one.out, 0, 1), rotated.shape, rotated.dtype)
            before += [one, turned]
            plain.append(turned.out)
        args = (*plain, *node.args[2:4], angles[query[1]], angles[query[2]])
        replacements[id(node)] = [*before, Node(node.target, args, {}, node.outputs, node.shape, node.dtype)]
    rewriter.rewrite(replacements)


def _match_rotated(rewriter: _Rewriter, argument: Any) -> tuple[Ref, Ref, Ref] | None:
    """Heads `[1, heads, T, size]`, and cosines and sines `[1, T, rotated]`, that the argument `[T, heads, size]` of an
    attention is made of by the rotary embedding, of all dimensions or of the first ones."""
    copied = rewriter.made_by(argument, aten.contiguous.default)
    turned = rewriter.made_by(argument if copied is None else copied.args[0], aten.transpose.int)
    one = rewriter.made_by(turned.args[0], aten.select.int) if turned and turned.args[1:] == (0, 1) else None
    if one is None or one.args[1:] != (0, 0):
        return None
    joined = rewriter.made_by(one.args[0], aten.cat.default)
    if joined is None:
        return _match_turned(rewriter, one.args[0])
    if joined.shape is None or joined.args[1:] not in ((-1,), (3,)) or len(joined.args[0]) != 2:
        return None
    found = _match_turned(rewriter, joined.args[0][0])
    first = rewriter.made_by(found[0], aten.slice.Tensor, aten.alias.default) if found else None
    rest = rewriter.made_by(joined.args[0][1], aten.slice.Tensor)
    if found is None or first is None or first.shape is None or rest is None:
        return None
    heads, size, rotated = first.args[0], joined.shape[-1], first.shape[-1]
    begins = first.target == aten.alias.default or first.args[1:] == (3, 0, rotated)
    ends = rest.args[:3] == (heads, 3, rotated) and rest.args[3] >= size
    source = rewriter.producer.get(heads) if heads not in rewriter.changed else None
    if not begins or not ends or source is None or source.shape is None or source.shape[-1] != size:
        return None
    return heads, found[1], found[2]


def _match_turned(rewriter: _Rewriter, ref: Any) -> tuple[Ref, Ref, Ref] | None:
    """Heads `[1, heads, T, size]`, and cosines and sines `[1, T, size]`, that `ref` is made of by the rotary
    embedding of all dimensions."""
    total = rewriter.made_by(ref, aten.add.Tensor)
    if total is None or len(total.args) != 2 or total.kwargs or total.shape is None or total.dtype not in _FLOATS:
        return None
    products = [rewriter.made_by(term, aten.mul.Tensor) for term in total.args]
    if len(total.shape) != 4 or any(product is None for product in products):
        return None
    for straight, crossed in (products, products[::-1]):
        assert straight is not None and crossed is not None
        heads = straight.args[0]
        half = rewriter.made_by(crossed.args[0], aten.cat.default)
        if half is None or not _is_half_turn(rewriter, half, heads, total.shape[-1]):
            continue
        tables = [_angles(rewriter, product.args[1], total) for product in (straight, crossed)]
        if heads in rewriter.producer and heads not in rewriter.changed and None not in tables:
            return heads, tables[0], tables[1]  # type: ignore[return-value]
    return None


def _is_half_turn(rewriter: _Rewriter, cat: Node, heads: Any, size: Any) -> bool:
    """cat([-x[..., half:], x[..., :half]], -1)"""
    if not isinstance(size, int) or size % 2 or cat.args[1:] not in ((-1,), (3,)) or len(cat.args[0]) != 2:
        return False
    negated = rewriter.made_by(cat.args[0][0], aten.neg.default)
    upper = rewriter.made_by(negated.args[0], aten.slice.Tensor) if negated else None
    lower = rewriter.made_by(cat.args[0][1], aten.slice.Tensor)
    if upper is None or lower is None or upper.args[0] != heads or lower.args[0] != heads:
        return False
    return (
        upper.args[1:3] == (3, size // 2)
        and upper.args[3] >= size
        and lower.args[1:] == (3, 0, size // 2)
        and not upper.kwargs
        and not lower.kwargs
    )


def _angles(rewriter: _Rewriter, argument: Any, rotated: Node) -> Ref | None:
    """The table `[1, T, size]` that an argument `[1, 1, T, size]` is, in the type of what is rotated."""
    made = rewriter.made_by(argument, aten.unsqueeze.default)
    table = made.args[0] if made is not None and made.args[1] == 1 else None
    producer = rewriter.producer.get(table) if isinstance(table, Ref) and table not in rewriter.changed else None
    if producer is None or producer.dtype != rotated.dtype or rotated.shape is None:
        return None
    return table if producer.shape == (1, rotated.shape[2], rotated.shape[3]) else None


def _shorten_views(rewriter: _Rewriter) -> None:
    """Chains of views of what attention takes and gives become one view."""
    replacements: dict[int, list[Node]] = {}
    for node in rewriter.graph.nodes:
        replacement = _without_turns(rewriter, node) or _without_first(rewriter, node)
        if replacement is not None:
            replacements[id(node)] = [replacement]
    rewriter.rewrite(replacements)


def _without_turns(rewriter: _Rewriter, node: Node) -> Node | None:
    """`x[0]` for x.transpose(1, 2)[0].transpose(0, 1), and one view where x is one of `[1, T, features]`."""
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


def _without_first(rewriter: _Rewriter, node: Node) -> Node | None:
    """One view for x.unsqueeze(0).reshape(1, T, -1)."""
    if node.target not in (aten.reshape.default, aten.view.default) or node.shape is None:
        return None
    wider = rewriter.made_by(node.args[0], aten.unsqueeze.default)
    if wider is None or wider.args[1] != 0:
        return None
    return rewriter.new(node.target, (wider.args[0], list(node.shape)), node.shape, node.dtype, node.out)
