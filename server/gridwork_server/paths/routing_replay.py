"""Records what a model chose for each token, such as experts, and makes later forward passes choose the same.

Rounding can swap two scores that are nearly equal, and a token is then computed by another function. With the
same choices, two computations of one token differ only by rounding.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

_CHOOSING_OPERATIONS = {
    aten.topk.default: ("k", "dim"),
    aten.sort.default: ("dim",),
    aten.sort.stable: ("dim",),
    aten.argsort.default: ("dim",),
    aten.argsort.stable: ("dim",),
    aten.max.dim: ("dim", "keepdim"),
    aten.min.dim: ("dim", "keepdim"),
    aten.argmax.default: ("dim", "keepdim"),
}
"""Operations that return indices along a dimension, and the arguments that decide which."""

_Choice = tuple[Any, ...]
"""Key of a choice: an operation, its arguments, and its number among the pass's operations of that kind."""


class RoutingReplay:
    """Recorded choices, by token. Tokens are known by their ids, so no two tokens of the sequences may be equal."""

    def __init__(self, model: nn.Module) -> None:
        """model: its `forward()` must get the tokens as `input_ids`."""
        self._model = model
        self._recorded: dict[_Choice, dict[int, torch.Tensor]] = {}
        """Chosen indices, by choice and token."""
        self._tokens: list[int] = []
        self._counts: dict[_Choice, int] = {}

    def begin_pass(self, tokens: list[int]) -> None:
        """Begins a forward pass of these tokens."""
        self._tokens, self._counts = tokens, {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Records the choices made within a `with` block."""
        with self._watching_tokens(), _RoutingMode(self, replay=False):
            yield

    @contextlib.contextmanager
    def replaying(self) -> Iterator[None]:
        """Repeats recorded choices within a `with` block, wherever the choice was recorded for all tokens of the
        pass."""
        with self._watching_tokens(), _RoutingMode(self, replay=True):
            yield

    @contextlib.contextmanager
    def replaying_for(self, tokens: list[int]) -> Iterator[None]:
        """Repeats recorded choices for a step of these tokens, even one that does not call `forward()`."""
        with self.replaying():
            self.begin_pass(tokens)
            yield

    @contextlib.contextmanager
    def _watching_tokens(self) -> Iterator[None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], settings: dict[str, Any]) -> None:
            tokens = settings.get("input_ids", arguments[0] if arguments else None)
            if isinstance(tokens, torch.Tensor):
                self.begin_pass(tokens.flatten().tolist())

        handle = self._model.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
        try:
            yield
        finally:
            handle.remove()

    def record_or_replay(self, func: Any, x: torch.Tensor, settings: dict[str, Any], results: Any, replay: bool) -> Any:
        """Records the results of an operation that chooses, or replaces them. settings: its arguments by name. Returns
        the results."""
        indices = results if isinstance(results, torch.Tensor) else results[1]
        dim = settings.get("dim", -1)
        if dim is None or x.dim() == 0:
            return results
        dim %= x.dim()
        lead = self._leading_dimensions(x, dim)
        if lead == 0:
            return results
        inner = tuple(x.shape[lead:])
        kind = (func, inner, tuple(sorted(settings.items())))
        nth = self._counts[kind] = self._counts.get(kind, -1) + 1
        recorded = self._recorded.setdefault((*kind, nth), {})
        rows = indices.flatten(0, lead - 1)
        if not replay:
            recorded.update(zip(self._tokens, rows, strict=True))
            return results
        if any(token not in recorded or recorded[token].shape != rows.shape[1:] for token in self._tokens):
            return results
        indices = torch.stack([recorded[token] for token in self._tokens]).view_as(indices)
        if isinstance(results, torch.Tensor):
            return indices
        along = indices if indices.dim() == x.dim() else indices.unsqueeze(dim)
        return x.gather(dim, along).view_as(indices), indices

    def _leading_dimensions(self, x: torch.Tensor, dim: int) -> int:
        """Number of leading dimensions that count the pass's tokens; 0 when none does."""
        count = len(self._tokens)
        if count and dim > 0 and x.shape[0] == count:
            return 1
        if count and dim > 1 and x.dim() > 2 and x.shape[0] * x.shape[1] == count:
            return 2
        return 0


class _RoutingMode(TorchDispatchMode):
    def __init__(self, routing: RoutingReplay, replay: bool) -> None:
        super().__init__()
        self._routing, self._replay = routing, replay

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Returns False, since PyTorch would otherwise import its compiler just to exclude this mode from it."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        if func not in _CHOOSING_OPERATIONS or not args[0].is_floating_point():
            return results
        names = [argument.name for argument in func._schema.arguments]
        settings = dict(zip(names, args, strict=False)) | kwargs
        kept = {name: settings[name] for name in _CHOOSING_OPERATIONS[func] if name in settings}
        return self._routing.record_or_replay(func, args[0], kept, results, self._replay)
