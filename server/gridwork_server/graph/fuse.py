"""Replaces groups of operations by fewer and larger ones, found by what they compute.

Every rewrite gives the same values as the operations that it replaces, with the same roundings.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from gridwork_kernels.program_table import ACTIVATIONS
from gridwork_server.graph.channels import compute_by_rows
from gridwork_server.graph.nodes import Graph, Node, Ref
from gridwork_server.graph.rewriter import FLOATS, Rewriter
from gridwork_server.graph.rotary import fuse_rotary
from gridwork_server.graph.simplify import drop_unused, simplify
from gridwork_server.graph.views import shorten_views, sink_transposes

aten = torch.ops.aten


def fuse(graph: Graph, replace_weight: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
    """Rewrites the graph in place. replace_weight(old, new): the weights of `old` are now also in `new`, a view of a
    larger tensor, so that the memory of `old` can be freed."""
    simplify(graph)
    for rewrite in (
        compute_by_rows,
        lambda rewriter: _merge_siblings(rewriter, replace_weight),
        _fuse_gated_activations,
        _replace_activations,
        _replace_softplus,
        _widen_terms,
        fuse_rotary,
        _replace_layer_norms,
        sink_transposes,
        shorten_views,
        _fuse_norms,
    ):
        rewrite(Rewriter(graph))
        drop_unused(graph)


def _linears() -> dict[Any, int]:
    """Operations (x, weights …, bias, out_features, float32_out), with the number of their weight tensors."""
    ops = torch.ops.gridwork_cpu
    return {ops.linear.default: 1, ops.int8_linear.default: 2, ops.int4_linear.default: 2}


def _merge_siblings(rewriter: Rewriter, replace_weight: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
    """Merges linear layers with the same input into one. Each former layer becomes a slice of its output."""
    families: dict[Any, list[Node]] = defaultdict(list)
    panel, linears = torch.ops.gridwork_cpu.linear_panel(), _linears()
    seen: set[int] = set()
    for node in rewriter.graph.nodes:
        if node.target not in linears or node.args[0] in rewriter.changed or node.shape is None:
            continue
        x, packed, *_, bias, _, wide = node.args
        # A layer that is used twice stays as it is: its weights can be part of one merged tensor only.
        if not wide and id(packed) not in seen:
            seen.add(id(packed))
            families[x, node.target, packed.dtype, bias is None].append(node)
    replacements: dict[int, list[Node]] = {}
    for nodes in families.values():
        if len(nodes) > 1:
            replacements |= _merged(rewriter, nodes, linears[nodes[0].target], panel, replace_weight)
    rewriter.rewrite(replacements)


def _merged(
    rewriter: Rewriter,
    nodes: list[Node],
    num_weights: int,
    panel: int,
    replace_weight: Callable[[torch.Tensor, torch.Tensor], None],
) -> dict[int, list[Node]]:
    """The replacements of sibling layers. Their weights become parts of one tensor. Each begins with a panel of
    weights: a layer whose last panel is not full is followed by features that nothing uses."""
    weights = []
    for i in range(1, 1 + num_weights):
        parts = [node.args[i] for node in nodes]
        weights.append(torch.cat(parts))
        for part, place in zip(parts, weights[-1].split([len(part) for part in parts]), strict=True):
            replace_weight(part, place)
    first = nodes[0]
    assert first.shape is not None
    spare = [-node.args[-2] % panel for node in nodes]
    bias = None
    if first.args[-3] is not None:
        padded = zip(nodes, spare, strict=True)
        bias = torch.cat([torch.nn.functional.pad(node.args[-3], (0, count)) for node, count in padded])
    total, dim = sum(node.args[-2] for node in nodes) + sum(spare), len(first.shape) - 1
    args = (first.args[0], *weights, bias, total, False)
    whole = rewriter.new(first.target, args, (*first.shape[:-1], total), first.dtype)
    replacements, begin = {}, 0
    for node, unused in zip(nodes, spare, strict=True):
        end = begin + node.args[-2]
        part = rewriter.new(aten.slice.Tensor, (whole.out, dim, begin, end), node.shape, node.dtype, node.out)
        replacements[id(node)] = [whole, part] if node is first else [part]
        begin = end + unused
    return replacements


def _fuse_gated_activations(rewriter: Rewriter) -> None:
    """Fuses activation(gate) * up."""
    replacements: dict[int, list[Node]] = {}
    for node in rewriter.graph.nodes:
        if node.target != aten.mul.Tensor or len(node.args) != 2:
            continue
        for active, up in (node.args, node.args[::-1]):
            activation = rewriter.made_by(active, aten.silu.default, aten.gelu.default, aten.sigmoid.default)
            other = rewriter.producer.get(up) if isinstance(up, Ref) else None
            if activation is None or other is None or not rewriter.only_use(active) or up in rewriter.changed:
                continue
            kind = _activation_kind(activation)
            if node.shape != activation.shape or node.shape != other.shape or not _is_rows(node.shape):
                continue
            if not node.dtype == activation.dtype == other.dtype or node.dtype not in FLOATS:
                continue
            target = torch.ops.gridwork_cpu.gated_activation.default
            args = (activation.args[0], up, kind)
            replacements[id(node)] = [rewriter.new(target, args, node.shape, node.dtype, node.out)]
            break
    rewriter.rewrite(replacements)


_ACTIVATIONS = {
    aten.silu.default: "silu",
    aten.gelu.default: "gelu",
    aten.relu.default: "relu",
    aten.sigmoid.default: "sigmoid",
}


def _activation_kind(node: Node) -> int:
    """The number of a node's activation in the table of programs."""
    if node.kwargs.get("approximate") == "tanh":
        return ACTIVATIONS["gelu_tanh"]
    return ACTIVATIONS[_ACTIVATIONS[node.target]]


