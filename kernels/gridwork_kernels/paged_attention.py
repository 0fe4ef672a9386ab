"""Paged attention: the interface and the data that all implementations share.

All implementations take the same arguments and give the same result up to rounding. Every query token attends to the
cached keys of its sequence up to its own position, or to the last `window` of them. An implementation defines the
layout of its cache. `attention_choice` chooses the implementation.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

SPARE_BLOCKS = 2
"""Blocks of a cache after those for sequences: one that stays zero, then one that padding is written to."""


@dataclass(frozen=True)
class Ragged:
    """The sequences of a step as FlashAttention's kernels take them: one after another, without padding. All int32."""

    tokens: torch.Tensor
    """`[num_sequences + 1]`: number of tokens of the step before each sequence's tokens."""
    keys: torch.Tensor
    """`[num_sequences + 1]`: the same for the sequences' lengths."""
    lengths: torch.Tensor
    """`[num_sequences]`."""
    max_tokens: int
    max_keys: int


@dataclass(frozen=True)
class PrefillChunk:
    """The tokens of one sequence that computes several, and its keys."""

    tokens: slice
    slots: torch.Tensor
    """int64 `[num_keys]`."""
    mask: torch.Tensor
    """bool `[num_tokens, num_keys]`: whether each token sees each key."""
    distance: torch.Tensor
    """int64 `[num_tokens, num_keys]`."""


@dataclass(frozen=True)
class Gathering:
    """Slots of the keys that a step gathers, and which of them each token sees."""

    decode_tokens: torch.Tensor | None
    """int64 `[num_decodes]`."""
    decode_slots: torch.Tensor
    """int64 `[num_decodes, longest]`."""
    decode_mask: torch.Tensor
    """bool `[num_decodes, 1, 1, longest]`."""
    decode_distance: torch.Tensor
    """int64 `[num_decodes, 1, 1, longest]`."""
    prefills: list[PrefillChunk]


@dataclass
class PagedLayout:
    """The places of one step's tokens and of their sequences' keys in the cache, for all layers.

    Tokens of a sequence are consecutive and in order. Every tensor is on the model's device.
    """

    block_tables: torch.Tensor
    """int32 `[num_sequences, max_blocks]`, wide enough for the longest sequence."""
    sequence: torch.Tensor
    """int32 `[num_tokens]`: row of block_tables."""
    length: torch.Tensor
    """int32 `[num_tokens]`: position + 1."""
    slots: torch.Tensor
    """int64 `[num_tokens]`: the slot that the token's key and value are written to."""
    block_size: int
    num_tokens: list[int]
    """Number of tokens of each sequence, in order."""
    end: list[int]
    """Length of each sequence after the step; empty when `is_fixed`."""
    null_slot: int
    """A slot that is always zero. Padding points to it, so that no stale value, such as NaN, is read."""
    is_fixed: bool = False
    """True if the step is one token of each sequence, in buffers that are refilled before each replay. Lengths are then
    known on the device only, and only the contents of tensors may depend on them."""
    derived: dict[tuple[int, int], Gathering] = field(default_factory=dict)
    """Indices and masks of `sdpa`, by window and chunk; computed once a step."""
    ragged: Ragged | None = None
    """Arguments of `flash-attn` and `varlen`; computed once a step."""
    tiles: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """Tiles of `triton`, by the maximum number of tokens of a tile; computed once a step."""


@dataclass(frozen=True)
class AttentionOptions:
    """Properties of one layer's attention."""

    scale: float
    window: int = 0
    """Number of most recent keys that a token sees, including its own; 0 for all."""
    chunk: int = 0
    """Positions of a chunk, outside of which a token sees no keys; 0 for no chunks. Excludes a window."""
    softcap: float = 0.0
    """Scores become `softcap * tanh(score / softcap)`; 0 for unchanged scores."""
    sinks: torch.Tensor | None = None
    """float32 `[num_heads]`: an additional logit without a value for each head."""
    slopes: torch.Tensor | None = None
    """float32 `[num_heads]`: subtracted from a score for each position of distance to the key (ALiBi)."""


class PagedAttention(Protocol):
    """An implementation of paged attention, with the layout of its cache."""

    def allocate(
        self,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        sizes: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys and values. The last `SPARE_BLOCKS` are zero, the others undefined. sizes: of a key and of a
        value."""

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
        """Writes key and value into the cache, unless they are None and there already, then attends. query:
        `[num_tokens, num_heads, key_size]`; key, value: `[num_tokens, num_kv_heads, size]`. Returns `[num_tokens,
        num_heads, value_size]` in query's dtype."""


AttendSlots = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, PagedLayout, AttentionOptions], torch.Tensor]
"""(query, keys `[num_slots, num_kv_heads, key_size]`, values likewise, layout, options) -> output."""
