"""The seam between a Transformers encoder and flat batches: one attention function, registered by name.

A model's layers call it with the queries, keys and values of all sequences, one behind the other; the batch comes with
the keyword arguments of `forward()`. Sequences attend within themselves only.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from gridwork_server.encoder.batch import Run, SequenceBatch

NAME = "gridwork_flat"
"""Name of the attention function in Transformers' registry."""

ARGUMENT = "gridwork_flat_batch"
"""Keyword argument of `forward()` that carries the batch to every layer."""


class Unsupported(Exception):
    """The model asks for what flat batches cannot do. The message says what."""


@dataclass
class FlatAttention:
    """How the layers of one forward pass attend."""

    runs: tuple[Run, ...]
    reference: bool = False
    """Compute by the definition rather than by PyTorch's fused operation."""
    is_causal_by_config: bool = True
    """False when the model's config says that nothing in it is causal, whatever the modules say."""
    windows: set[int] = field(default_factory=set)
    """The sliding windows that layers asked for."""

    @staticmethod
    def of(batch: SequenceBatch, **settings: Any) -> "FlatAttention":
        """For the sequences of a batch."""
        return FlatAttention(tuple(batch.runs()), **settings)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: "AttentionOptions"
    ) -> torch.Tensor:
        """query: `[heads, num_tokens, size]`, key and value likewise with the KV heads. Returns
        `[num_tokens, heads, value_size]`."""
        if options.window:
            self.windows.add(options.window)
        is_plain = not options.softcap and options.sinks is None
        compute = _fused if is_plain and not self.reference else _by_definition
        out = query.new_empty(query.shape[1], query.shape[0], value.shape[2])
        for run in self.runs:
            split = [_by_sequence(tensor[:, run.tokens], run) for tensor in (query, key, value)]
            # [count, heads, length, size]
            part = compute(split[0], split[1], split[2], options)
            out[run.tokens] = part.transpose(1, 2).flatten(0, 1)
        return out


@dataclass(frozen=True)
class AttentionOptions:
    """What a layer's attention is like."""

    scale: float
    is_causal: bool
    window: int = 0
    """Tokens whose distance is smaller attend to each other; 0: all."""
    softcap: float = 0.0
    sinks: torch.Tensor | None = None
    """A logit for each head that takes part in the softmax without a value. `[heads]`."""

    def mask(self, length: int, device: torch.device) -> torch.Tensor | None:
        """Which key each query sees, `[length, length]`; None: every one."""
        windowed = 0 < self.window < length
        if not self.is_causal and not windowed:
            return None
        positions = torch.arange(length, device=device)
        distance = positions[:, None] - positions[None, :]
        mask = distance >= 0 if self.is_causal else torch.ones_like(distance, dtype=torch.bool)
        return mask & (distance.abs() < self.window) if windowed else mask


def _by_sequence(tensor: torch.Tensor, run: Run) -> torch.Tensor:
    """`[heads, count * length, size]` to `[count, heads, length, size]`."""
    return tensor.unflatten(1, (run.count, run.length)).transpose(0, 1)


def _fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions) -> torch.Tensor:
    length = query.shape[2]
    plainly_causal = options.is_causal and not 0 < options.window < length
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if plainly_causal else options.mask(length, query.device),
        is_causal=plainly_causal,
        scale=options.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _by_definition(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
) -> torch.Tensor:
    """Attention as it is defined (Vaswani et al. 2017, 3.2.1), in float32."""
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, 1).float() for tensor in (key, value))
    scores = query.float() @ key.transpose(2, 3) * options.scale
    if options.softcap:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    mask = options.mask(query.shape[2], query.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if options.sinks is not None:
        sinks = options.sinks.float().reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        weights = torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return (weights @ value).to(query.dtype)


# What layers hand to attention functions that would change the result.
_BIASES = ("position_bias", "head_mask", "alibi", "rel_pos", "bias")


def register() -> None:
    """Makes the attention function known to Transformers. It needs no mask: Transformers makes none for it."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, flat_attention_forward)


def flat_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention interface. query: `[1, heads, num_tokens, size]`, key and value likewise with the KV
    heads. Returns `[1, num_tokens, heads, value_size]`. Raises Unsupported."""
    flat: FlatAttention | None = kwargs.get(ARGUMENT)
    name = type(module).__name__
    if flat is None:
        raise Unsupported(f"{name} does not get the keyword arguments of forward()")
    if attention_mask is not None:
        raise Unsupported(f"{name} attends with a mask of its own")
    if (bias := _given(kwargs, _BIASES)) is not None:
        raise Unsupported(f"{name} attends with `{bias}`")
    if query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise Unsupported(f"{name} attends to something other than its own sequence")
    if query.shape[1] % key.shape[1] != 0:
        raise Unsupported(f"{name} has {query.shape[1]} query heads for {key.shape[1]} KV heads")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    options = AttentionOptions(
        scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        is_causal=bool(causal) and flat.is_causal_by_config,
        window=int(sliding_window or 0),
        softcap=float(softcap or 0.0),
        sinks=s_aux,
    )
    return flat.attend(query[0], key[0], value[0], options)[None], None


def _given(kwargs: dict[str, Any], names: Iterable[str]) -> str | None:
    return next((name for name in names if kwargs.get(name) is not None), None)
