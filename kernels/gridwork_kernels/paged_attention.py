"""Paged attention: what every implementation takes and gives, and the definition.

All implementations take the same arguments and give the same result up to rounding; `reference` is what the others
are tested against. Every query token attends to the cached keys of its sequence up to its own position, or to the
last `window` of them. How keys and values lie in the cache is an implementation's own matter. Which one is used is
chosen in `attention_choice`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from gridwork_kernels import cpu_attention

if TYPE_CHECKING:
    from gridwork_kernels.flash_attention import Ragged
    from gridwork_kernels.torch_attention import Gathering

SPARE_BLOCKS = 2
"""Blocks of a cache behind those that sequences are given: one that stays zero, then one that padding is written to."""


@dataclass
class PagedLayout:
    """Where one step's tokens and their sequences' keys lie; shared by all layers.

    Tokens of a sequence are consecutive, in the order of their positions. Every tensor is on the model's device.
    """

    block_tables: torch.Tensor
    """int32 `[num_sequences, max_blocks]`, at least as wide as the longest sequence needs."""
    sequence: torch.Tensor
    """int32 `[num_tokens]`: row of block_tables."""
    length: torch.Tensor
    """int32 `[num_tokens]`: position + 1."""
    slots: torch.Tensor
    """int64 `[num_tokens]`: where the token's own key and value are written."""
    block_size: int
    num_tokens: list[int]
    """Tokens of each sequence, in order; their sum is num_tokens of the tensors."""
    end: list[int]
    """Length of each sequence when the step is done; empty when `is_fixed`."""
    null_slot: int
    """A slot that is always zero: padding points to it, so that nothing stale (a NaN above all) is ever read."""
    is_fixed: bool = False
    """Whether the step is one token of each sequence in buffers that are filled anew before it is run again: lengths
    are known on the device alone, and nothing may depend on them but the contents of tensors."""
    derived: dict[tuple[int, int], "Gathering"] = field(default_factory=dict)
    """Indices and masks of the `sdpa` form, by window and chunk; made once a step."""
    ragged: "Ragged | None" = None
    """What the `flash-attn` and `varlen` forms take; made once a step."""
    tiles: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """Tiles of the `triton` form, by tokens that one has at most; made once a step."""


@dataclass(frozen=True)
class AttentionOptions:
    """What distinguishes one layer's attention."""

    scale: float
    window: int = 0
    """Only the last so many keys, the token's own included; 0: all."""
    chunk: int = 0
    """Only keys of the token's own chunk of so many positions; 0: no chunks. Not together with a window."""
    softcap: float = 0.0
    """Scores become `softcap * tanh(score / softcap)`; 0: they stay."""
    sinks: torch.Tensor | None = None
    """float32 `[num_heads]`: one more logit for each head, without a value."""
    slopes: torch.Tensor | None = None
    """float32 `[num_heads]`: what a step of distance to a key takes off its score (ALiBi)."""


class PagedAttention(Protocol):
    """One implementation, and the cache that it works on."""

    def allocate(
        self,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        sizes: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys and values, of undefined content but for the last `SPARE_BLOCKS`, which are zero. sizes: of a
        key and of a value."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        keys: torch.Tensor,
        values: torch.Tensor,
        layout: PagedLayout,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """Writes key and value (None: they stand there already) into the cache, then attends. query: `[num_tokens,
        num_heads, key_size]`, key and value likewise; returns `[num_tokens, num_heads, value_size]` in its dtype."""


AttendSlots = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, PagedLayout, AttentionOptions], torch.Tensor]
"""(query, keys `[num_slots, num_kv_heads, key_size]`, values likewise, layout, options) -> attended."""


