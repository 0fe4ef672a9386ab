"""Problems of paged attention that tests and the check of a GPU share: options, chunks, and random tensors for them."""

from dataclasses import replace

import torch

from gridwork_kernels.paged_attention import AttentionOptions, PagedLayout

BLOCK_SIZE = 4
NUM_BLOCKS = 40

# Chunks of prefill at the beginning of a sequence and later, and decodes, short and long.
MIXED = [(5, 5), (1, 1), (7, 26), (1, 38), (1, 9), (12, 13)]
DECODES = [(1, 1), (1, 17), (1, 30)]

OPTIONS = {
    "plain": AttentionOptions(scale=0.25),
    "window": AttentionOptions(scale=0.25, window=6),
    "chunks": AttentionOptions(scale=0.25, chunk=5),
    "window of one": AttentionOptions(scale=0.25, window=1),
    "softcap": AttentionOptions(scale=0.25, softcap=2.0),
    "slopes": AttentionOptions(scale=0.25, slopes=torch.tensor([0.5, 0.25, 0.125, 0.0625, 1.0, 0.0])),
    "sinks": AttentionOptions(scale=0.25, sinks=torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0, 3.0])),
    "all": AttentionOptions(
        scale=0.2,
        window=6,
        softcap=2.0,
        sinks=torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0, 3.0]),
        slopes=torch.tensor([0.5, 0.25, 0.125, 0.0625, 1.0, 0.0]),
    ),
}


def problem(
    chunks: list[tuple[int, int]],
    kv_heads: int,
    sizes: tuple[int, int] = (16, 16),
    dtype: torch.dtype = torch.float32,
    num_heads: int = 6,
    block_size: int = BLOCK_SIZE,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, PagedLayout]:
    """Query, keys, values and layout for chunks of (tokens computed, length afterwards). Unused slots are NaN."""
    torch.manual_seed(len(chunks) + kv_heads)
    needed = [-(-end // block_size) for _, end in chunks]
    null_block = max(NUM_BLOCKS, sum(needed))
    blocks = torch.randperm(null_block)
    tables = torch.full((len(chunks), max(needed)), null_block, dtype=torch.int32)
    keys = torch.full(((null_block + 1) * block_size, kv_heads, sizes[0]), torch.nan)
    values = torch.full(((null_block + 1) * block_size, kv_heads, sizes[1]), torch.nan)
    keys[null_block * block_size :], values[null_block * block_size :] = 0, 0
    sequence, length, taken = [], [], 0
    for row, (count, end) in enumerate(chunks):
        own = blocks[taken : taken + needed[row]]
        taken += needed[row]
        tables[row, : len(own)] = own
        slots = (own[:, None] * block_size + torch.arange(block_size)).flatten()[:end]
        keys[slots], values[slots] = torch.randn(end, kv_heads, sizes[0]), torch.randn(end, kv_heads, sizes[1])
        sequence += [row] * count
        length += range(end - count + 1, end + 1)
    layout = PagedLayout(
        block_tables=tables,
        sequence=torch.tensor(sequence, dtype=torch.int32),
        length=torch.tensor(length, dtype=torch.int32),
        slots=torch.zeros(len(length), dtype=torch.int64),
        block_size=block_size,
        num_tokens=[count for count, _ in chunks],
        end=[end for _, end in chunks],
        null_slot=null_block * block_size,
    )
    query = torch.randn(len(length), num_heads, sizes[0]) * 3
    return query.to(dtype), keys.to(dtype), values.to(dtype), layout


def on_device(
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor, PagedLayout], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, PagedLayout]:
    """A problem with all of its tensors on a device."""
    query, keys, values, layout = tensors
    for name in ("block_tables", "sequence", "length", "slots"):
        setattr(layout, name, getattr(layout, name).to(device))
    return query.to(device), keys.to(device), values.to(device), layout


def options_on(options: AttentionOptions, device: torch.device) -> AttentionOptions:
    """Options with their tensors on a device."""
    here = {name: None if (t := getattr(options, name)) is None else t.to(device) for name in ("sinks", "slopes")}
    return replace(options, **here)
