"""Paged attention on x86-64 CPUs: decodes and chunks of prefill alike, no gathering, no padding."""

import math

import torch

from gridwork_kernels import cpu_library
from gridwork_kernels.paged_attention import SPARE_BLOCKS, AttentionOptions, PagedLayout

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def supports(dtype: torch.dtype) -> bool:
    """Whether this CPU and this type of values can use the kernel."""
    return dtype in DTYPES and cpu_library.load() is not None


def allocate(
    num_blocks: int, block_size: int, num_kv_heads: int, key_size: int, value_size: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys `[num_blocks, num_kv_heads, ceil(key_size / d), block_size, d]` and values `[num_blocks, num_kv_heads,
    ceil(block_size / d), value_size, d]`, of undefined content. d: what is summed over lies in pairs in bfloat16, else
    1. Views of one piece of memory, in which a head's values of a block follow its keys, and heads follow each other:
    short pieces in many places are read more slowly."""
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
    """Writes new keys and values into the cache, then attends from every query token to the cached keys of its
    sequence, its own included.

    query: `[num_tokens, num_heads, key_size]`; key: `[num_tokens, num_kv_heads, key_size]` and value `[num_tokens,
    num_kv_heads, value_size]`, or None when they stand in the cache already; all of one type (float32, bfloat16 or
    float16), a head's values contiguous. keys, values: as `allocate` makes them; block_tables: int32 `[num_sequences,
    max_blocks]`; sequence: int32 `[num_tokens]`, the token's row of block_tables, tokens of a sequence consecutive;
    length: int32 `[num_tokens]`, the token's position + 1; slots: int64 `[num_tokens]`, where its key and value go:
    `block * block_size + position % block_size`.

    window: only the last so many keys, 0 for all; chunk: only keys of the query's own chunk of so many positions, 0
    for no chunks; softcap: `c * tanh(x / c)` of the scores, 0 for none; sinks: float32 `[num_heads]`, a logit without a
    value for each head; slopes: float32 `[num_heads]`, which times the distance to a key are taken off its score
    (Press, Smith and Lewis 2022, "ALiBi"). cos, sin: `[num_tokens, size]`, to rotate the first `size` dimensions of
    query and key by, None when they are rotated already: of query's type, whose results are rounded after each
    operation, or float32, rounded once; interleaved: dimensions 2i and 2i + 1 are turned together, else i and
    i + size / 2.

    Returns `[num_tokens, num_heads, value_size]` in query's dtype. Computed in float32 with an online softmax
    (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", algorithm 3), over pieces of the context
    that start at fixed positions.
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
