"""Records the operations of a model's forward pass, for any number of tokens.

The model runs a few times on made-up tokens, while every operation that reaches PyTorch's dispatcher is recorded. Runs
with different numbers of tokens show which sizes depend on it, and how. Operations that depend on the tokens' values (a
branch on a number in a tensor, a number of rows that is a number of hits) cannot be recorded, and are refused.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gridwork_kernels.paged_attention import AttentionOptions
from gridwork_server.graph.nodes import Attend, Graph, Node, Recur, Ref, Size, mapped
from gridwork_server.recurrent.operations import Recurrence, StateKey, Tensors, empty_result


class RecordError(RuntimeError):
    """The forward pass cannot be recorded; the message says why."""


_FEWEST = 11
_SIZES = ((_FEWEST, 3), (_FEWEST + 2, 3), (_FEWEST, 5), (_FEWEST + 320, 7))
"""Numbers of tokens and of rows of logits of the runs: three to find what depends on them, and one to verify it."""

Sizes = tuple[tuple[int, int], ...]

_LINEARS = ("gridwork_cpu::linear", "gridwork_cpu::int8_linear", "gridwork_cpu::int4_linear")

Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Any], torch.Tensor]
"""(input_ids int64 `[1, T]`, position_ids `[1, T]`, rows to keep int64 `[K]`, the step's context) -> logits."""


@torch.inference_mode()
def record(forward: Forward) -> Graph:
    """The graph of a forward pass of any number of tokens. Raises RecordError."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # little is computed, and waking threads would take longer
    try:
        return _general([_run(forward, *size) for size in _SIZES], _SIZES)
    except RecordError:
        raise
    except Exception as error:  # a model's own code may raise anything
        raise RecordError(f"{type(error).__name__}: {error}") from error
    finally:
        torch.set_num_threads(threads)


def _run(forward: Forward, num_tokens: int, num_rows: int) -> "_Recorder":
    input_ids = torch.zeros(1, num_tokens, dtype=torch.int64)
    # Small positions: a table of positions may be shorter than the longest run.
    position_ids = (torch.arange(num_tokens) % _FEWEST)[None]
    kept = torch.arange(num_tokens - num_rows, num_tokens)
    recorder = _Recorder([input_ids, position_ids, kept])
    with recorder:
        result = forward(input_ids, position_ids, kept, recorder)
    recorder.result = recorder.ref(result)
    return recorder


class _Recorder(TorchDispatchMode):
    """Records one run. It is also the context that the model's attention functions receive."""

    def __init__(self, inputs: list[torch.Tensor]) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.result: Any = None
        self._refs: dict[int, Ref] = {}
        self._alive: list[torch.Tensor] = []  # keeps ids unique
        self._calls: dict[int, int] = {}
        for tensor in inputs:
            self._new_ref(tensor)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Returns False, so that PyTorch does not import its compiler."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        _check(func, args)
        result = _of_shape(func._schema.name, args)
        if result is None:
            result = func(*args, **kwargs)
        self._add(func, args, kwargs, result)
        return result

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        """See StepContext."""
        nth = self._calls.get(layer, 0)
        self._calls[layer] = nth + 1
        with torch.utils._python_dispatch._disable_current_modes():
            result = value.new_zeros(query.shape[0], query.shape[1], value.shape[2])
        target = Attend(layer, nth, options.scale, options.window, options.softcap)
        self._add(target, (query, key, value, options.sinks), {}, result)
        return result

    def recur(self, key: StateKey, operation: Recurrence, tensors: Tensors) -> torch.Tensor:
        """See StepContext."""
        with torch.utils._python_dispatch._disable_current_modes():
            result = empty_result(operation, tensors)
        self._add(Recur(key, operation), tensors, {}, result)
        return result

    def ref(self, leaf: Any) -> Any:
        """The argument as a node holds it: a Ref for a known tensor, else the argument itself."""
        return self._refs.get(id(leaf), leaf)

    def _add(self, target: Any, args: Any, kwargs: Any, result: Any) -> None:
        args, kwargs = mapped(tuple(args), self.ref), mapped(dict(kwargs), self.ref)
        results = result if isinstance(result, (list, tuple)) else (result,)
        if any(isinstance(item, (bool, int, float)) for item in results):
            raise RecordError(f"{target._schema.name} {_REFUSED[torch.Tag.data_dependent_output]}")
        outputs = tuple(self._new_ref(item) if isinstance(item, torch.Tensor) else None for item in results)
        first = next((item for item in results if isinstance(item, torch.Tensor)), None)
        shape, dtype = (tuple(first.shape), first.dtype) if first is not None else (None, None)
        self.nodes.append(Node(target, args, kwargs, outputs, shape, dtype))

    def _new_ref(self, tensor: torch.Tensor) -> Ref:
        """The tensor's Ref, new for a new tensor. In-place operations return a known tensor."""
        if id(tensor) not in self._refs:
            self._refs[id(tensor)] = Ref(len(self._alive))
            self._alive.append(tensor)
        return self._refs[id(tensor)]


def _of_shape(name: str, args: Any) -> torch.Tensor | None:
    """The output of a large operation, with the right shape only: values do not matter, and would take the most
    time."""
    shape: tuple[int, ...]
    if name in _LINEARS:
        x, *_, out_features, float32_out = args
        shape, dtype = (*x.shape[:-1], out_features), torch.float32 if float32_out else x.dtype
    elif name in ("gridwork_cpu::experts_in", "gridwork_cpu::experts_out"):
        x, index, *_, out_features = args
        rows = index.numel() if name == "gridwork_cpu::experts_in" else len(index)
        shape, dtype = (rows, out_features), x.dtype
    else:
        return None
    result: torch.Tensor = x.new_zeros(*shape, dtype=dtype)
    return result


_REFUSED = {
    torch.Tag.dynamic_output_shape: "gives as many values as others decide",
    torch.Tag.data_dependent_output: "gives a value to Python code",
    torch.Tag.nondeterministic_seeded: "depends on chance",
}


def _check(func: Any, args: Any) -> None:
    """Raises RecordError for an operation that may behave differently in another pass."""
    name = func._schema.name
    if name == "aten::index":
        indices = (index for index in args[1] if isinstance(index, torch.Tensor))
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            raise RecordError(f"{name} by a mask gives as many values as the mask says")
        return
    if name == "aten::dropout" and not args[2]:
        return  # outside of training it returns its input
    for tag, reason in _REFUSED.items():
        if tag in func.tags:
            raise RecordError(f"{name} {reason}")


def _general(runs: list[_Recorder], sizes: Sizes) -> Graph:
    """Merges the runs into one graph for all sizes."""
    first = runs[0]
    if any(
        [node.target for node in run.nodes] != [node.target for node in first.nodes] or run.result != first.result
        for run in runs[1:]
    ):
        raise RecordError("the operations depend on the number of tokens")
    if not isinstance(first.result, Ref):
        raise RecordError("the logits are not computed")
    nodes = []
    for same in zip(*(run.nodes for run in runs), strict=True):
        args, kwargs, shape = _unify([(node.args, node.kwargs, node.shape) for node in same], same[0].name, sizes)
        if any(node.outputs != same[0].outputs for node in same):
            raise RecordError("what is computed depends on the number of tokens")
        nodes.append(Node(same[0].target, args, kwargs, same[0].outputs, shape, same[0].dtype))
    graph = Graph(Ref(0), Ref(1), Ref(2), nodes, first.result)
    graph.next_index = 1 + max(ref.index for node in nodes for ref in (*node.outputs, graph.kept) if ref is not None)
    return graph


def _unify(trees: list[Any], name: str, sizes: Sizes) -> Any:
    first = trees[0]
    kind = type(first)
    if kind is list or kind is tuple:
        if any(len(tree) != len(first) for tree in trees):
            raise RecordError(f"an argument of {name} has another length for another number of tokens")
        items = [_unify([tree[i] for tree in trees], name, sizes) for i in range(len(first))]
        return items if kind is list else tuple(items)
    if kind is dict:
        return {key: _unify([tree[key] for tree in trees], name, sizes) for key in first}
    if isinstance(first, torch.Tensor):
        if any(tree is not first for tree in trees):
            raise RecordError(f"{name} uses a tensor that is made anew in every pass, outside of PyTorch's operations")
        return first
    if kind is int and any(tree != first for tree in trees):
        return _size(trees, name, sizes)
    if any(type(tree) is not kind or tree != first for tree in trees):
        raise RecordError(f"an argument of {name} depends on the number of tokens")
    return first


def _size(values: list[int], name: str, sizes: Sizes) -> Size:
    (tokens, rows), (more_tokens, _), (_, more_rows) = sizes[:3]
    by_token, rest = divmod(values[1] - values[0], more_tokens - tokens)
    by_row, rest_rows = divmod(values[2] - values[0], more_rows - rows)
    size = Size(values[0] - by_token * tokens - by_row * rows, by_token, by_row)
    if rest or rest_rows or any(size.at(*at) != value for at, value in zip(sizes, values, strict=True)):
        raise RecordError(f"a size in {name} is no multiple of the number of tokens")
    return size
