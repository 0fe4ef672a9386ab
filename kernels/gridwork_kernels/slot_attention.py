"""Paged attention on a cache of slots, which the implementations in PyTorch and for GPUs share."""

from dataclasses import dataclass

import torch

from gridwork_kernels.paged_attention import SPARE_BLOCKS, AttendSlots, AttentionOptions, PagedLayout


@dataclass(frozen=True)
class SlotAttention:
    """An implementation with a cache of slots, `[num_slots, num_kv_heads, size]`."""

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


def reference(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: PagedLayout, options: AttentionOptions
) -> torch.Tensor:
    """The definition of paged attention, sequence by sequence, in float32."""
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
    """int64 `[end - begin]`: slots of a sequence's keys from position `begin` on."""
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
    """int64 `[count, end - begin]`: distances of the last `count` positions from the positions from `begin` on."""
    return torch.arange(end - count, end, device=device)[:, None] - torch.arange(begin, end, device=device)
