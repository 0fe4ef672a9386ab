"""Paged attention: what every implementation takes and gives, and the definition.

All implementations take the same arguments and give the same result up to rounding; `reference` is what the others
are tested against. Every query token attends to the cached keys of its sequence up to its own position, or to the
last `window` of them. How keys and values lie in the cache is an implementation's own matter. Which one is used is
chosen in `attention_choice`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

SPARE_BLOCKS = 2
"""Blocks of a cache behind those that sequences are given: one that stays zero, then one that padding is written to."""


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
    derived: dict[tuple[int, int], Gathering] = field(default_factory=dict)
    """Indices and masks of the `sdpa` form, by window and chunk; made once a step."""
    ragged: Ragged | None = None
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
