"""Paged attention on x86-64 CPUs, for decodes and prefills, without gathering or padding."""

import math

import torch

from gridwork_kernels import cpu_library
from gridwork_kernels.paged_attention import SPARE_BLOCKS, AttentionOptions, PagedLayout

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def supports(dtype: torch.dtype) -> bool:
    """True if the kernel supports this CPU and this data type."""
    return dtype in DTYPES and cpu_library.load() is not None


def allocate(
    num_blocks: int, block_size: int, num_kv_heads: int, key_size: int, value_size: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys `[num_blocks, num_kv_heads, ceil(key_size / d), block_size, d]` and values `[num_blocks, num_kv_heads,
    ceil(block_size / d), value_size, d]`, with undefined content. d is 2 in bfloat16, whose values lie in pairs, else
    1. Both are views of one tensor, in which a head's values of a block follow its keys, and heads follow each other:
    long contiguous pieces are read faster."""
    d = 2 if dtype == torch.bfloat16 else 1
    key_shape, value_shape = (-(-key_size // d), block_size, d), (-(-block_size // d), value_size, d)
    split = math.prod(key_shape), math.prod(value_shape)
    keys, values = torch.empty(num_blocks, num_kv_heads, sum(split), dtype=dtype).split(split, 2)
    return keys.unflatten(2, key_shape), values.unflatten(2, value_shape)


def paged_attention(
    query: torch.Tensor,
    key: torch.Tensor | None,
    value: torch.Tensor | None,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    sequence: torch.Tensor,
    length: torch.Tensor,
    slots: torch.Tensor,
    *,
    scale: float,
    window: int = 0,
    chunk: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    interleaved: bool = False,
) -> torch.Tensor:
    """Writes new keys and values into the cache. Then every query token attends to the cached keys of its sequence,
    including its own.

    query: `[num_tokens, num_heads, key_size]`; key: `[num_tokens, num_kv_heads, key_size]` and value `[num_tokens,
    num_kv_heads, value_size]`, or None when they are in the cache already; all of one type (float32, bfloat16 or
    float16), a head's values contiguous. keys, values: see `allocate`; block_tables: int32 `[num_sequences,
    max_blocks]`; sequence: int32 `[num_tokens]`, the row of block_tables; tokens of a sequence are consecutive; length:
    int32 `[num_tokens]`, the token's position + 1; slots: int64 `[num_tokens]`, where key and value are written: `block
    * block_size + position % block_size`.

    window: number of most recent keys that a token sees, 0 for all; chunk: positions of a chunk, outside of which a
    token sees no keys, 0 for no chunks; softcap: c of `c * tanh(x / c)` for scores, 0 for none; sinks: float32
    `[num_heads]`, one logit without a value for each head; slopes: float32 `[num_heads]`, multiplied by the distance to
    a key and subtracted from its score (Press, Smith and Lewis 2022, "ALiBi"). cos, sin: `[num_tokens, size]`, rotate
    the first `size` dimensions of query and key, or None when these are rotated already. In query's type, each
    operation is rounded; in float32, the result is rounded once. interleaved: dimensions 2i and 2i + 1 are partners,
    else i and i + size / 2.

    Returns `[num_tokens, num_heads, value_size]` in query's dtype. Computed in float32 with an online softmax
    (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", algorithm 3), over segments of the
    context that start at fixed positions.
    """
    out: torch.Tensor = torch.ops.gridwork_cpu.paged_attention(
        query,
        key,
        value,
        keys,
        values,
        block_tables,
        sequence,
        length,
        slots,
        cos,
        sin,
        sinks,
        slopes,
        scale,
        window,
        chunk,
        softcap,
        interleaved,
    )
    return out


class CpuAttention:
    """The compiled CPU kernel, with its own layout of the cache."""

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
        keys, values = allocate(num_blocks, block_size, num_kv_heads, *sizes, dtype)
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
        return paged_attention(
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