def _is_rows(shape: Any) -> bool:
    """`[1, …, rows, width]` with one width for every number of tokens, so not `[1, channels, T]`."""
    rows = shape is not None and len(shape) >= 2 and all(size == 1 for size in shape[:-2])
    return rows and type(shape[-1]) is int


def _replace_activations(rewriter: Rewriter) -> None:
    """Replaces single activations, including those that are written in several operations."""
    target = torch.ops.gridwork_cpu.activation.default
    replacements: dict[int, list[Node]] = {}
    for node in rewriter.graph.nodes:
        if node.dtype not in FLOATS or not _is_rows(node.shape):
            continue
        x: Any
        if node.target in _ACTIVATIONS:
            x, kind = node.args[0], _activation_kind(node)
        else:
            x, kind = _match_gelu_in_steps(rewriter, node), ACTIVATIONS["gelu_tanh_in_steps"]
        source = rewriter.producer.get(x) if isinstance(x, Ref) and x not in rewriter.changed else None
        if source is not None and (source.shape, source.dtype) == (node.shape, node.dtype):
            replacements[id(node)] = [rewriter.new(target, (x, kind), node.shape, node.dtype, node.out)]
    rewriter.rewrite(replacements)


def _replace_softplus(rewriter: Rewriter) -> None:
    """Replaces products of a constant and softplus(x + a constant), where x is made float32 for it."""
    replacements: dict[int, list[Node]] = {}
    for node in rewriter.graph.nodes:
        if node.target != aten.mul.Tensor or node.dtype != torch.float32 or not _is_rows(node.shape):
            continue
        for factor, other in (node.args, node.args[::-1]):
            softplus = rewriter.made_by(other, aten.softplus.default)
            total = (
                rewriter.made_by(softplus.args[0], aten.add.Tensor) if softplus and len(softplus.args) == 1 else None
            )
            if total is None or total.kwargs or len(total.args) != 2 or not _is_vector(factor, node):
                continue
            x, bias = total.args
            wide = rewriter.made_by(x, aten.to.dtype)
            x = wide.args[0] if wide is not None and rewriter.source(wide.args[0]) else x
            source = rewriter.source(x)
            if source is None or source.shape != node.shape or source.dtype not in FLOATS or not _is_vector(bias, node):
                continue
            target = torch.ops.gridwork_cpu.softplus_scaled.default
            args = (x, bias.float().contiguous(), factor.float().contiguous())
            replacements[id(node)] = [rewriter.new(target, args, node.shape, node.dtype, node.out)]
            break
    rewriter.rewrite(replacements)


