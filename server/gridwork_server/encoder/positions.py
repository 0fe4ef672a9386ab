"""Finds out how a model numbers positions, by watching it run, since families differ."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Positions:
    """Form of a model's `position_ids`."""

    is_argument: bool
    """True if `forward()` takes `position_ids`."""
    offset: int
    """Number of a sequence's first position: 0, or one more than the padding token for RoBERTa and its relatives."""
    capacity: int | None
    """Maximum number of tokens that the table of positions has room for; None: there is no such table."""


NUM_WATCHED = 7
"""Number of tokens of the sequence that is run."""


@torch.inference_mode()
def find(model: nn.Module, vocab_size: int, device: torch.device) -> Positions:
    """Runs one sequence without `position_ids`, and looks for the embedding that gets consecutive numbers."""
    is_argument = "position_ids" in inspect.signature(model.forward).parameters
    seen: list[tuple[nn.Embedding, int]] = []
    with _watched(model, seen):
        # Token ids that are not consecutive, unlikely to be padding, and not all the same.
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
