"""Plants errors that a path might have into the server's own code. A comparison of the path with `forward()` must find
every one of them."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from gridwork_kernels.paged_attention import AttentionOptions, PagedLayout
from gridwork_server import attention
from gridwork_server.paths import paged
from gridwork_server.paths.cache_tree import CacheSpec
from gridwork_server.paths.caller import Caller
from gridwork_server.paths.paged import PagedPath
from gridwork_server.paths.sequence_table import SequenceTable, StepBatch

Plant = Callable[[], contextlib.AbstractContextManager[Any]]


def _in_layout(change: Callable[[PagedLayout, StepBatch, SequenceTable], None]) -> Plant:
    """Changes, in place, where a step's tokens and their keys lie."""

    @contextlib.contextmanager
    def plant() -> Iterator[None]:
        plain = SequenceTable.layout

        def layout(self: SequenceTable, batch: StepBatch, device: torch.device) -> PagedLayout:
            made = plain(self, batch, device)
            change(made, batch, self)
            return made

        with patch.object(SequenceTable, "layout", layout):
            yield

    return plant


def _mask_dropped(layout: PagedLayout, batch: StepBatch, table: SequenceTable) -> None:
    ends = np.array(layout.end)[batch.row]
    layout.length.copy_(torch.from_numpy(ends))


def _last_key_unseen(layout: PagedLayout, batch: StepBatch, table: SequenceTable) -> None:
    if len(batch.positions) == len(batch.sequence_ids):
        layout.length.copy_(torch.from_numpy(np.maximum(batch.positions, 1)))


def _next_key_seen(layout: PagedLayout, batch: StepBatch, table: SequenceTable) -> None:
    room = layout.block_tables.shape[1] * layout.block_size
    layout.length.copy_(torch.from_numpy(np.minimum(batch.positions + 2, room)))


def _neighbours_block(layout: PagedLayout, batch: StepBatch, table: SequenceTable) -> None:
    if len(layout.block_tables) > 1:
        layout.block_tables[1, 0] = layout.block_tables[0, 0].clone()


def _blocks_swapped(layout: PagedLayout, batch: StepBatch, table: SequenceTable) -> None:
    full = batch.positions[batch.last] // layout.block_size  # number of full blocks of each sequence
    for row in range(len(layout.block_tables)):
        if len(batch.positions) == len(batch.sequence_ids) and full[row] >= 1:
            layout.block_tables[row, :2] = layout.block_tables[row, :2].flip(0)


def _first_block_missing(layout: PagedLayout, batch: StepBatch, table: SequenceTable) -> None:
    for row, last in enumerate(batch.last):
        first = batch.positions[last] + 1 - batch.num_tokens[row]
        if first >= layout.block_size:
            layout.block_tables[row, 0] = table.null_block