@dataclass(frozen=True)
class SlotAttention:
    """An implementation on a cache of slots, `[num_slots, num_kv_heads, size]`."""

    function: AttendSlots

    def allocate(
        self,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        sizes: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See PagedAttention."""
        caches = [
            torch.empty(num_blocks * block_size, num_kv_heads, size, dtype=dtype, device=device) for size in sizes
        ]
        for cache in caches:
            cache[-SPARE_BLOCKS * block_size :] = 0
        return caches[0], caches[1]

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        keys: torch.Tensor,
        values: torch.Tensor,
        layout: PagedLayout,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """See PagedAttention."""
        if key is not None and value is not None:
            keys.index_copy_(0, layout.slots, key)
            values.index_copy_(0, layout.slots, value)
        return self.function(query, keys, values, layout, options)


class CpuAttention:
    """The compiled CPU kernel, on a cache as it wants it."""

    def allocate(
        self,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        sizes: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See PagedAttention."""
        keys, values = cpu_attention.allocate(num_blocks, block_size, num_kv_heads, *sizes, dtype)
        keys[-SPARE_BLOCKS:], values[-SPARE_BLOCKS:] = 0, 0
        return keys, values

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        keys: torch.Tensor,
        values: torch.Tensor,
        layout: PagedLayout,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """See PagedAttention."""
        return cpu_attention.paged_attention(
            query,
            key,
            value,
            keys,
            values,
            layout.block_tables,
            layout.sequence,
            layout.length,
            layout.slots,
            scale=options.scale,
            window=options.window,
            chunk=options.chunk,
            softcap=options.softcap,
            sinks=options.sinks,
            slopes=options.slopes,
        )


def reference(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: PagedLayout, options: AttentionOptions
) -> torch.Tensor:
    """The definition, sequence by sequence, in float32."""
    group = query.shape[1] // keys.shape[1]
    out = query.new_empty(*query.shape[:2], values.shape[2])
    first = 0
    for row, (count, end) in enumerate(zip(layout.num_tokens, layout.end, strict=True)):
        slots = slots_of(layout, row, 0, end)
        k = keys[slots].float().repeat_interleave(group, 1)
        v = values[slots].float().repeat_interleave(group, 1)
        q = query[first : first + count].float()
        scores = torch.einsum("qhd,khd->hqk", q, k) * options.scale
        if options.softcap:
            scores = options.softcap * torch.tanh(scores / options.softcap)
        if options.slopes is not None:
            scores = scores - options.slopes[:, None, None] * distance(count, end, 0, query.device)
        scores = scores.masked_fill(~visible(count, end, options.window, options.chunk, 0, query.device), -torch.inf)
        if options.sinks is not None:
            sinks = options.sinks.float()[:, None, None].expand(-1, count, 1)
            scores = torch.cat([scores, sinks], dim=-1)
        weights = scores.softmax(-1)[..., :end]
        out[first : first + count] = torch.einsum("hqk,khd->qhd", weights, v).to(query.dtype)
        first += count
    return out


def slots_of(layout: PagedLayout, row: int, begin: int, end: int) -> torch.Tensor:
    """int64 `[end - begin]`: where a sequence's keys from position `begin` on lie."""
    positions = torch.arange(begin, end, device=layout.slots.device)
    blocks = layout.block_tables[row].long()[positions // layout.block_size]
    return blocks * layout.block_size + positions % layout.block_size


def visible(count: int, end: int, window: int, chunk: int, begin: int, device: torch.device) -> torch.Tensor:
    """bool `[count, end - begin]`: whether each of the last `count` positions sees each position from `begin` on."""
    queries = torch.arange(end - count, end, device=device)[:, None]
    positions = torch.arange(begin, end, device=device)[None, :]
    visible = positions <= queries
    if chunk:
        return visible & (positions // chunk == queries // chunk)
    return visible & (positions > queries - window) if window else visible


def distance(count: int, end: int, begin: int, device: torch.device) -> torch.Tensor:
    """int64 `[count, end - begin]`: how far the last `count` positions are from those from `begin` on."""
    return torch.arange(end - count, end, device=device)[:, None] - torch.arange(begin, end, device=device)
