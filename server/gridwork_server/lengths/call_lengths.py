"""Gives every token what a module computes for a call as long as that token's own, whatever else is in the batch.

`generate()` computes a prompt in one call and every later token in one of its own: a token's length is the prompt's, or
its position plus 1 where that is more. Modules whose results depend on the longest position of a call (`length_probe`)
are called once for each class of lengths in a batch, with a position of that length beside the tokens. Each call is as
if it were the first: what calls leave behind in modules is undone. Models without such modules are left as they are.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch import nn

from gridwork_server.lengths.probe import (
    LengthRule,
    Place,
    PositionCall,
    common_rule,
    lengths_to_try,
    named,
    parameter_names,
    put,
    rule_of,
    tensors_of,
    token_dims,
    variant_of,
    watch_positions,
)

aten = torch.ops.aten

_FIRST = 1024
"""Positions of a class that are computed at first, for tables."""


class CallLengths:
    """A model's modules that depend on the length of a call."""

    def __init__(self, calls: Sequence[tuple[PositionCall, LengthRule | None]]) -> None:
        """Takes the place of these modules' `forward()`. calls: all kinds of them, at least one with a rule."""
        rule = common_rule([rule for _, rule in calls if rule is not None])
        assert rule is not None
        self.rule = rule
        """What must be kept apart for all of them."""
        self.by_call = any(call.place is None for call, _ in calls)
        """Whether some are given a call's length alone: their results are for all sequences of a call."""
        self.recompute_at = 0
        """Length at which `generate()` computes a sequence anew from its first token; 0: it never does."""
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
        """For the log."""
        names = sorted({type(forward.module).__name__ for forward in self._forwards.values()})
        beyond = "with every token" if self.rule.apart else "once"
        return f"{', '.join(names)}: frequencies change {beyond} beyond {self.rule.border} tokens"

    def remove(self) -> None:
        """Gives the modules their own `forward()` back."""
        for forward in self._forwards.values():
            vars(forward.module).pop("forward", None)

    @contextmanager
    def of(self, lengths: np.ndarray | None) -> Iterator[None]:
        """While it is entered, calls are for tokens of these lengths, int64 `[T]` or `[B, T]`. None: for one sequence
        that is computed in one call."""
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
        """While it is entered, results are rows of tables, that the positions of a call name: see `rows`. Raises
        ValueError where there can be none."""
        if self.by_call:
            raise ValueError("rotary frequencies are those of a whole call")
        if self.rule.apart:
            raise ValueError(f"rotary frequencies change with every token beyond {self.rule.border} tokens")
        for forward in self._forwards.values():
            forward.make_tables()
        self.allocate(max(self._capacity, _FIRST))
        for forward in self._forwards.values():
            forward.looks_up = True
        try:
            yield
        finally:
            for forward in self._forwards.values():
                forward.looks_up = False

    def owns(self, table: Any) -> bool:
        """Whether this is one of the tables."""
        tables = (table for forward in self._forwards.values() for each in forward.tables.values() for table in each)
        return any(table is own for own in tables)

    def allocate(self, num_positions: int) -> None:
        """Makes room in the tables for so many positions of each class."""
        self._capacity, self._filled = num_positions, [0, 0]
        for forward in self._forwards.values():
            forward.resize(2 * num_positions)
        self._cover(0, min(_FIRST, num_positions))

    def rows(self, positions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """int64 [T]: rows of the tables for tokens at these positions of these lengths, int64 [T], filled."""
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
            raise ValueError(f"position {end - 1} is beyond the {self._capacity} that there is room for")
        most = min(self._capacity, self.rule.border) if kind == 0 else self._capacity
        end = min(most, max(end, 2 * begin))
        length = self.rule.border if kind == 0 else max(end, self.rule.border + 1)
        for forward in self._forwards.values():
            forward.fill(np.arange(begin, end), length, kind * self._capacity + begin)
        self._filled[kind] = end


class _ModuleForward:
    """What a module's `forward()` is replaced by."""

    def __init__(self, call: PositionCall, common: LengthRule) -> None:
        """common: for calls of a kind that was not seen."""
        self.module, self._state = call.module, call.state
        self._own = call.module.forward
        self._names = parameter_names(call.module)
        self._place, self._length_place = call.place, call.length_place
        self._common = common
        self._calls: dict[str, PositionCall] = {}
        self._rules: dict[str, LengthRule | None] = {}
        self._dims: list[int] = []
        self.lengths: np.ndarray | None = None
        """int64 `[B, T]`; see CallLengths.of"""
        self.looks_up = False
        self.tables: dict[str, list[torch.Tensor]] = {}
        """By the other arguments of a call, and for each tensor that it gives: `[rows, features]`"""

    def add(self, call: PositionCall, rule: LengthRule | None) -> None:
        """A kind of call of the module; rule: None where its results do not depend on the length."""
        self._calls[call.variant], self._rules[call.variant] = call, rule
        self._dims = token_dims(call)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = named(self._names, args, kwargs)
        positions = _argument(args, kwargs, self._place)
        if positions is None:  # there are none, or it is called in another way than it was found to be
            return self._fresh(args, kwargs)
        if self.looks_up:
            return self._look_up(args, kwargs, positions)
        lengths = self.lengths
        rule = self._rules.get(self._variant(args, kwargs), self._common)
        if lengths is not None:
            lengths = _of_positions(lengths, positions)
        if lengths is None or rule is None:
            return self._fresh(args, kwargs)
        flat = lengths.ravel()
        classes = rule.classes(flat)
        groups = [np.flatnonzero(classes == each) for each in np.unique(classes)]
        if len(groups) == 1:
            return self._of_length(args, kwargs, positions, int(flat.max()))
        if len(lengths) == 1:
            return self._by_token(args, kwargs, positions, flat, groups)
        return self._by_mask(args, kwargs, positions, lengths, groups)

    def _fresh(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._state.restore()
        return self._own(*args, **kwargs)

    def _variant(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        return variant_of(args, kwargs, (self._place, self._length_place))

    def _of_length(self, args: tuple[Any, ...], kwargs: dict[str, Any], positions: torch.Tensor, length: int) -> Any:
        """For tokens that all have this length. What positions beyond it are given does not count."""
        longest = positions.new_full((*positions.shape[:-1], 1), length - 1)
        assert self._place is not None
        args, kwargs = put(args, kwargs, self._place, torch.cat([positions.clamp(max=length - 1), longest], -1))
        if _argument(args, kwargs, self._length_place) is not None:
            assert self._length_place is not None
            args, kwargs = put(args, kwargs, self._length_place, length)
        out = self._fresh(args, kwargs)
        count = positions.shape[-1]
        return _replaced(out, [x.narrow(dim, 0, count) for x, dim in zip(tensors_of(out), self._dims, strict=True)])

    def _by_token(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        positions: torch.Tensor,
        lengths: np.ndarray,
        groups: list[np.ndarray],
    ) -> Any:
        """For one row of tokens of several classes. lengths: int64 [T]; groups: the tokens of each class."""
        parts, out = [], None
        for group in groups:
            own = positions.index_select(-1, torch.from_numpy(group).to(positions.device))
            out = self._of_length(args, kwargs, own, int(lengths[group].max()))
            parts.append(tensors_of(out))
        order = torch.from_numpy(np.argsort(np.concatenate(groups))).to(positions.device)
        same = zip(self._dims, *parts, strict=True)
        return _replaced(out, [torch.cat(each, dim).index_select(dim, order) for dim, *each in same])

    def _by_mask(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        positions: torch.Tensor,
        lengths: np.ndarray,
        groups: list[np.ndarray],
    ) -> Any:
        """For several rows of tokens. lengths: int64 [B, T]; groups: the tokens of each class, by flat index."""
        positions = positions.expand(*positions.shape[:-2], *lengths.shape)
        result = None
        for group in groups:
            mask = np.zeros(lengths.size, dtype=bool)
            mask[group] = True
            own = torch.from_numpy(mask.reshape(lengths.shape)).to(positions.device)
            out = self._of_length(args, kwargs, positions, int(lengths.ravel()[group].max()))
            if result is not None:
                pairs = zip(tensors_of(out), tensors_of(result), self._dims, strict=True)
                out = _replaced(out, [torch.where(_aligned(own, new, dim), new, old) for new, old, dim in pairs])
            result = out
        return result

    def _look_up(self, args: tuple[Any, ...], kwargs: dict[str, Any], positions: torch.Tensor) -> Any:
        tables = self.tables[self._variant(args, kwargs)]
        out = tuple(aten.embedding.default(table, positions) for table in tables)
        return out if len(out) > 1 else out[0]

    def make_tables(self) -> None:
        """Raises ValueError when a result is no row `[1, T, features]` of real numbers."""
        for variant, call in self._calls.items():
            if variant in self.tables:
                continue
            out = tensors_of(self._fresh(call.args, call.kwargs))
            rows = all(x.dim() == 3 and len(x) == 1 and x.is_floating_point() and self._dims for x in out)
            if not rows or call.positions.dim() != 2 or set(self._dims) != {1}:
                raise ValueError(f"{type(self.module).__name__} gives something else than a row for each token")
            self.tables[variant] = [x.new_empty(0, x.shape[2]) for x in out]

    @torch.inference_mode()
    def resize(self, num_rows: int) -> None:
        """Forgets what stands in the tables."""
        for tables in self.tables.values():
            for table in tables:
                table.resize_(num_rows, table.shape[1])

    @torch.inference_mode()
    def fill(self, positions: np.ndarray, length: int, begin: int) -> None:
        """Puts the results for positions of this length into rows from `begin` on."""
        for variant, tables in self.tables.items():
            call = self._calls[variant]
            row = torch.from_numpy(positions).to(call.positions.device)[None]
            out = tensors_of(self._of_length(call.args, call.kwargs, row, length))
            for table, values in zip(tables, out, strict=True):
                table[begin : begin + len(positions)] = values[0]


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: Place | None) -> Any:
    """None where a call has no such argument."""
    if isinstance(place, int):
        return args[place] if place < len(args) else None
    return kwargs.get(place) if place is not None else None


def _of_positions(lengths: np.ndarray, positions: torch.Tensor) -> np.ndarray | None:
    """int64 `[B, T]`: a length for each of the positions, from those of a call's tokens, int64 `[B, num_tokens]`.

    A model may give the positions of tokens before them too, and compute these anew: they have the last token's
    length. None: these are positions of something else.
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
    """A mask `[B, T]` in the dimensions of values that has its tokens at `dim`, and sequences before that."""
    return own.reshape(*own.shape, *(1,) * (values.dim() - 1 - dim))


def _replaced(out: Any, tensors: list[torch.Tensor]) -> Any:
    """What a module returned, with these tensors in their places."""
    if isinstance(out, torch.Tensor):
        return tensors[0]
    rest = iter(tensors)
    return type(out)(next(rest) if isinstance(item, torch.Tensor) else item for item in out)


@contextmanager
def watch(model: nn.Module, num_tokens: int) -> Iterator[list[CallLengths]]:
    """While it is entered, the model computes `num_tokens` tokens of one sequence. Then the list holds what was found
    of the kind, if anything; it is in place from then on."""
    found: list[CallLengths] = []
    with watch_positions(model, num_tokens) as positions:
        yield found
    config: Any = model.config
    lengths = lengths_to_try(config)
    calls = [(call, rule) for call in positions.calls if (rule := rule_of(call, lengths)) is not None]
    if not calls:
        return
    # All kinds of calls of such a module go the same way.
    modules = {id(call.module) for call, _ in calls}
    rules = {id(call): rule for call, rule in calls}
    everything = [call for call in positions.calls if id(call.module) in modules]
    found.append(CallLengths([(call, rules.get(id(call))) for call in everything]))
    logger.info(found[0].describe())
