"""Paged attention by the kernels of FlashAttention's packages, and by PyTorch's copy of them.

Dao 2023, "FlashAttention-2"; Shah et al. 2024, "FlashAttention-3". All kernels read a cache of blocks `[num_blocks,
block_size, num_kv_heads, size]`, which is a view of the cache of slots. The causal mask is aligned to a sequence's last
key, and a window counts the keys before the token's own.

Written against the sources of flash-attn, flash_attn_interface (FlashAttention-3) and PyTorch 2.15, and not run on a
GPU yet: `attention_choice` tries each kernel before it is used.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gridwork_kernels.device_copies import to_device
from gridwork_kernels.paged_attention import AttentionOptions, PagedLayout, Ragged

PAGE = 256
"""The block size must be a multiple of this in FlashAttention 2, of the package and of PyTorch (`mha_varlen_fwd`)."""

_HOPPER = 9
"""The compute capability that FlashAttention 3 supports."""


def ragged(layout: PagedLayout) -> Ragged:
    """The step's sequences in the form of these kernels, computed once a step."""
    if layout.ragged is None:
        layout.ragged = _fixed(layout) if layout.is_fixed else _varying(layout)
    return layout.ragged


def _varying(layout: PagedLayout) -> Ragged:
    counts = torch.tensor([layout.num_tokens, layout.end], dtype=torch.int32)
    sums = torch.nn.functional.pad(counts.cumsum(1, dtype=torch.int32), (1, 0))
    rows = to_device(torch.cat([sums.flatten(), counts[1]]), layout.slots.device)
    size = len(layout.end) + 1
    return Ragged(rows[:size], rows[size : 2 * size], rows[2 * size :], max(layout.num_tokens), max(layout.end))


def _fixed(layout: PagedLayout) -> Ragged:
    """Uses only tensors on the device. The maximum length is the capacity of a block table."""
    tokens = torch.arange(len(layout.num_tokens) + 1, dtype=torch.int32, device=layout.slots.device)
    keys = torch.nn.functional.pad(layout.length.cumsum(0, dtype=torch.int32), (1, 0))
    return Ragged(tokens, keys, layout.length, 1, layout.block_tables.shape[1] * layout.block_size)


@dataclass(frozen=True)
class Package:
    """An installed package with FlashAttention's kernels."""

    name: str
    version: int
    attend: Callable[..., Any]
    """`flash_attn_varlen_func` of version 2, `flash_attn_with_kvcache` of version 3, which read blocks."""


@functools.cache
def package(major: int) -> Package:
    """The package for a compute capability's major number. Raises ImportError with the reason when there is none."""
    # Version 3 takes blocks of any size.
    if major == _HOPPER and importlib.util.find_spec("flash_attn_interface"):
        module = importlib.import_module("flash_attn_interface")
        return Package("flash_attn_interface", 3, module.flash_attn_with_kvcache)
    if importlib.util.find_spec("flash_attn") is None:
        raise ImportError("the package flash-attn is not installed")
    return Package("flash_attn", 2, importlib.import_module("flash_attn").flash_attn_varlen_func)


def flash_attn(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: PagedLayout, options: AttentionOptions
) -> torch.Tensor:
    """Attends by an installed package; for the arguments see `paged_attention.AttendSlots`."""
    sequences = ragged(layout)
    found = package(torch.cuda.get_device_capability(query.device)[0])
    arguments = {
        "cu_seqlens_q": sequences.tokens,
        "max_seqlen_q": sequences.max_tokens,
        "softmax_scale": options.scale,
        "causal": True,
        "window_size": (options.window - 1, 0) if options.window else (-1, -1),
        "softcap": options.softcap,
    }
    if found.version == 3:
        arguments |= {"cache_seqlens": sequences.lengths, "page_table": layout.block_tables}
    else:
        arguments |= {
            "cu_seqlens_k": sequences.keys,
            "max_seqlen_k": sequences.max_keys,
            "alibi_slopes": options.slopes,
            "block_table": layout.block_tables,
        }
    out: torch.Tensor = found.attend(
        query, pages(keys, layout.block_size), pages(values, layout.block_size), **arguments
    )
    return out


def varlen(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: PagedLayout, options: AttentionOptions
) -> torch.Tensor:
    """Attends by `torch.nn.attention.varlen`; for the arguments see `paged_attention.AttendSlots`.

    PyTorch would prefer cuDNN, which plans anew for every number of tokens and maximum length. Hardly two steps of a
    server share these.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.varlen import varlen_attn

    sequences = ragged(layout)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = varlen_attn(
            query,
            pages(keys, layout.block_size),
            pages(values, layout.block_size),
            sequences.tokens,
            sequences.keys,
            sequences.max_tokens,
            sequences.max_keys,
            scale=options.scale,
            # (-1, 0) means causal without a window in its sources.
            window_size=(options.window - 1 if options.window else -1, 0),
            enable_gqa=True,
            seqused_k=sequences.lengths,
            block_table=layout.block_tables,
        )
    assert isinstance(out, torch.Tensor)
    return out


def pages(slots: torch.Tensor, block_size: int) -> torch.Tensor:
    """Views `[num_slots, num_kv_heads, size]` as `[num_blocks, block_size, num_kv_heads, size]`."""
    return slots.unflatten(0, (-1, block_size))
