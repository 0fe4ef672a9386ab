"""Connects a Transformers encoder with flat batches: one attention function, registered by name.

A model's layers call the function with the queries, keys and values of all sequences, concatenated. The batch comes
through a keyword argument of `forward()`. Sequences attend within themselves only.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from gridwork_kernels.paged_attention import AttentionOptions
from gridwork_server.attention import attention_function
from gridwork_server.encoder.batch import Run, SequenceBatch
from gridwork_server.errors import PathError

NAME = "gridwork_flat"
"""Name of the attention function in Transformers' registry."""

ARGUMENT = "gridwork_flat_batch"
"""Keyword argument of `forward()` that carries the batch to every layer."""

_BIASES = ("position_bias", "head_mask", "alibi", "rel_pos", "bias")


@dataclass
class FlatAttention:
    """Computes the attention of layers in one forward pass."""

    runs: tuple[Run, ...]
    reference: bool = False
    """Compute by the definition rather than by PyTorch's fused operation."""
    is_causal_by_config: bool = True
    """False when the model's config makes every layer bidirectional, whatever the modules say."""
    windows: set[int] = field(default_factory=set)
    """Sliding windows that layers asked for."""

    @staticmethod
    def of(batch: SequenceBatch, **settings: Any) -> "FlatAttention":
        """Attention within the sequences of a batch."""
        return FlatAttention(tuple(batch.runs()), **settings)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
        is_causal: bool,
    ) -> torch.Tensor:
        """query: `[heads, num_tokens, size]`, key and value likewise with the KV heads; options: without a chunk. With
        `options.window`, tokens at a smaller distance than the window attend to each other. Returns
        `[num_tokens, heads, value_size]`."""
        if options.window:
            self.windows.add(options.window)
        is_plain = not options.softcap and options.sinks is None
        compute = _fused if is_plain and not self.reference else _by_definition
        out = query.new_empty(query.shape[1], query.shape[0], value.shape[2])
        for run in self.runs:
            split = [_by_sequence(tensor[:, run.tokens], run) for tensor in (query, key, value)]
            # [count, heads, length, size]
            part = compute(split[0], split[1], split[2], options, is_causal)
            out[run.tokens] = part.transpose(1, 2).flatten(0, 1)
        return out


def visible(length: int, window: int, is_causal: bool, device: torch.device) -> torch.Tensor | None:
    """Keys that each query sees, bool `[length, length]`; None: all of them. window: 0 for none."""
    windowed = 0 < window < length
    if not is_causal and not windowed:
        return None
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions[None, :]
    mask = distance >= 0 if is_causal else torch.ones_like(distance, dtype=torch.bool)
    return mask & (distance.abs() < window) if windowed else mask


def _by_sequence(tensor: torch.Tensor, run: Run) -> torch.Tensor:
    """`[heads, count * length, size]` to `[count, heads, length, size]`."""
    return tensor.unflatten(1, (run.count, run.length)).transpose(0, 1)


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions, is_causal: bool
) -> torch.Tensor:
    length = query.shape[2]
    plainly_causal = is_causal and not 0 < options.window < length
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if plainly_causal else visible(length, options.window, is_causal, query.device),
        is_causal=plainly_causal,
        scale=options.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _by_definition(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions, is_causal: bool
) -> torch.Tensor:
    """Attention by its definition (Vaswani et al. 2017, 3.2.1), in float32."""
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, 1).float() for tensor in (key, value))
    scores = query.float() @ key.transpose(2, 3) * options.scale
    if options.softcap:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    mask = visible(query.shape[2], options.window, is_causal, query.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if options.sinks is not None:
        sinks = options.sinks.reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        weights = torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return (weights @ value).to(query.dtype)


def _attend_flat(
    module: nn.Module,
    flat: FlatAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    options: AttentionOptions,
    is_causal: bool,
) -> tuple[torch.Tensor, None]:
    """See attention_function. Returns `[1, num_tokens, heads, value_size]`."""
    name = type(module).__name__
    if query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise PathError(f"{name} attends to something other than its own sequence")
    if query.shape[1] % key.shape[1] != 0:
        raise PathError(f"{name} has {query.shape[1]} query heads for {key.shape[1]} KV heads")
    is_causal = is_causal and flat.is_causal_by_config
    return flat.attend(query[0], key[0], value[0], options, is_causal)[None], None


flat_attention_forward = attention_function(ARGUMENT, _BIASES, _attend_flat)


def register() -> None:
    """Makes the attention function known to Transformers, which makes no masks for functions that it does not know."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, flat_attention_forward)
