"""Compiles a graph to one Python function without branches, which calls its operations in order, and native programs
for operations that have kernels."""

from typing import Any

import torch

from gridwork_kernels.paged_attention import PagedLayout
from gridwork_kernels.states import StateLayout
from gridwork_server.attention import LayerKey
from gridwork_server.graph.native import NativeProgram
from gridwork_server.graph.nodes import Attend, Graph, Node, Recur, Ref, Size
from gridwork_server.graph.plan import Plan, Segment
from gridwork_server.recurrent.operations import KINDS, StateKey
from gridwork_server.recurrent.pool import StatePool

_METHODS = frozenset(("reshape", "select", "transpose", "unsqueeze", "view"))
"""Operations that are faster as methods of a tensor than by their overload."""

_OPERATORS = {"aten::add": "+", "aten::mul": "*"}


class Program:
    """A compiled graph. Caches and weights are names in the function's own namespace."""

    def __init__(
        self,
        graph: Graph,
        chunks: dict[int, int],
        sharing: set[LayerKey],
        windowed: set[LayerKey],
        native: bool = True,
    ) -> None:
        """chunks: by layer, number of positions in a chunk of its attention; sharing: layers that attend to another
        layer's keys and values; windowed: layers with a window, whose keys and values have a layout of their own;
        native: whether the compiled library runs the operations that it supports."""
        self.num_operations = len(graph.nodes)
        self._chunks, self._sharing, self._windowed = chunks, sharing, windowed
        self._namespace: dict[str, Any] = {"paged_attention": _callable(torch.ops.gridwork_cpu.paged_attention.default)}
        self._names: dict[int, str] = {}
        self._native: list[NativeProgram] = []
        source = self._source(graph, native)
        exec(compile(source, "<graph>", "exec"), self._namespace)

    def bind(
        self, keys: dict[LayerKey, torch.Tensor], values: dict[LayerKey, torch.Tensor], pool: StatePool | None = None
    ) -> None:
        """Sets the layers' caches and states."""
        if pool is not None:
            self._namespace.update((_state_name(key), tensor) for key, tensor in pool.tensors.items())
        for (layer, nth), cache in keys.items():
            self._namespace[f"keys_{layer}_{nth}"] = cache
            self._namespace[f"values_{layer}_{nth}"] = values[layer, nth]
        caches = {key: (cache, values[key]) for key, cache in keys.items()}
        for native in self._native:
            native.bind(caches, pool, self._chunks, self._sharing, self._windowed)

    @property
    def num_calls(self) -> int:
        """Number of calls from Python; a native program counts as one."""
        return self._num_calls

    def run(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        kept: torch.Tensor,
        layout: PagedLayout,
        window_layout: PagedLayout,
        states: StateLayout | None = None,
    ) -> torch.Tensor:
        """input_ids, position_ids: int64 `[1, T]`; kept: int64 `[K]`. Returns logits `[1, K, vocab_size]`."""
        logits: torch.Tensor = self._namespace["forward"](input_ids, position_ids, kept, layout, window_layout, states)
        return logits

    def _source(self, graph: Graph, native: bool) -> str:
        plan = Plan(graph) if native else None
        items: list[Node | Segment] = plan.items if plan else list(graph.nodes)
        self._num_calls = len(items)
        last_use = {ref: i for i, item in enumerate(items) for ref in item.inputs()}
        last_use[graph.result] = len(items)
        dead: dict[int, list[Ref]] = {}
        for ref, i in last_use.items():
            dead.setdefault(i, []).append(ref)
        inputs = [_name(ref) for ref in (graph.input_ids, graph.position_ids, graph.kept)]
        lines = [
            f"def forward({', '.join(inputs)}, near, far, states):",
            f"    T, K = {_name(graph.input_ids)}.shape[1], {_name(graph.kept)}.shape[0]",
        ]
        for which in ("near", "far"):
            lines.append(
                f"    {which}_tables, {which}_sequence, {which}_length, {which}_slots = "
                f"{which}.block_tables, {which}.sequence, {which}.length, {which}.slots"
            )
        if any(isinstance(node.target, Recur) for node in graph.nodes):
            lines.append("    starts, state_slots, fresh = states.starts, states.slots, states.fresh")
        for i, item in enumerate(items):
            if isinstance(item, Segment):
                assert plan is not None
                call = self._segment(plan, item)
            else:
                call = self._node(item)
            outputs = [_name(ref) if ref is not None else "_" for ref in item.outputs]
            comma = "," if isinstance(item, Segment) else ""
            lines.append(f"    {', '.join(outputs)}{comma} = {call}" if outputs else f"    {call}")
            if gone := dead.get(i):
                lines.append(f"    {' = '.join(_name(ref) for ref in gone)} = None")
        return "\n".join([*lines, f"    return {_name(graph.result)}", ""])

    def _node(self, node: Node) -> str:
        if isinstance(node.target, Attend):
            return self._attention(node)
        return self._recurrence(node) if isinstance(node.target, Recur) else self._call(node)

    def _recurrence(self, node: Node) -> str:
        target: Recur = node.target
        kernel = KINDS[target.operation.name].kernel
        arguments = [self._argument(argument) for argument in node.args]
        options = [
            f"float('{option}')" if type(option) is float else repr(option) for option in target.operation.options
        ]
        places = ["starts", "state_slots", "fresh", _state_name(target.key)]
        return f"{self._bound(kernel, kernel, 'recur')}({', '.join([*arguments, *options, *places])})"

    def _segment(self, plan: Plan, segment: Segment) -> str:
        program = NativeProgram(plan, segment)
        self._native.append(program)
        arguments = ["T", "near", "far", "states", *(_name(ref) for ref in segment.inputs())]
        return f"{self._bound(program, program, 'native')}({', '.join(arguments)})"

    def _attention(self, node: Node) -> str:
        target: Attend = node.target
        key = target.layer, target.nth
        query, new_key, new_value, sinks, *angles = (self._argument(argument) for argument in node.args)
        cos, sin = angles or ("None", "None")
        if key in self._sharing:
            new_key = new_value = "None"
        where = "far" if key in self._windowed else "near"
        name = f"{target.layer}_{target.nth}"
        chunk = self._chunks.get(target.layer, 0)
        return (
            f"paged_attention({query}, {new_key}, {new_value}, keys_{name}, values_{name}, {where}_tables, "
            f"{where}_sequence, {where}_length, {where}_slots, {cos}, {sin}, {sinks}, None, {target.scale!r}, "
            f"{target.window}, {chunk}, {target.softcap!r}, {target.interleaved})"
        )

    def _call(self, node: Node) -> str:
        name = node.target._schema.name
        short = name.removeprefix("aten::")
        args = [self._argument(argument) for argument in node.args]
        if not node.kwargs and node.args and isinstance(node.args[0], Ref):
            if name.startswith("aten::") and short in _METHODS:
                return f"{args[0]}.{short}({', '.join(args[1:])})"
            if name in _OPERATORS and len(args) == 2 and isinstance(node.args[1], Ref):
                return f"{args[0]} {_OPERATORS[name]} {args[1]}"
            if name == "aten::slice" and len(args) == 4 and _is_whole(node):
                _, dim, begin, end = node.args
                return f"{args[0]}.narrow({dim}, {begin}, {end - begin})"
        args += [f"{key}={self._argument(argument)}" for key, argument in node.kwargs.items()]
        return f"{self._bound(_callable(node.target), node.target, 'op')}({', '.join(args)})"

    def _argument(self, argument: Any) -> str:
        if isinstance(argument, Ref):
            return _name(argument)
        if isinstance(argument, Size):
            return f"({argument.constant} + {argument.tokens} * T + {argument.rows} * K)"
        if isinstance(argument, list | tuple):
            return f"[{', '.join(self._argument(item) for item in argument)}]"
        if argument is None or isinstance(argument, bool | int | str):
            return repr(argument)
        return self._bound(argument, argument, "c")

    def _bound(self, value: Any, key: Any, prefix: str) -> str:
        """Binds a value that has no literal to a name."""
        if id(key) not in self._names:
            name = f"{prefix}{len(self._names)}"
            self._names[id(key)] = name
            self._namespace[name] = value
            self._namespace.setdefault("keep", []).append(key)  # keeps ids unique
        return self._names[id(key)]


def _is_whole(slicing: Node) -> bool:
    """True if a slice lies within its dimension for every number of tokens. A slice may also extend beyond it."""
    _, dim, begin, end = slicing.args
    numbers = all(type(number) is int and number >= 0 for number in (dim, begin, end))
    return numbers and slicing.shape is not None and slicing.shape[dim] == end - begin


def _callable(overload: Any) -> Any:
    """The callable of an operation with the least Python overhead."""
    return getattr(overload, "_op", overload)


def _state_name(key: StateKey) -> str:
    return f"state_{key.layer}_{key.number}_{int(key.is_conv)}_{key.nth}"


def _name(ref: Ref) -> str:
    return f"v{ref.index}"
