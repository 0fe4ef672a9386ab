"""Paged attention in Triton, for decodes and prefills, on the cache of slots.

A program computes a tile: consecutive tokens of one sequence with all query heads of one KV head, which share every
loaded key. An online softmax runs over pieces of the context (Milakov and Gimelshein 2018, "Online
normalizer calculation for softmax", algorithm 3; Dao et al. 2022, "FlashAttention"). Where a step has too few tiles to
keep a GPU busy, several programs share a tile's context, and their sums are merged (Dao et al. 2023, "Flash-Decoding").
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl

from gridwork_kernels.device_copies import to_device
from gridwork_kernels.paged_attention import AttentionOptions, PagedLayout

_ROWS = 16
"""Minimum number of rows of a tile, which tensor cores need."""
_PREFILL_ROWS = 64
"""Rows of a tile in steps with long prefill chunks, where many tokens should share a loaded key."""
_PREFILL_LANES = 128
"""Maximum padded head size for which that many rows fit into the registers."""
_KEYS = 32
"""Number of keys in a piece of the context."""
_MOST_SPLITS = 32
"""Maximum number of programs that share a tile's context."""
_KEYS_OF_A_SPLIT = 256
"""Minimum number of keys that pay for another program and the merging."""


@triton.jit
def _attend(
    query,
    keys,
    values,
    out,
    parts,
    part_scales,
    tables,
    length,
    tile_token,
    tile_count,
    tile_sequence,
    sinks,
    slopes,
    query_stride,
    table_stride,
    num_tokens,
    scale,
    softcap,
    window,
    chunk,
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    key_size: tl.constexpr,
    value_size: tl.constexpr,
    key_lanes: tl.constexpr,
    value_lanes: tl.constexpr,
    block_size: tl.constexpr,
    rows: tl.constexpr,
    piece: tl.constexpr,
    has_softcap: tl.constexpr,
    has_sinks: tl.constexpr,
    has_slopes: tl.constexpr,
    splits: tl.constexpr,
):
    tile, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.load(tile_token + tile)
    count = tl.load(tile_count + tile)
    table = tables + tl.load(tile_sequence + tile) * table_stride

    row = tl.arange(0, rows)
    own = row // group
    is_row = own < count
    token = (first + own).to(tl.int64)
    query_head = head * group + row % group
    dimension = tl.arange(0, key_lanes)
    q = tl.load(
        query + token[:, None] * query_stride + query_head[:, None] * key_size + dimension[None, :],
        mask=is_row[:, None] & (dimension < key_size)[None, :],
        other=0.0,
    )
    end = tl.load(length + token, mask=is_row, other=0)
    begin = tl.zeros([rows], dtype=tl.int32)
    if chunk > 0:
        begin = (end - 1) // chunk * chunk
    elif window > 0:
        begin = tl.maximum(end - window, 0)
    last = tl.max(end, 0)
    start = tl.min(tl.where(is_row, begin, last), 0) // piece * piece
    stop = last
    if splits > 1:
        share = tl.cdiv(tl.cdiv(last - start, piece), splits) * piece
        start += split * share
        stop = tl.minimum(start + share, last)

    if has_sinks and splits == 1:
        largest = tl.load(sinks + query_head, mask=is_row, other=0.0)
        total = tl.full([rows], 1.0, dtype=tl.float32)
    else:
        largest = tl.full([rows], float("-inf"), dtype=tl.float32)
        total = tl.zeros([rows], dtype=tl.float32)
    if has_slopes:
        slope = tl.load(slopes + query_head, mask=is_row, other=0.0)
    sum = tl.zeros([rows, value_lanes], dtype=tl.float32)
    value_dimension = tl.arange(0, value_lanes)

    for at in range(start, stop, piece):
        position = at + tl.arange(0, piece)
        exists = position < last
        block = tl.load(table + position // block_size, mask=exists, other=0)
        slot = block.to(tl.int64) * block_size + position % block_size
        k = tl.load(
            keys + (slot[:, None] * kv_heads + head) * key_size + dimension[None, :],
            mask=exists[:, None] & (dimension < key_size)[None, :],
            other=0.0,
        )
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if has_softcap:
            score = softcap * (2 * tl.sigmoid(2 * score / softcap) - 1)
        if has_slopes:
            score -= slope[:, None] * (end[:, None] - 1 - position[None, :])
        visible = (position[None, :] < end[:, None]) & (position[None, :] >= begin[:, None])
        score = tl.where(visible, score, float("-inf"))
        most = tl.maximum(largest, tl.max(score, 1))
        # A row that has seen nothing yet stays unchanged.
        base = tl.where(most == float("-inf"), 0.0, most)
        weight = tl.exp(score - base[:, None])
        keep = tl.exp(largest - base)
        v = tl.load(
            values + (slot[:, None] * kv_heads + head) * value_size + value_dimension[None, :],
            mask=exists[:, None] & (value_dimension < value_size)[None, :],
            other=0.0,
        )
        total = total * keep + tl.sum(weight, 1)
        sum = sum * keep[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        largest = most

    if splits > 1:
        place = (split * num_tokens + token) * kv_heads * group + query_head
        tl.store(
            parts + place[:, None] * value_size + value_dimension[None, :],
            sum,
            mask=is_row[:, None] & (value_dimension < value_size)[None, :],
        )
        tl.store(part_scales + place * 2, largest, mask=is_row)
        tl.store(part_scales + place * 2 + 1, total, mask=is_row)
    else:
        total = tl.where(is_row, total, 1.0)
        tl.store(
            out + (token[:, None] * kv_heads * group + query_head[:, None]) * value_size + value_dimension[None, :],
            (sum / total[:, None]).to(out.dtype.element_ty),
            mask=is_row[:, None] & (value_dimension < value_size)[None, :],
        )


@triton.jit
def _merge(
    parts,
    part_scales,
    out,
    sinks,
    num_rows,
    num_heads: tl.constexpr,
    value_size: tl.constexpr,
    value_lanes: tl.constexpr,
    has_sinks: tl.constexpr,
    splits: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # a token's query head
    part = tl.arange(0, splits)
    place = part * num_rows + row
    largest = tl.load(part_scales + place * 2)
    total = tl.load(part_scales + place * 2 + 1)
    most = tl.max(largest, 0)
    if has_sinks:
        sink = tl.load(sinks + row % num_heads)
        most = tl.maximum(most, sink)
    weight = tl.exp(largest - most)
    sum = tl.sum(weight * total, 0)
    if has_sinks:
        sum += tl.exp(sink - most)
    dimension = tl.arange(0, value_lanes)
    values = tl.load(
        parts + place[:, None] * value_size + dimension[None, :], mask=(dimension < value_size)[None, :], other=0.0
    )
    merged = tl.sum(values * weight[:, None], 0) / sum
    tl.store(out + row * value_size + dimension, merged.to(out.dtype.element_ty), mask=dimension < value_size)


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: PagedLayout, options: AttentionOptions
) -> torch.Tensor:
    """query: `[num_tokens, num_heads, key_size]`, each token's heads contiguous; keys: `[num_slots, num_kv_heads,
    key_size]` and values likewise, contiguous. Returns `[num_tokens, num_heads, value_size]` in query's dtype."""
    num_heads, kv_heads = query.shape[1], keys.shape[1]
    group = num_heads // kv_heads
    num_tokens, key_size, value_size = query.shape[0], keys.shape[2], values.shape[2]
    key_lanes, value_lanes = (max(16, triton.next_power_of_2(size)) for size in (key_size, value_size))
    large = max(layout.num_tokens) * group > _PREFILL_ROWS and max(key_lanes, value_lanes) <= _PREFILL_LANES
    rows = max(_PREFILL_ROWS if large else _ROWS, triton.next_power_of_2(group))
    token, count, sequence = _tiles(layout, rows // group)
    out = query.new_empty(num_tokens, num_heads, value_size)
    splits = _splits(layout, len(token) * kv_heads, options, query.device)
    parts = part_scales = query  # never used
    if splits > 1:
        parts = torch.empty(splits, num_tokens, num_heads, value_size, dtype=torch.float32, device=query.device)
        part_scales = torch.empty(splits, num_tokens, num_heads, 2, dtype=torch.float32, device=query.device)
    sinks = query if options.sinks is None else options.sinks
    _attend[(len(token), kv_heads, splits)](
        query,
        keys,
        values,
        out,
        parts,
        part_scales,
        layout.block_tables,
        layout.length,
        token,
        count,
        sequence,
        sinks,
        query if options.slopes is None else options.slopes,
        query.stride(0),
        layout.block_tables.stride(0),
        num_tokens,
        options.scale,
        options.softcap,
        options.window,
        options.chunk,
        kv_heads=kv_heads,
        group=group,
        key_size=key_size,
        value_size=value_size,
        key_lanes=key_lanes,
        value_lanes=value_lanes,
        block_size=layout.block_size,
        rows=rows,
        piece=_KEYS,
        has_softcap=options.softcap > 0,
        has_sinks=options.sinks is not None,
        has_slopes=options.slopes is not None,
        splits=splits,
    )
    if splits > 1:
        _merge[(num_tokens * num_heads,)](
            parts,
            part_scales,
            out,
            sinks,
            num_tokens * num_heads,
            num_heads=num_heads,
            value_size=value_size,
            value_lanes=value_lanes,
            has_sinks=options.sinks is not None,
            splits=splits,
        )
    return out


def _splits(layout: PagedLayout, num_programs: int, options: AttentionOptions, device: torch.device) -> int:
    """Number of programs that share each tile's context, a power of two. It is the same for all replays of a fixed
    step."""
    longest = layout.block_tables.shape[1] * layout.block_size if layout.is_fixed else max(layout.end)
    longest = min(longest, options.chunk or options.window or longest)
    wanted = 2 * _processors(device) // num_programs
    splits = max(1, min(wanted, longest // _KEYS_OF_A_SPLIT, _MOST_SPLITS))
    return 1 << (splits.bit_length() - 1)


@functools.cache
def _processors(device: torch.device) -> int:
    """Number of multiprocessors of a GPU; 1 for the interpreter, which runs programs sequentially."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _tiles(layout: PagedLayout, most_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each tile, int32: its first token, its number of tokens, and their row of block_tables. Computed once a
    step."""
    found: Any = layout.tiles.get(most_tokens)
    if found is None:
        tiles = []
        first = 0
        for sequence, num_tokens in enumerate(layout.num_tokens):
            tiles += [
                (first + at, min(most_tokens, num_tokens - at), sequence) for at in range(0, num_tokens, most_tokens)
            ]
            first += num_tokens
        columns = to_device(torch.tensor(tiles, dtype=torch.int32).T.contiguous(), layout.slots.device)
        found = layout.tiles[most_tokens] = (columns[0], columns[1], columns[2])
    tile_token, tile_count, tile_sequence = found
    return tile_token, tile_count, tile_sequence
