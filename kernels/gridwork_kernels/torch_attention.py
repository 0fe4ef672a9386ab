"""Paged attention in PyTorch operations, on any device."""

import numpy as np
import torch

from gridwork_kernels.device_copies import to_device
from gridwork_kernels.paged_attention import AttentionOptions, Gathering, PagedLayout, PrefillChunk
from gridwork_kernels.slot_attention import distance, slots_of, visible


def sdpa(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: PagedLayout, options: AttentionOptions
) -> torch.Tensor:
    """Attends by PyTorch operations: decodes are gathered into one padded batch, prefills are computed one by one."""
    gathering = layout.derived.get((options.window, options.chunk))
    if gathering is None:
        gathering = gathering_of(layout, options.window, options.chunk)
        layout.derived[options.window, options.chunk] = gathering
    num_heads, kv_heads = query.shape[1], keys.shape[1]
    out = query.new_empty(query.shape[0], num_heads, values.shape[2])
    if gathering.decode_tokens is not None:
        # The heads that share a KV head become its queries, which avoids repeating keys.
        q = query.index_select(0, gathering.decode_tokens).unflatten(1, (kv_heads, num_heads // kv_heads))
        k = _gather(keys, gathering.decode_slots)
        v = _gather(values, gathering.decode_slots)
        sinks = None if options.sinks is None else options.sinks.view(1, kv_heads, -1, 1)
        bias = None if options.slopes is None else -options.slopes.view(1, kv_heads, -1, 1) * gathering.decode_distance
        attended = _attend(q, k, v, gathering.decode_mask, options, sinks, bias)
        out.index_copy_(0, gathering.decode_tokens, attended.flatten(1, 2))
    for chunk in gathering.prefills:
        q = query[chunk.tokens].transpose(0, 1).unflatten(0, (kv_heads, num_heads // kv_heads))
        k = _gather(keys, chunk.slots[None]).transpose(0, 1)
        v = _gather(values, chunk.slots[None]).transpose(0, 1)
        sinks = None if options.sinks is None else options.sinks.view(kv_heads, -1, 1, 1)
        bias = None if options.slopes is None else -options.slopes.view(kv_heads, -1, 1, 1) * chunk.distance
        attended = _attend(q, k, v, chunk.mask, options, sinks, bias)
        out[chunk.tokens] = attended.flatten(0, 1).transpose(0, 1)
    return out


def gathering_of(layout: PagedLayout, window: int, chunk: int) -> Gathering:
    """Finds the keys that the step's tokens see."""
    device = layout.slots.device
    if layout.is_fixed:
        rows = torch.arange(len(layout.num_tokens), device=device)
        ends = layout.length.long()
        begins = torch.zeros_like(ends)
        if chunk:
            begins = (ends - 1) // chunk * chunk
        elif window:
            begins = (ends - window).clamp_(min=0)
        capacity = layout.block_tables.shape[1] * layout.block_size
        longest = min(capacity, chunk or window or capacity)
        return Gathering(rows, *_decodes(layout, rows, begins, ends, longest), [])
    starts = [0]
    for count in layout.num_tokens:
        starts.append(starts[-1] + count)
    decodes = [row for row, count in enumerate(layout.num_tokens) if count == 1]
    first = [_first(layout.end[row], window, chunk) for row in decodes]
    numbers = [decodes, [starts[row] for row in decodes], [layout.end[row] for row in decodes], first]
    rows, tokens, ends, begins = to_device(np.array(numbers, dtype=np.int64), device)
    longest = max((layout.end[row] - begin for row, begin in zip(decodes, first, strict=True)), default=0)
    prefills = []
    for row, (count, end) in enumerate(zip(layout.num_tokens, layout.end, strict=True)):
        if count == 1:
            continue
        begin = _first(end - count + 1, window, chunk)
        prefills.append(
            PrefillChunk(
                slice(starts[row], starts[row + 1]),
                slots_of(layout, row, begin, end),
                visible(count, end, window, chunk, begin, device),
                distance(count, end, begin, device),
            )
        )
    return Gathering(tokens if decodes else None, *_decodes(layout, rows, begins, ends, longest), prefills)


def _decodes(
    layout: PagedLayout, rows: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor, longest: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slots, mask and distances of the keys from `begins` up to `ends`, each int64 `[num_decodes]`, padded to
    `longest`."""
    positions = begins[:, None] + torch.arange(longest, device=rows.device)
    valid = positions < ends[:, None]
    apart = ends[:, None] - 1 - positions
    positions = torch.where(valid, positions, 0)
    blocks = layout.block_tables[rows[:, None], positions // layout.block_size].long()
    slots = torch.where(valid, blocks * layout.block_size + positions % layout.block_size, layout.null_slot)
    return slots, valid[:, None, None, :], apart[:, None, None, :]


def _first(length: int, window: int, chunk: int) -> int:
    """First position that the last token of a sequence of `length` sees."""
    if chunk:
        return (length - 1) // chunk * chunk
    return max(0, length - window) if window else 0


def _gather(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Gathers `[batch, num_kv_heads, num_keys, size]` from a cache `[num_slots, num_kv_heads, size]`."""
    flat = cache.view(cache.shape[0], -1).index_select(0, slots.flatten())
    return flat.view(*slots.shape, *cache.shape[1:]).transpose(1, 2)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    options: AttentionOptions,
    sinks: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    if not options.softcap and sinks is None and bias is None:
        # torch.broadcast_shapes would import sympy, which takes as long as all other imports of a start.
        expanded = mask.expand(*np.broadcast_shapes(mask.shape, (*q.shape[:-1], k.shape[-2])))
        return torch.nn.functional.scaled_dot_product_attention(
            q, k.expand(*q.shape[:2], *k.shape[2:]), v.expand(*q.shape[:2], *v.shape[2:]), expanded, scale=options.scale
        )
    scores = (q.float() @ k.float().transpose(-1, -2)) * options.scale
    if options.softcap:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().expand(*scores.shape[:-1], 1)], dim=-1)
    weights = scores.softmax(-1)[..., : k.shape[-2]]
    return (weights @ v.float()).to(q.dtype)
