"""How a model numbers positions: found by watching it, since families differ."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Positions:
    """What `position_ids` must be."""

    is_argument: bool
    """Whether `forward()` takes `position_ids`."""
    offset: int
    """Number of a sequence's first position: 0, or for RoBERTa and its kin one more than the padding token."""
    capacity: int | None
    """Longest sequence that the table of positions has room for, tokens; None: there is no such table."""


NUM_WATCHED = 7
"""Tokens of the sequence by which positions are found."""


@torch.inference_mode()
def find(model: nn.Module, vocab_size: int, device: torch.device) -> Positions:
    """Runs one sequence without `position_ids` and looks which embedding is asked for consecutive numbers."""
    is_argument = "position_ids" in inspect.signature(model.forward).parameters
    seen: list[tuple[nn.Embedding, int]] = []
    with _watched(model, seen):
        # Neither consecutive themselves, nor likely to be padding, nor one token again and again.
        tokens = [(vocab_size - 1 - 5 * (i * i % 11)) % vocab_size for i in range(NUM_WATCHED)]
        model(
            input_ids=torch.tensor([tokens], device=device),
            attention_mask=torch.ones(1, NUM_WATCHED, dtype=torch.int64, device=device),
        )
    if not seen:
        return Positions(is_argument, 0, None)
    offset = seen[0][1]
    return Positions(is_argument, offset, min(table.num_embeddings - first for table, first in seen))


@contextmanager
def _watched(model: nn.Module, seen: list[tuple[nn.Embedding, int]]) -> Iterator[None]:
    def look(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        indices = arguments[0] if arguments else None
        if not isinstance(indices, torch.Tensor) or indices.numel() != NUM_WATCHED or indices.is_floating_point():
            return
        first = int(indices.flatten()[0])
        expected = torch.arange(first, first + NUM_WATCHED, device=indices.device)
        if isinstance(module, nn.Embedding) and torch.equal(indices.flatten(), expected):
            seen.append((module, first))

    handles = [module.register_forward_pre_hook(look) for module in model.modules() if isinstance(module, nn.Embedding)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
