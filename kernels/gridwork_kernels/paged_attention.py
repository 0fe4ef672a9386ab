"""Paged attention: the plain form, the form in PyTorch operations, and the choice between these and compiled ones.

All implementations take the same arguments and give the same result up to rounding; `reference` is what the others
are tested against. Every query token attends to the cached keys of its sequence up to its own position, or to the
last `window` of them. How keys and values lie in the cache is an implementation's own matter.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from gridwork_kernels import cpu_attention


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
    """Length of each sequence when the step is done."""
    null_slot: int
    """A slot that is always zero: padding points to it, so that nothing stale (a NaN above all) is ever read."""
    derived: dict[tuple[int, int], "_Gathering"] = field(default_factory=dict)
    """Indices and masks of the `sdpa` form, by window and chunk; made once a step."""
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
        """A layer's keys and values, of undefined content but for the last block, which is zero. sizes: of a key and
        of a value."""

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


_AttendSlots = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, PagedLayout, AttentionOptions], torch.Tensor]
"""(query, keys `[num_slots, num_kv_heads, key_size]`, values likewise, layout, options) -> attended."""


@dataclass(frozen=True)
class SlotAttention:
    """An implementation on a cache of slots, `[num_slots, num_kv_heads, size]`."""

    function: _AttendSlots

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
            cache[-block_size:] = 0
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
        keys, values = cpu_attention.allocate(num_blocks, block_size, num_kv_heads, *sizes, dtype)
        keys[-1], values[-1] = 0, 0
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
        return cpu_attention.paged_attention(
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


def reference(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: PagedLayout, options: AttentionOptions
) -> torch.Tensor:
    """The definition, sequence by sequence, in float32."""
    group = query.shape[1] // keys.shape[1]
    out = query.new_empty(*query.shape[:2], values.shape[2])
    first = 0
    for row, (count, end) in enumerate(zip(layout.num_tokens, layout.end, strict=True)):
        slots = _slots(layout, row, 0, end)
        k = keys[slots].float().repeat_interleave(group, 1)
        v = values[slots].float().repeat_interleave(group, 1)
        q = query[first : first + count].float()
        scores = torch.einsum("qhd,khd->hqk", q, k) * options.scale
        if options.softcap:
            scores = options.softcap * torch.tanh(scores / options.softcap)
        if options.slopes is not None:
            scores = scores - options.slopes[:, None, None] * _distance(count, end, 0, query.device)
        scores = scores.masked_fill(~_visible(count, end, options.window, options.chunk, 0, query.device), -torch.inf)
        if options.sinks is not None:
            sinks = options.sinks.float()[:, None, None].expand(-1, count, 1)
            scores = torch.cat([scores, sinks], dim=-1)
        weights = scores.softmax(-1)[..., :end]
        out[first : first + count] = torch.einsum("hqk,khd->qhd", weights, v).to(query.dtype)
        first += count
    return out


def sdpa(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: PagedLayout, options: AttentionOptions
) -> torch.Tensor:
    """In PyTorch operations, on any device: decodes gathered into one padded batch, prefills one by one."""
    gathering = layout.derived.get((options.window, options.chunk))
    if gathering is None:
        gathering = _Gathering.of(layout, options.window, options.chunk)
        layout.derived[options.window, options.chunk] = gathering
    num_heads, kv_heads = query.shape[1], keys.shape[1]
    out = query.new_empty(query.shape[0], num_heads, values.shape[2])
    if gathering.decode_tokens is not None:
        # The heads that share a KV head become its queries, so that keys need not be repeated.
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


def _triton(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: PagedLayout, options: AttentionOptions
) -> torch.Tensor:
    """See triton_attention."""
    from gridwork_kernels import triton_attention  # imports a compiler

    return triton_attention.attend(query, keys, values, layout, options)


IMPLEMENTATIONS: dict[str, PagedAttention] = {
    "cpu": CpuAttention(),
    "triton": SlotAttention(_triton),
    "sdpa": SlotAttention(sdpa),
    "reference": SlotAttention(reference),
}

EVERYWHERE = ("sdpa", "reference")
"""Those that every device can run."""

ALIASES = {"torch": "sdpa"}
"""Other names that users know implementations by."""


def choose(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Name of the implementation to use. name: what was asked for, or `auto`. Raises ValueError, with what would work,
    when the wish cannot be met."""
    name = ALIASES.get(name, name)
    fits_cpu = device.type == "cpu" and cpu_attention.supports(dtype)
    if name == "auto":
        if device.type == "cuda" and _trial("triton", device, dtype) is None:
            return "triton"
        return "cpu" if fits_cpu else "sdpa"
    if name == "triton" and (reason := _trial("triton", device, dtype)) is not None:
        raise ValueError(f"--attention triton cannot be used on {device} in {dtype}: {reason}; use --attention sdpa")
    if name == "cpu" and not fits_cpu:
        raise ValueError(
            f"--attention cpu needs an x86-64 CPU with AVX2, and float32, bfloat16 or float16; here: "
            f"{device}, {dtype}; "
            "use --attention sdpa"
        )
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"unknown attention `{name}`; one of auto, {', '.join([*IMPLEMENTATIONS, *ALIASES])}")
    return name


