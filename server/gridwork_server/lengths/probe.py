"""Finds modules whose result for a token depends on the longest position of the call.

Rotary embeddings with `longrope` or `dynamic` scaling choose their frequencies by that length, so in a batch a token
would get the frequencies of the longest sequence. Modules are found by calling them, never by name: the result for
position 1 must stay the same while another position of the call grows.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

_LONGEST = 2**20
"""Maximum length of a tried call, in tokens."""

_LARGEST_RESULT = 2**25
"""Largest result, in numbers, beyond which no longer call is tried: some results grow with the square of the length."""

_LARGEST_COPY = 2**16
"""Largest tensor, in numbers, that is copied so that it can be restored: frequencies have a few hundred numbers."""


@dataclass(frozen=True)
class LengthRule:
    """Dependence of a module's results on the length of a call, which is its longest position plus 1."""

    border: int
    """Largest length up to which results do not depend on the length."""
    apart: bool
    """True if every length beyond the border has its own results; otherwise all of them share one result."""

    def classes(self, lengths: np.ndarray) -> np.ndarray:
        """Class of each length, int64: 0 up to the border; beyond it the length itself, or 1 when all results are
        equal."""
        return np.where(lengths <= self.border, 0, lengths if self.apart else 1)


def common_rule(rules: list[LengthRule]) -> LengthRule | None:
    """The rule that separates whatever any of `rules` separates; None for an empty list."""
    if not rules:
        return None
    borders = {rule.border for rule in rules}
    return LengthRule(min(borders), len(borders) > 1 or any(rule.apart for rule in rules))


class FreshState:
    """Snapshot of a module's attributes and buffers from before its first call."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._attributes = {name: value for name, value in vars(module).items() if _is_state(name, value)}
        self._buffers = dict(module._buffers)
        tensors = [*self._attributes.values(), *self._buffers.values()]
        self._copies = [
            (value, value.clone())
            for value in tensors
            if isinstance(value, torch.Tensor) and value.numel() <= _LARGEST_COPY
        ]
        self._versions = [_version(value) for value, _ in self._copies]

    def restore(self) -> None:
        """Undoes the changes that calls made to the module."""
        held = vars(self._module)
        for name in [name for name, value in held.items() if _is_state(name, value) and name not in self._attributes]:
            del held[name]
        held.update(self._attributes)
        for name in [name for name in self._module._buffers if name not in self._buffers]:
            del self._module._buffers[name]
        self._module._buffers.update(self._buffers)
        for i, (value, copy) in enumerate(self._copies):
            if self._versions[i] is None or self._versions[i] != _version(value):
                value.copy_(copy)
                self._versions[i] = _version(value)


def _is_state(name: str, value: Any) -> bool:
    if name in ("training", "forward") or (name.startswith("_") and name.endswith(("hooks", "kwargs", "called"))):
        return False
    return value is None or isinstance(value, bool | int | float | str | torch.Tensor)


def _version(tensor: torch.Tensor) -> int | None:
    """Number of in-place writes to the tensor; None where PyTorch does not count them."""
    return None if tensor.is_inference() else tensor._version


Place = int | str
"""Place of an argument in a call: its index, or its name."""


@dataclass
class PositionCall:
    """A call of a module with the positions of tokens, with their number, or with both."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: Place | None
    """Place of the positions; None: the call has none, and its results serve all positions."""
    length_place: Place | None
    """Place of the length of the call; None when the call has no such argument."""
    state: FreshState

    @property
    def positions(self) -> torch.Tensor:
        """The positions in the call's arguments, `[…, T]`."""
        found: torch.Tensor = self.args[self.place] if isinstance(self.place, int) else self.kwargs[str(self.place)]
        return found

    @property
    def variant(self) -> str:
        """Key of the other arguments: a module may have several kinds of frequencies."""
        return variant_of(self.args, self.kwargs, (self.place, self.length_place))

    def run(self, positions: list[int]) -> list[torch.Tensor]:
        """Tensors that a first call with these positions returns, in float32 where the module computes in its input's
        dtype."""
        args = tuple(_widened(value) for value in self.args)
        kwargs = {name: _widened(value) for name, value in self.kwargs.items()}
        if self.place is not None:
            own = self.positions
            row = torch.tensor(positions, dtype=own.dtype, device=own.device).expand(*own.shape[:-1], -1)
            args, kwargs = with_argument(args, kwargs, self.place, row)
        if self.length_place is not None:
            args, kwargs = with_argument(args, kwargs, self.length_place, positions[-1] + 1)
        self.state.restore()
        try:
            return tensors_of(self.module(*args, **kwargs))
        finally:
            self.state.restore()


def parameter_names(module: nn.Module) -> list[str]:
    """Names of the arguments that `forward()` takes by position; empty when it takes any number of them."""
    parameters = inspect.signature(module.forward).parameters.values()
    if any(parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY) for parameter in parameters):
        return []
    return [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]


