"""Paged attention on x86-64 CPUs with AVX-512: decodes and chunks of prefill alike, no gathering, no padding."""

import torch

from gridwork_kernels import cpu_library

LARGEST_HEAD = 256
HEAD_MULTIPLE = 16
DTYPES = (torch.float32, torch.bfloat16)


def supports(dtype: torch.dtype, key_size: int, value_size: int) -> bool:
    """Whether this CPU and these heads can use the kernel."""
    return (
        dtype in DTYPES
        and all(size % HEAD_MULTIPLE == 0 and 0 < size <= LARGEST_HEAD for size in (key_size, value_size))
        and cpu_library.has_avx512()
    )


def paged_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    sequence: torch.Tensor,
    length: torch.Tensor,
    *,
    block_size: int,
    scale: float,
    window: int = 0,
    chunk: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of every query token to the cached keys of its sequence, its own included.

    query: `[num_tokens, num_heads, key_size]`, float32 or bfloat16, each token's heads contiguous;
    keys: `[num_slots, num_kv_heads, key_size]` and values: `[num_slots, num_kv_heads, value_size]`, contiguous, where
    the slot of a position is `block * block_size + position % block_size`; block_tables: int32
    `[num_sequences, max_blocks]`; sequence: int32 `[num_tokens]`, the token's row of block_tables; length: int32
    `[num_tokens]`, the token's position + 1; window: only the last so many keys, 0 for all;
    chunk: only keys of the query's own chunk of so many positions, 0 for no chunks; softcap: `c * tanh(x / c)`
    of the scores, 0 for none; sinks: float32 `[num_heads]`, a logit without a value for each head.

    Returns `[num_tokens, num_heads, value_size]` in query's dtype. Computed in float32 with an online softmax
    (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", algorithm 3).
    """
    return torch.ops.gridwork_cpu.paged_attention(
        query, keys, values, block_tables, sequence, length, sinks, block_size, scale, window, chunk, softcap
    )
