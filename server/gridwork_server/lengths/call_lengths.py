"""Computes position-dependent modules with each token's own sequence length, whatever else is in the batch.

`generate()` computes a prompt in one call and every later token in a call of its own. A token's length is therefore the
prompt's length, or its position plus 1 where that is larger. Modules whose results depend on the longest position of a
call (found by `lengths.probe`) are called once for each class of lengths in a batch, with one position of that length
appended. State that a call leaves in a module is undone, so every call behaves like the first. Other models are left
unchanged.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch import nn

from gridwork_server.lengths.probe import (
    LengthRule,
    Place,
    PositionCall,
    by_name,
    common_rule,
    lengths_to_try,
    parameter_names,
    rule_of,
    tensors_of,
    token_dims,
    variant_of,
    watch_positions,
    with_argument,
)

aten = torch.ops.aten

_INITIAL_POSITIONS = 1024
"""Number of positions of each class that the tables hold at first."""

_Call = Callable[[torch.Tensor, int], Any]
"""Calls a module with positions and the length of the call."""


class CallLengths:
    """The modules of a model that depend on the length of a call."""

    def __init__(self, calls: Sequence[tuple[PositionCall, LengthRule | None]]) -> None:
        """Replaces `forward()` of these modules. calls: all kinds of calls of them, at least one with a rule."""
        rule = common_rule([rule for _, rule in calls if rule is not None])
        assert rule is not None
        self.rule = rule
        """The rule that serves all modules: it separates whatever one of them separates."""
        self.by_call = any(call.place is None for call, _ in calls)
        """True if a module is given only the length of a call: its result then serves all sequences of the call."""
        self.recompute_at = 0
        """Length at which `generate()` recomputes a sequence from its first token; 0: never."""
        self._forwards: dict[int, _ModuleForward] = {}
        for call, own in calls:
            forward = self._forwards.get(id(call.module))
            if forward is None:
                forward = self._forwards[id(call.module)] = _ModuleForward(call, rule)
            forward.add(call, own)
        for forward in self._forwards.values():
            forward.module.forward = forward
        self._capacity = 0
        self._filled = [0, 0]

    def describe(self) -> str:
        """Describes the modules and their rule, for the log."""
        names = sorted({type(forward.module).__name__ for forward in self._forwards.values()})
        beyond = "with every token" if self.rule.apart else "once"
        return f"{', '.join(names)}: frequencies change {beyond} beyond {self.rule.border} tokens"

    def remove(self) -> None:
        """Restores the modules' own `forward()`."""
        for forward in self._forwards.values():
            vars(forward.module).pop("forward", None)

    @contextmanager
    def of(self, lengths: np.ndarray | None) -> Iterator[None]:
        """Sets the lengths of the tokens that calls compute, int64 `[T]` or `[B, T]`, for the duration of a `with`
        block. None: the calls compute one whole sequence."""
        wanted = None if lengths is None else np.atleast_2d(lengths)
        for forward in self._forwards.values():
            forward.lengths = wanted
        try:
            yield
        finally:
            for forward in self._forwards.values():
                forward.lengths = None

    @contextmanager
    def tables(self) -> Iterator[None]:
        """Makes the modules look up rows of tables by position (see `rows`), for the duration of a `with` block. Raises
        ValueError when the modules have no such tables."""
        if self.by_call:
            raise ValueError("rotary frequencies are those of a whole call")
        if self.rule.apart:
            raise ValueError(f"rotary frequencies change with every token beyond {self.rule.border} tokens")
        for forward in self._forwards.values():
            forward.make_tables()
        self.allocate(max(self._capacity, _INITIAL_POSITIONS))
        for forward in self._forwards.values():
            forward.looks_up = True
        try:
            yield
        finally:
            for forward in self._forwards.values():
                forward.looks_up = False

    def owns(self, table: Any) -> bool:
        """Tells whether `table` is one of these modules' tables."""
        tables = (table for forward in self._forwards.values() for each in forward.tables.values() for table in each)
        return any(table is own for own in tables)

    def allocate(self, num_positions: int) -> None:
        """Makes room in the tables for `num_positions` positions of each class."""
        self._capacity, self._filled = num_positions, [0, 0]
        for forward in self._forwards.values():
            forward.resize(2 * num_positions)
        self._cover(0, min(_INITIAL_POSITIONS, num_positions))

    def rows(self, positions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Table rows, int64 [T], for tokens at these positions with these lengths, both int64 [T]. Fills missing
        rows."""
        if int(lengths.max(initial=0)) <= self.rule.border:
            self._cover(0, int(positions.max(initial=-1)) + 1)
            return positions
        classes = self.rule.classes(lengths)
        for kind in (0, 1):
            self._cover(kind, int(positions[classes == kind].max(initial=-1)) + 1)
        return positions + classes * self._capacity

    def _cover(self, kind: int, end: int) -> None:
        begin = self._filled[kind]
        if end <= begin:
            return
        if end > self._capacity:
            raise ValueError(f"position {end - 1} is beyond the tables, which have room for {self._capacity} positions")
        most = min(self._capacity, self.rule.border) if kind == 0 else self._capacity
        end = min(most, max(end, 2 * begin))
        length = self.rule.border if kind == 0 else max(end, self.rule.border + 1)
        for forward in self._forwards.values():
            forward.fill(np.arange(begin, end), length, kind * self._capacity + begin)
        self._filled[kind] = end


class _ModuleForward:
    """Replacement for the `forward()` of one module."""

    def __init__(self, call: PositionCall, common: LengthRule) -> None:
        """common: the rule for kinds of calls that were not observed."""
        self.module, self._state = call.module, call.state
        self._own = call.module.forward
        self._names = parameter_names(call.module)
        self._place, self._length_place = call.place, call.length_place
        self._common = common
        self._calls: dict[str, PositionCall] = {}
        self._rules: dict[str, LengthRule | None] = {}
        self._dims: list[int] = []
        self.lengths: np.ndarray | None = None
        """Lengths of the tokens of the next calls, int64 `[B, T]`; see CallLengths.of."""
        self.looks_up = False
        self.tables: dict[str, list[torch.Tensor]] = {}
        """Tables `[rows, features]`, one for each tensor that the module returns, by the call's other arguments."""

    def add(self, call: PositionCall, rule: LengthRule | None) -> None:
        """Adds a kind of call of the module. rule: None when its results do not depend on the length."""
        self._calls[call.variant], self._rules[call.variant] = call, rule
        self._dims = token_dims(call)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = by_name(self._names, args, kwargs)
        positions = _argument(args, kwargs, self._place)
        if positions is None:  # the call has no positions, or passes them in another way than observed
            return self._call_fresh(args, kwargs)
        if self.looks_up:
            return self._look_up(args, kwargs, positions)
        lengths = self.lengths
        rule = self._rules.get(self._variant(args, kwargs), self._common)
        if lengths is not None:
            lengths = _lengths_of_positions(lengths, positions)
        if lengths is None or rule is None:
            return self._call_fresh(args, kwargs)
        flat = lengths.ravel()
        classes = rule.classes(flat)
        groups = [np.flatnonzero(classes == each) for each in np.unique(classes)]
        if len(groups) == 1:
            return self._call_with_length(args, kwargs, positions, int(flat.max()))
        call = partial(self._call_with_length, args, kwargs)
        merge = self._merge_tokens if len(lengths) == 1 else self._merge_rows
        return merge(call, positions, lengths, groups)

    def _call_fresh(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._state.restore()
        return self._own(*args, **kwargs)

    def _variant(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        return variant_of(args, kwargs, (self._place, self._length_place))

    def _call_with_length(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], positions: torch.Tensor, length: int
    ) -> Any:
        """Result for tokens that all have this length. Values for positions beyond it do not matter."""
        longest = positions.new_full((*positions.shape[:-1], 1), length - 1)
        assert self._place is not None
        args, kwargs = with_argument(
            args, kwargs, self._place, torch.cat([positions.clamp(max=length - 1), longest], -1)
        )
        if _argument(args, kwargs, self._length_place) is not None:
            assert self._length_place is not None
            args, kwargs = with_argument(args, kwargs, self._length_place, length)
        out = self._call_fresh(args, kwargs)
        count = positions.shape[-1]
        return _with_tensors(out, [x.narrow(dim, 0, count) for x, dim in zip(tensors_of(out), self._dims, strict=True)])

    def _merge_tokens(self, call: _Call, positions: torch.Tensor, lengths: np.ndarray, groups: list[np.ndarray]) -> Any:
        """Result for one row of tokens of several classes. lengths: int64 [1, T]; groups: the tokens of each class."""
        parts, out = [], None
        for group in groups:
            own = positions.index_select(-1, torch.from_numpy(group).to(positions.device))
            out = call(own, int(lengths[0, group].max()))
            parts.append(tensors_of(out))
        order = torch.from_numpy(np.argsort(np.concatenate(groups))).to(positions.device)
        same = zip(self._dims, *parts, strict=True)
        return _with_tensors(out, [torch.cat(each, dim).index_select(dim, order) for dim, *each in same])

    def _merge_rows(self, call: _Call, positions: torch.Tensor, lengths: np.ndarray, groups: list[np.ndarray]) -> Any:
        """Result for several rows of tokens. lengths: int64 [B, T]; groups: flat indices of the tokens of each
        class."""
        positions = positions.expand(*positions.shape[:-2], *lengths.shape)
        result = None
        for group in groups:
            mask = np.zeros(lengths.size, dtype=bool)
            mask[group] = True
            own = torch.from_numpy(mask.reshape(lengths.shape)).to(positions.device)
            out = call(positions, int(lengths.ravel()[group].max()))
            if result is not None:
                pairs = zip(tensors_of(out), tensors_of(result), self._dims, strict=True)
                out = _with_tensors(out, [torch.where(_aligned(own, new, dim), new, old) for new, old, dim in pairs])
            result = out
        return result

    def _look_up(self, args: tuple[Any, ...], kwargs: dict[str, Any], positions: torch.Tensor) -> Any:
        tables = self.tables[self._variant(args, kwargs)]
        out = tuple(aten.embedding.default(table, positions) for table in tables)
        return out if len(out) > 1 else out[0]

    def make_tables(self) -> None:
        """Makes an empty table for each result. Raises ValueError when a result is not a real `[1, T, features]`."""
        for variant, call in self._calls.items():
            if variant in self.tables:
                continue
            out = tensors_of(self._call_fresh(call.args, call.kwargs))
            rows = all(x.dim() == 3 and len(x) == 1 and x.is_floating_point() and self._dims for x in out)
            if not rows or call.positions.dim() != 2 or set(self._dims) != {1}:
                raise ValueError(f"{type(self.module).__name__} does not return one row for each token")
            self.tables[variant] = [x.new_empty(0, x.shape[2]) for x in out]

    @torch.inference_mode()
    def resize(self, num_rows: int) -> None:
        """Resizes the tables and discards their contents."""
        for tables in self.tables.values():
            for table in tables:
                table.resize_(num_rows, table.shape[1])

    @torch.inference_mode()
    def fill(self, positions: np.ndarray, length: int, begin: int) -> None:
        """Writes the results for positions of this length into the rows from `begin` on."""
        for variant, tables in self.tables.items():
            call = self._calls[variant]
            row = torch.from_numpy(positions).to(call.positions.device)[None]
            out = tensors_of(self._call_with_length(call.args, call.kwargs, row, length))
            for table, values in zip(tables, out, strict=True):
                table[begin : begin + len(positions)] = values[0]


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: Place | None) -> Any:
    """The argument at `place`; None when the call has no such argument."""
    if isinstance(place, int):
        return args[place] if place < len(args) else None
    return kwargs.get(place) if place is not None else None


def _lengths_of_positions(lengths: np.ndarray, positions: torch.Tensor) -> np.ndarray | None:
    """Length of each position, int64 `[B, T]`, from the lengths of a call's tokens, int64 `[B, num_tokens]`.

    A model may also pass the positions of earlier tokens, to recompute them: those get the length of the last token.
    Returns None when the positions are not those of the call's tokens.
    """
    if positions.dim() >= 2 and positions.shape[-2] not in (1, len(lengths)):
        return None
    num_positions, num_tokens = positions.shape[-1], lengths.shape[1]
    if num_positions < num_tokens:
        return None
    if num_positions == num_tokens:
        return lengths
    return np.broadcast_to(lengths.max(axis=1, keepdims=True), (len(lengths), num_positions))


def _aligned(own: torch.Tensor, values: torch.Tensor, dim: int) -> torch.Tensor:
    """Reshapes a mask `[B, T]` so that its tokens lie along `dim` of `values`, with the sequences before them."""
    return own.reshape(*own.shape, *(1,) * (values.dim() - 1 - dim))


def _with_tensors(out: Any, tensors: list[torch.Tensor]) -> Any:
    """A module's return value with its tensors replaced by `tensors`."""
    if isinstance(out, torch.Tensor):
        return tensors[0]
    rest = iter(tensors)
    return type(out)(next(rest) if isinstance(item, torch.Tensor) else item for item in out)


@contextmanager
def watch(model: nn.Module, num_tokens: int) -> Iterator[list[CallLengths]]:
    """Observes the model while it computes `num_tokens` tokens of one sequence, for the duration of a `with` block.
    Afterwards the list holds the CallLengths that was found, if any; it stays active."""
    found: list[CallLengths] = []
    with watch_positions(model, num_tokens) as positions:
        yield found
    config: Any = model.config
    lengths = lengths_to_try(config)
    calls = [(call, rule) for call in positions.calls if (rule := rule_of(call, lengths)) is not None]
    if not calls:
        return
    # All kinds of calls of such a module are replaced.
    modules = {id(call.module) for call, _ in calls}
    rules = {id(call): rule for call, rule in calls}
    everything = [call for call in positions.calls if id(call.module) in modules]
    found.append(CallLengths([(call, rules.get(id(call))) for call in everything]))
    logger.info(found[0].describe())