def by_name(
    names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Passes positional arguments by name where they have one: a model may pass them in either way."""
    known = min(len(args), len(names))
    return args[known:], dict(zip(names, args[:known], strict=False)) | kwargs


def with_argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], place: Place, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with the one at `place` replaced by `value`."""
    if isinstance(place, str):
        return args, kwargs | {place: value}
    return (*args[:place], value, *args[place + 1 :]), kwargs


def variant_of(args: tuple[Any, ...], kwargs: dict[str, Any], without: tuple[Place | None, ...]) -> str:
    """Text of the call's arguments that are not tensors. without: places of arguments to leave out."""
    given = [*enumerate(args), *sorted(kwargs.items())]
    others = [(place, value) for place, value in given if place not in without]
    return repr([(place, value) for place, value in others if isinstance(value, bool | int | float | str)])


def tensors_of(out: Any) -> list[torch.Tensor]:
    """The tensors in a module's return value."""
    items = out if isinstance(out, tuple | list) else (out,)
    return [item for item in items if isinstance(item, torch.Tensor)]


def _widened(value: Any) -> Any:
    floats = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(torch.float32) if floats else value


@dataclass
class PositionWatch:
    """Calls with positions that were observed while a model computed a sequence."""

    calls: list[PositionCall] = field(default_factory=list)


@contextmanager
def watch_positions(model: nn.Module, num_tokens: int) -> Iterator[PositionWatch]:
    """Records which modules without parameters are called with the positions 0, 1, … of `num_tokens` tokens, for the
    duration of a `with` block."""
    watch = PositionWatch()
    seen: set[tuple[int, str]] = set()
    hooks = []
    for module in model.modules():
        if next(module.parameters(), None) is not None or (next(module.children(), None) is not None):
            continue
        state = FreshState(module)

        names = parameter_names(module)

        def note(
            module: nn.Module, args: Any, kwargs: Any, state: FreshState = state, names: Sequence[str] = names
        ) -> None:
            args, kwargs = by_name(names, args, kwargs)
            given = [*enumerate(args), *kwargs.items()]
            place = next((at for at, value in given if _are_positions(value, num_tokens)), None)
            length_place = next((at for at, value in given if type(value) is int and value == num_tokens), None)
            if place is None and length_place is None:
                return
            call = PositionCall(module, args, kwargs, place, length_place, state)
            if (id(module), call.variant) not in seen:
                seen.add((id(module), call.variant))
                watch.calls.append(call)

        hooks.append(module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()


def _are_positions(value: Any, num_tokens: int) -> bool:
    if not isinstance(value, torch.Tensor) or value.dim() == 0 or value.shape[-1] != num_tokens or value.is_complex():
        return False
    if value.dim() > 3 or value.numel() > 4 * num_tokens or value.dtype == torch.bool:
        return False
    # Some models number positions from another start than 0.
    first = value[..., :1]
    return bool((first >= 0).all() and (value - first == torch.arange(num_tokens, device=value.device)).all())


def lengths_to_try(config: Any) -> list[int]:
    """Lengths around every number in a config, and powers of 2 up to 4 times the largest number, in ascending order."""
    try:
        settings = config.to_dict()
    except Exception:  # the config class of a model's own code may raise anything
        settings = vars(config)
    numbers = {number for number in _numbers(settings) if 2 < number <= _LONGEST}
    most = 4 * max(numbers, default=1024)
    powers = {2**i for i in range(2, _LONGEST.bit_length()) if 2**i <= most}
    near = {number + i for number in numbers for i in (-1, 0, 1, 2)}
    return sorted(length for length in near | powers if 2 < length <= _LONGEST)


def _numbers(tree: Any) -> Iterator[int]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            if "vocab" not in str(name):
                yield from _numbers(value)
    elif isinstance(tree, list | tuple):
        if len(tree) < 64:
            for value in tree:
                yield from _numbers(value)
    elif isinstance(tree, int | float) and not isinstance(tree, bool) and tree == tree and abs(tree) <= _LONGEST:
        yield int(tree)


@torch.inference_mode()
def rule_of(call: PositionCall, lengths: list[int]) -> LengthRule | None:
    """Finds how a module's results depend on the length of a call; None when they do not. lengths: lengths to try, in
    ascending order."""
    try:
        dims = token_dims(call)
    except Exception:  # a model's own code may raise anything
        return None
    if not dims:
        return None

    largest = 0

    def result(length: int) -> list[torch.Tensor] | None:
        nonlocal largest
        try:
            out = call.run([0, 1, length - 1])
        except Exception:  # for example, a table that is too short
            return None
        largest = max(largest, *(tensor.numel() for tensor in out))
        return [tensor.select(dim, 1) for tensor, dim in zip(out, dims, strict=True)]

    def same_from(high: int) -> bool:
        """Tells whether results are equal for all lengths from `high` on. A failing call counts as unequal."""
        beyond = result(high)
        for length in [high + 1, high + 2, *(length for length in lengths if length > high)]:
            if not _same(result(length), beyond):
                return False
            if largest > _LARGEST_RESULT:
                break
        return True

    first = result(2)
    if first is None:
        return None
    low = 2
    for length in lengths:
        found = result(length)
        if found is None:
            return None
        if not _same(first, found):
            low, high = _border(first, low, length, result)
            return LengthRule(low, apart=not same_from(high))
        if largest > _LARGEST_RESULT:
            return None
        low = length
    return None


def token_dims(call: PositionCall) -> list[int]:
    """Dimension that counts tokens, for each tensor that the module returns. Empty when one has no such
    dimension."""
    three, four = call.run([0, 1, 2]), call.run([0, 1, 2, 3])
    dims = []
    for a, b in zip(three, four, strict=True):
        differing = [i for i, (x, y) in enumerate(zip(a.shape, b.shape, strict=True)) if (x, y) == (3, 4)]
        if len(differing) != 1:
            return []
        dims.append(differing[0])
    return dims


def _same(one: list[torch.Tensor] | None, other: list[torch.Tensor] | None) -> bool:
    if one is None or other is None:
        return False
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _border(
    first: list[torch.Tensor], low: int, high: int, result: Callable[[int], list[torch.Tensor] | None]
) -> tuple[int, int]:
    """Searches between `low`, whose results equal `first`, and `high`, whose do not. Returns the last length with equal
    results and the next one."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _same(first, result(middle)) else (low, middle)
    return low, high