def _widen_terms(rewriter: Rewriter) -> None:
    """Makes both terms of a float32 sum float32 before it, as PyTorch does within it."""
    replacements: dict[int, list[Node]] = {}
    for node in rewriter.graph.nodes:
        if node.target != aten.add.Tensor or node.dtype != torch.float32 or len(node.args) != 2 or node.kwargs:
            continue
        terms = [rewriter.source(term) for term in node.args]
        if any(term is None or term.shape != node.shape or term.dtype not in FLOATS for term in terms):
            continue
        before: list[Node] = []
        args = []
        for ref, term in zip(node.args, terms, strict=True):
            if term.dtype != torch.float32:  # type: ignore[union-attr]
                before.append(rewriter.new(aten.to.dtype, (ref, torch.float32), node.shape, torch.float32))
            args.append(ref if term.dtype == torch.float32 else before[-1].out)  # type: ignore[union-attr]
        if before:
            sum_ = rewriter.new(node.target, tuple(args), node.shape, node.dtype, node.out)
            replacements[id(node)] = [*before, sum_]
    rewriter.rewrite(replacements)


def _is_vector(argument: Any, node: Node) -> bool:
    """True if an argument is a constant for each of the last dimension's values."""
    return isinstance(argument, torch.Tensor) and node.shape is not None and argument.shape == (node.shape[-1],)


def _match_gelu_in_steps(rewriter: Rewriter, node: Node) -> Ref | None:
    """Returns x where the node computes 0.5 * x * (1.0 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))."""

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
    """True if an argument is a Python number of this value. It may also be a tensor."""
    return isinstance(argument, int | float) and argument == value


def _replace_layer_norms(rewriter: Rewriter) -> None:
    """Replaces layer norms over the last dimension."""
    target = torch.ops.gridwork_cpu.layer_norm.default
    replacements: dict[int, list[Node]] = {}
    for node in rewriter.graph.nodes:
        if node.target != aten.layer_norm.default or node.dtype not in FLOATS or node.shape is None:
            continue
        x, normalized, weight, bias, eps = (*node.args, *(None, None, 1e-5)[len(node.args) - 2 :])[:5]
        source = rewriter.producer.get(x) if isinstance(x, Ref) and x not in rewriter.changed else None
        same = source is not None and (source.shape, source.dtype) == (node.shape, node.dtype)
        # Weights must be constants: a norm that is scaled by a computed tensor stays as it is.
        plain = all(
            w is None or (isinstance(w, torch.Tensor) and w.dtype == node.dtype and w.is_contiguous())
            for w in (weight, bias)
        )
        if same and plain and not node.kwargs and list(normalized) == [node.shape[-1]]:
            args = (x, weight, bias, eps)
            replacements[id(node)] = [rewriter.new(target, args, node.shape, node.dtype, node.out)]
    rewriter.rewrite(replacements)


def _fuse_norms(rewriter: Rewriter) -> None:
    """Fuses x + residual with the norm of the sum."""
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


def replace_scales(graph: Graph) -> None:
    """Replaces products with a number, and quotients by a number, in place. It must run after the other rewrites, whose
    patterns contain such products."""
    rewriter = Rewriter(graph)
    target = torch.ops.gridwork_cpu.scale.default
    replacements: dict[int, list[Node]] = {}
    for node in graph.nodes:
        divides = node.target in (aten.div.Tensor, aten.div.Scalar)
        if not divides and node.target not in (aten.mul.Tensor, aten.mul.Scalar):
            continue
        if len(node.args) != 2 or node.kwargs or node.dtype not in FLOATS or not _is_rows(node.shape):
            continue
        for x, by in (node.args,) if divides else (node.args, node.args[::-1]):
            source, factor = rewriter.source(x), _factor(by, node.dtype)
            if source is None or factor is None or (source.shape, source.dtype) != (node.shape, node.dtype):
                continue
            replacements[id(node)] = [rewriter.new(target, (x, factor, divides), node.shape, node.dtype, node.out)]
            break
    rewriter.rewrite(replacements)


def _factor(argument: Any, dtype: torch.dtype) -> float | None:
    """The value of a number argument: a Python number, or a constant tensor of the data type."""
    if isinstance(argument, torch.Tensor):
        return float(argument) if argument.dim() == 0 and argument.dtype == dtype else None
    return float(argument) if isinstance(argument, int | float) and not isinstance(argument, bool) else None