@functools.cache
def _trial(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why an implementation for GPUs cannot be used, found by running it and comparing: None when it can."""
    if device.type != "cuda":
        return "it needs a GPU"
    try:
        torch.cuda.current_device()
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(device, dtype)

        counts, ends = [5, 1], [5, 30]
        layout = PagedLayout(
            block_tables=torch.tensor([[3, 0], [1, 2]], dtype=torch.int32, device=device),
            sequence=torch.tensor([0] * 5 + [1], dtype=torch.int32, device=device),
            length=torch.tensor([1, 2, 3, 4, 5, 30], dtype=torch.int32, device=device),
            slots=torch.zeros(6, dtype=torch.int64, device=device),
            block_size=16,
            num_tokens=counts,
            end=ends,
            null_slot=64,
        )
        problem = random(6, 4, 64), random(80, 2, 64), random(80, 2, 64), layout, AttentionOptions(scale=0.125)
        implementation = IMPLEMENTATIONS[name]
        assert isinstance(implementation, SlotAttention)
        difference = (implementation.function(*problem).float() - reference(*problem).float()).abs().max()
    except Exception as error:  # whatever a compiler or a driver raises
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None if difference < 0.05 else f"its results differ from the reference by {float(difference):.2g}"


@dataclass
class _Prefill:
    tokens: slice
    slots: torch.Tensor  # int64 [num_keys]
    mask: torch.Tensor  # bool [num_tokens, num_keys]
    distance: torch.Tensor  # int64 [num_tokens, num_keys]


@dataclass
class _Gathering:
    decode_tokens: torch.Tensor | None  # int64 [num_decodes]
    decode_slots: torch.Tensor  # int64 [num_decodes, longest]
    decode_mask: torch.Tensor  # bool [num_decodes, 1, 1, longest]
    decode_distance: torch.Tensor  # int64 [num_decodes, 1, 1, longest]
    prefills: list[_Prefill]

    @staticmethod
    def of(layout: PagedLayout, window: int, chunk: int) -> "_Gathering":
        device = layout.slots.device
        starts = [0]
        for count in layout.num_tokens:
            starts.append(starts[-1] + count)
        decodes = [row for row, count in enumerate(layout.num_tokens) if count == 1]
        rows = torch.tensor(decodes, dtype=torch.int64, device=device)
        tokens = torch.tensor([starts[row] for row in decodes], dtype=torch.int64, device=device)
        ends = torch.tensor([layout.end[row] for row in decodes], dtype=torch.int64, device=device)
        first = [_first(layout.end[row], window, chunk) for row in decodes]
        begins = torch.tensor(first, dtype=torch.int64, device=device)
        longest = max((layout.end[row] - begin for row, begin in zip(decodes, first, strict=True)), default=0)
        positions = begins[:, None] + torch.arange(longest, device=device)
        valid = positions < ends[:, None]
        distance = ends[:, None] - 1 - positions
        positions = torch.where(valid, positions, 0)
        blocks = layout.block_tables[rows[:, None], positions // layout.block_size].long()
        slots = torch.where(valid, blocks * layout.block_size + positions % layout.block_size, layout.null_slot)
        prefills = []
        for row, (count, end) in enumerate(zip(layout.num_tokens, layout.end, strict=True)):
            if count == 1:
                continue
            begin = _first(end - count + 1, window, chunk)
            prefills.append(
                _Prefill(
                    slice(starts[row], starts[row + 1]),
                    _slots(layout, row, begin, end),
                    _visible(count, end, window, chunk, begin, device),
                    _distance(count, end, begin, device),
                )
            )
        return _Gathering(
            tokens if decodes else None, slots, valid[:, None, None, :], distance[:, None, None, :], prefills
        )


def _slots(layout: PagedLayout, row: int, begin: int, end: int) -> torch.Tensor:
    positions = torch.arange(begin, end, device=layout.slots.device)
    blocks = layout.block_tables[row].long()[positions // layout.block_size]
    return blocks * layout.block_size + positions % layout.block_size


def _first(length: int, window: int, chunk: int) -> int:
    """First position that the last token of so many sees."""
    if chunk:
        return (length - 1) // chunk * chunk
    return max(0, length - window) if window else 0


def _visible(count: int, end: int, window: int, chunk: int, begin: int, device: torch.device) -> torch.Tensor:
    """bool `[count, end - begin]`: whether each of the last `count` positions sees each position from `begin` on."""
    queries = torch.arange(end - count, end, device=device)[:, None]
    positions = torch.arange(begin, end, device=device)[None, :]
    visible = positions <= queries
    if chunk:
        return visible & (positions // chunk == queries // chunk)
    return visible & (positions > queries - window) if window else visible


def _distance(count: int, end: int, begin: int, device: torch.device) -> torch.Tensor:
    """int64 `[count, end - begin]`: how far the last `count` positions are from those from `begin` on."""
    return torch.arange(end - count, end, device=device)[:, None] - torch.arange(begin, end, device=device)


def _gather(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """`[batch, num_kv_heads, num_keys, size]` of a cache `[num_slots, num_kv_heads, size]`."""
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
        # torch.broadcast_shapes would import sympy, which takes as long as all else that a start imports.
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
