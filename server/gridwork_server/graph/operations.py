"""Writes a graph's nodes as operations of a native program, with where each operand lies."""

from typing import Any

import torch

from gridwork_kernels import program
from gridwork_kernels.program_table import NORMS
from gridwork_server.attention import LayerKey
from gridwork_server.graph.nodes import Attend, Node, Recur, Ref
from gridwork_server.graph.plan import Plan, last_dim
from gridwork_server.recurrent.pool import StatePool

aten = torch.ops.aten

Caches = dict[LayerKey, tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer."""


class OperationWriter(program.ProgramWriter):
    """Writes one program. Operands' names are those of `program_table.def`."""

    def __init__(
        self,
        plan: Plan,
        slots: dict[Ref, int],
        caches: Caches,
        pool: StatePool | None,
        chunks: dict[int, int],
        sharing: set[LayerKey],
        windowed: set[LayerKey],
    ) -> None:
        """slots: of every tensor that the program reads or writes; for chunks, sharing and windowed see Program."""
        super().__init__()
        self._plan, self._slots, self._caches, self._pool = plan, slots, caches, pool
        self._chunks, self._sharing, self._windowed = chunks, sharing, windowed

    def node(self, node: Node) -> None:
        """Writes the operation of one node."""
        ops = torch.ops.gridwork_cpu
        assert node.dtype is not None
        if isinstance(node.target, Attend):
            self._attention(node, node.target)
        elif isinstance(node.target, Recur):
            self._recurrence(node, node.target)
        elif node.target == ops.linear.default:
            _, packed, bias, features, _ = node.args
            self.operation("linear", **self._linear(node), **_weights(packed, bias, features))
        elif node.target in (ops.int8_linear.default, ops.int4_linear.default):
            _, packed, scales, bias, features, _ = node.args
            self.operation(
                "quantized_linear",
                **self._linear(node),
                four_bits=node.target == ops.int4_linear.default,
                weights=packed,
                scales=scales,
                panels=len(packed),
                features=features,
                bias=bias,
            )
        elif node.target == aten.embedding.default:
            table, ids = node.args[:2]
            ids_slot = self._slots[self._plan.base(ids)]
            rows, width = table.shape
            self.operation(
                "embedding", node.dtype, ids=ids_slot, table=table, table_rows=rows, width=width, out=self._out(node)
            )
        elif node.target in (ops.rms_norm.default, ops.layer_norm.default):
            x, *norm = node.args
            parts = self._plan.rows[x].features // last_dim(node)
            self.operation("norm", node.dtype, x=self._rows(x), out=self._out(node), parts=parts, **_norm(node, *norm))
        elif node.target in (ops.add_rms_norm.default, ops.add_layer_norm.default):
            a, b, *norm = node.args
            total, out = (self._slots[ref] for ref in node.outputs if ref is not None)
            self.operation(
                "add_norm", node.dtype, a=self._rows(a), b=self._rows(b), total=total, out=out, **_norm(node, *norm)
            )
        else:
            self._elementwise(node, node.dtype)

    def gated_linear(self, linear: Node, gated: Node) -> None:
        """Writes a linear layer and the gated activation of its features as one operation."""
        x, packed, bias, features, _ = linear.args
        rows = self._plan.rows[x]
        self.operation(
            "gated_linear",
            rows.dtype,
            x=self._rows(x),
            halves=self._out(linear),
            out=self._out(gated),
            in_features=rows.features,
            activation_kind=gated.args[2],
            **_weights(packed, bias, features),
        )

    def _elementwise(self, node: Node, dtype: torch.dtype) -> None:
        ops = torch.ops.gridwork_cpu
        first, *rest = node.args
        shared: dict[str, Any] = {"out": self._out(node), "width": self._plan.rows[node.out].features}
        if node.target == ops.gated_norm.default:
            self._gated_norm(node)
        elif node.target == ops.softplus_scaled.default:
            bias, factor = rest
            self.operation(
                "softplus_scaled", self._type(first), x=self._rows(first), bias=bias, factor=factor, **shared
            )
        elif node.target == aten.to.dtype:
            widens = dtype == torch.float32
            self.operation(
                "convert", self._type(first) if widens else dtype, x=self._rows(first), widens=widens, **shared
            )
        elif node.target == aten.mul.Tensor:
            self.operation("multiply", dtype, a=self._rows(first), b=self._rows(rest[0]), **shared)
        elif node.target == ops.activation.default:
            self.operation("activation", dtype, x=self._rows(first), activation_kind=rest[0], **shared)
        elif node.target == ops.scale.default:
            factor, divide = rest
            self.operation("scale", dtype, x=self._rows(first), factor=factor, divide=divide, **shared)
        elif node.target == ops.gated_activation.default:
            up, kind = rest
            self.operation(
                "gated_activation",
                dtype,
                gate=self._rows(first),
                up=self._rows(up),
                activation_kind=kind,
                **shared,
            )
        else:
            self.operation("add", dtype, a=self._rows(first), b=self._rows(rest[0]), **shared)

    def _gated_norm(self, node: Node) -> None:
        x, gate, weight, eps, width, gate_first, activation, float32_out = node.args
        groups = len(weight) // width
        self.operation(
            "gated_norm",
            self._type(gate),
            x=self._rows(x),
            gate=self._rows(gate),
            out=self._out(node),
            parts=self._plan.rows[x].features // len(weight),
            groups=groups,
            width=width,
            float32_in=self._type(x) == torch.float32,
            float32_out=float32_out,
            gate_first=gate_first,
            activation_kind=activation,
            weight=weight,
            eps=eps,
        )

    def _recurrence(self, node: Node, target: Recur) -> None:
        assert self._pool is not None
        name, options, args = target.operation.name, target.operation.options, node.args
        dtype, shapes = self._type(args[0]), self._plan.shapes
        pool, out = self._pool.tensors[target.key], self._out(node)
        if name == "causal_conv":
            x, weight, bias = args
            channels, size = weight.shape
            self.operation(
                name,
                dtype,
                x=self._rows(x),
                out=out,
                channels=channels,
                size=size,
                with_silu=options[0],
                weight=weight,
                bias=bias,
                pool=pool,
            )
        elif name == "gated_delta":
            query, key, value, decay, beta = args
            self.operation(
                name,
                dtype,
                query=self._rows(query),
                key=self._rows(key),
                value=self._rows(value),
                decay=self._rows(decay),
                beta=self._rows(beta),
                out=out,
                key_heads=shapes[key][-2],
                value_heads=shapes[value][-2],
                key_size=shapes[key][-1],
                value_size=shapes[value][-1],
                decay_of_dimensions=self._plan.rows[decay].features > shapes[value][-2],
                normalises=options[0],
                pool=pool,
            )
        else:
            x, step, a, b, c, d, bias = args
            rows = {name: self._rows(ref) for name, ref in (("x", x), ("step", step), ("b", b), ("c", c))}
            shared = {"a": a, "d": d, "bias": bias, "softplus": options[0], "pool": pool, "out": out, **rows}
            state_size = shapes[b][-1]
            if name == "scan_channels":
                self.operation(name, dtype, channels=shapes[x][-1], state_size=state_size, **shared)
            else:
                _, least, most = options
                heads, head_size = shapes[x][-2:]
                self.operation(
                    name,
                    dtype,
                    heads=heads,
                    head_size=head_size,
                    groups=shapes[b][-2],
                    state_size=state_size,
                    least=least,
                    most=most,
                    **shared,
                )

    def _type(self, ref: Ref) -> torch.dtype:
        return self._plan.rows[ref].dtype

    def _linear(self, node: Node) -> dict[str, Any]:
        """The operands of a linear layer but for its weights, and its data type."""
        x, features, float32_out = node.args[0], *node.args[-2:]
        rows = self._plan.rows[x]
        parts = self._plan.rows[node.out].features // features
        return {
            "dtype": rows.dtype,
            "x": self._rows(x),
            "out": self._out(node),
            "parts": parts,
            "in_features": rows.features // parts,
            "float32_out": float32_out,
        }

    def _attention(self, node: Node, target: Attend) -> None:
        query, key, value, sinks, *angles = node.args
        cos, sin = angles or (None, None)
        layer = target.layer, target.nth
        keys, values = self._caches[layer]
        heads, key_size = self._plan.shapes[query][-2:]
        _, kv_heads, _, block_size, _ = keys.shape
        value_size = values.shape[3]
        angle_rows = self._plan.rows[cos] if cos is not None else None
        assert node.dtype is not None
        self.operation(
            "paged_attention",
            node.dtype,
            query=self._rows(query),
            key=self._rows(key),
            value=self._rows(value),
            query_head_stride=self._plan.rows[query].part_stride or key_size,
            key_head_stride=self._plan.rows[key].part_stride or key_size,
            value_head_stride=self._plan.rows[value].part_stride or value_size,
            out=self._out(node),
            query_heads=heads,
            kv_heads=kv_heads,
            key_size=key_size,
            value_size=value_size,
            block_size=block_size,
            writes_cache=layer not in self._sharing,
            keys=keys,
            values=values,
            keys_block_stride=keys.stride(0),
            keys_head_stride=keys.stride(1),
            values_block_stride=values.stride(0),
            values_head_stride=values.stride(1),
            layout=layer in self._windowed,
            rotary_float32=angle_rows is not None and angle_rows.dtype == torch.float32,
            rotary_interleaved=target.interleaved,
            cos=self._rows(cos),
            sin=self._rows(sin),
            rotary_size=angle_rows.features if angle_rows is not None else 0,
            sinks=sinks,
            window=target.window,
            chunk=self._chunks.get(target.layer, 0),
            scale=target.scale,
            softcap=target.softcap,
        )

    def _rows(self, ref: Ref | None) -> program.Rows:
        """Location of the rows of an operand; zeros for none."""
        if ref is None:
            return 0, 0, 0
        rows = self._plan.rows[ref]
        return self._slots[rows.base], rows.offset, rows.stride

    def _out(self, node: Node) -> int:
        return self._slots[node.out]


def _weights(packed: torch.Tensor, bias: torch.Tensor | None, features: int) -> dict[str, Any]:
    panels, groups = packed.shape[:2]
    return {
        "weights_type": program.TYPES[packed.dtype],
        "weights": packed,
        "panels": panels,
        "groups": groups,
        "features": features,
        "bias": bias,
    }


def _norm(node: Node, weight: torch.Tensor | None, *rest: Any) -> dict[str, Any]:
    """rest: eps and form of an RMS norm, or bias and eps of a layer norm."""
    ops = torch.ops.gridwork_cpu
    if node.target in (ops.layer_norm.default, ops.add_layer_norm.default):
        kind, (bias, eps) = NORMS["layer"], rest
    else:
        eps, kind = rest
        bias = None
    return {"norm_kind": kind, "weight": weight, "bias": bias, "width": last_dim(node), "eps": eps}