def _chunks_keys_missing(layout: PagedLayout, batch: StepBatch, table: SequenceTable) -> None:
    """A later chunk of a prompt sees none of the blocks before its own."""
    for row, last in enumerate(batch.last):
        first = batch.positions[last] + 1 - batch.num_tokens[row]
        if first > 0 and batch.num_tokens[row] > 1:
            layout.block_tables[row, : max(1, first // layout.block_size)] = table.null_block


def _written_one_slot_early(layout: PagedLayout, batch: StepBatch, table: SequenceTable) -> None:
    if len(batch.positions) == len(batch.sequence_ids):
        layout.slots.copy_(torch.from_numpy(np.where(batch.positions % table.block_size, batch.slots - 1, batch.slots)))


def _in_options(change: Callable[[AttentionOptions], AttentionOptions], last_layer: bool = False) -> Plant:
    """Changes the options that layers pass to attention. last_layer: change only those of the last layer."""

    @contextlib.contextmanager
    def plant() -> Iterator[None]:
        plain = attention.paged_attention_forward

        def forward(module: Any, *arguments: Any, **settings: Any) -> Any:
            if last_layer and module.layer_idx != module.config.num_hidden_layers - 1:
                return plain(module, *arguments, **settings)
            make = attention.AttentionOptions

            def options(**given: Any) -> AttentionOptions:
                return change(make(**given))

            with patch.object(attention, "AttentionOptions", options):
                return plain(module, *arguments, **settings)

        with _registered(forward):
            yield

    return plant


@contextlib.contextmanager
def _registered(forward: Callable[..., Any]) -> Iterator[None]:
    from transformers import AttentionInterface

    AttentionInterface.register(attention.NAME, forward)
    try:
        yield
    finally:
        attention.register()


def _in_heads(change: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> Plant:
    """Changes queries, keys and values, `[1, heads, tokens, size]` each."""

    @contextlib.contextmanager
    def plant() -> Iterator[None]:
        plain = attention.paged_attention_forward

        def forward(module: Any, query: Any, key: Any, value: Any, *arguments: Any, **settings: Any) -> Any:
            if not isinstance(settings.get(attention.ARGUMENT), attention.Probe):
                query, key, value = change(query, key, value)
            return plain(module, query, key, value, *arguments, **settings)

        with _registered(forward):
            yield

    return plant


def _in_call(
    change: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> Plant:
    """Changes the tokens, positions and kept rows of a step."""

    @contextlib.contextmanager
    def plant() -> Iterator[None]:
        plain = PagedPath._call

        def call(self: Any, input_ids: Any, positions: Any, kept: Any, step: Any, *others: Any) -> torch.Tensor:
            if isinstance(step, attention.PagedStep):
                input_ids, positions, kept = change(input_ids, positions, kept)
            return plain(self, input_ids, positions, kept, step, *others)

        with patch.object(PagedPath, "_call", call):
            yield

    return plant


def _is_decode(input_ids: np.ndarray, kept: np.ndarray) -> bool:
    return len(input_ids) == len(kept)


@contextlib.contextmanager
def _without_chunks() -> Iterator[None]:
    with patch.object(paged, "chunks_of", lambda _model: {}):
        yield


def _in_next(change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Plant:
    """Changes the tokens that a cohort computes, and the lengths of its sequences in the cache."""

    @contextlib.contextmanager
    def plant() -> Iterator[None]:
        plain = Caller.next

        def next(self: Caller, tokens: np.ndarray, cache: Any, lengths: np.ndarray) -> tuple[torch.Tensor, Any]:
            return plain(self, *_split(change(tokens, lengths), cache))

        with patch.object(Caller, "next", next):
            yield

    return plant


def _split(changed: tuple[np.ndarray, np.ndarray], cache: Any) -> tuple[np.ndarray, Any, np.ndarray]:
    return changed[0], cache, changed[1]


def _in_mask(change: Callable[[torch.Tensor], torch.Tensor]) -> Plant:
    """Changes a cohort's mask, int64 `[B, longest + 1]`."""

    @contextlib.contextmanager
    def plant() -> Iterator[None]:
        plain = Caller._mask
        with patch.object(Caller, "_mask", lambda self, lengths: change(plain(self, lengths))):
            yield

    return plant


@contextlib.contextmanager
def _members_swapped() -> Iterator[None]:
    plain = CacheSpec.stack

    def stack(self: CacheSpec, members: list[Any], longest: int) -> Any:
        return plain(self, members[::-1], longest)

    with patch.object(CacheSpec, "stack", stack):
        yield


def _with_prompt(change: Callable[[np.ndarray], np.ndarray]) -> Plant:
    """Changes a prompt's tokens."""

    @contextlib.contextmanager
    def plant() -> Iterator[None]:
        plain = Caller.first

        def first(self: Caller, tokens: np.ndarray, num_prompt: int, keep_all: bool) -> tuple[torch.Tensor, Any]:
            return plain(self, change(tokens), num_prompt, keep_all)

        with patch.object(Caller, "first", first):
            yield

    return plant


BATCHED: dict[str, Plant] = {
    "padding attended to": _in_mask(torch.ones_like),
    "mask the other way round": _in_mask(lambda mask: mask.flip(1)),
    "first key masked": _in_mask(lambda mask: mask.scatter(1, mask.argmax(1, keepdim=True), 0)),
    "positions one later": _in_next(lambda tokens, lengths: (tokens, lengths + 1)),
    "tokens of neighbours": _in_next(lambda tokens, lengths: (tokens[::-1].copy(), lengths)),
    "caches of neighbours": _members_swapped,
    "the first token dropped": _with_prompt(lambda tokens: tokens[1:] if len(tokens) > 1 else tokens),
    "the last two tokens swapped": _with_prompt(lambda tokens: np.concatenate([tokens[:-2], tokens[-2:][::-1]])),
}
"""Errors of the batched path with cohorts of any lengths. Some make the model's code fail, which counts as found."""


PAGED: dict[str, Plant] = {
    "causal mask dropped": _in_layout(_mask_dropped),
    "a token does not see itself": _in_layout(_last_key_unseen),
    "a token sees the next slot": _in_layout(_next_key_seen),
    "a neighbour's block": _in_layout(_neighbours_block),
    "blocks swapped": _in_layout(_blocks_swapped),
    "first block missing": _in_layout(_first_block_missing),
    "keys of the chunk before missing": _in_layout(_chunks_keys_missing),
    "written one slot early": _in_layout(_written_one_slot_early),
    "window longer by one": _in_options(lambda o: replace(o, window=o.window + 1) if o.window else o),
    "window shorter by one": _in_options(lambda o: replace(o, window=o.window - 1) if o.window else o),
    "window dropped": _in_options(lambda o: replace(o, window=0)),
    "chunks dropped": _without_chunks,
    "scale larger by a tenth": _in_options(lambda o: replace(o, scale=o.scale * 1.1)),
    "scale of a head twice as large": _in_options(lambda o: replace(o, scale=o.scale * 2**-0.5)),
    "scale wrong in the last layer": _in_options(lambda o: replace(o, scale=o.scale * 2**-0.5), last_layer=True),
    "scores not capped": _in_options(lambda o: replace(o, softcap=0.0)),
    "sinks dropped": _in_options(lambda o: replace(o, sinks=None)),
    "sinks of other heads": _in_options(lambda o: o if o.sinks is None else replace(o, sinks=o.sinks.roll(1))),
    "query heads shifted": _in_heads(lambda q, k, v: (q.roll(1, 1), k, v)),
    "values of other heads": _in_heads(lambda q, k, v: (q, k, v.roll(1, 1))),
    "rotary of queries shifted": _in_heads(lambda q, k, v: (q.roll(1, 3), k, v)),
    "decode's position one later": _in_call(lambda i, p, k: (i, p + 1 if _is_decode(i, k) else p, k)),
    "decode's position one earlier": _in_call(lambda i, p, k: (i, np.maximum(p - 1, 0) if _is_decode(i, k) else p, k)),
    "positions of a chunk from 0": _in_call(lambda i, p, k: (i, p - p[0] if not _is_decode(i, k) else p, k)),
    "positions twice as far": _in_call(lambda i, p, k: (i, 2 * p, k)),
    "a token before the one of the step": _in_call(
        lambda i, p, k: (np.maximum(i - 1, 0) if _is_decode(i, k) else i, p, k)
    ),
    "logits of the row before": _in_call(lambda i, p, k: (i, p, np.maximum(k - 1, 0) if not _is_decode(i, k) else k)),
}
"""Errors of the paged path. Some have no effect in some models, such as a wrong window in a model without windows."""
