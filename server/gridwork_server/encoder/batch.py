"""A batch of sequences that are computed together."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch


@dataclass(frozen=True)
class SequenceBatch:
    """Whole sequences, concatenated without padding."""

    token_ids: torch.Tensor
    """`[num_tokens]`, int64."""
    token_types: torch.Tensor | None
    """`[num_tokens]`, int64; None: all are 0."""
    lengths: tuple[int, ...]
    """Number of tokens of each sequence, at least 1."""

    @staticmethod
    def of(sequences: list[list[int]], device: torch.device | str = "cpu") -> "SequenceBatch":
        """Makes a batch of sequences without token types."""
        flat = [token for sequence in sequences for token in sequence]
        return SequenceBatch(
            torch.tensor(flat, dtype=torch.int64, device=device), None, tuple(len(sequence) for sequence in sequences)
        )

    @property
    def starts(self) -> list[int]:
        """Index of the first token of each sequence."""
        starts, position = [], 0
        for length in self.lengths:
            starts.append(position)
            position += length
        return starts

    def positions(self) -> torch.Tensor:
        """Position of each token in its sequence, from 0. `[num_tokens]`, int64."""
        device = self.token_ids.device
        lengths = torch.tensor(self.lengths, dtype=torch.int64, device=device)
        starts = torch.tensor(self.starts, dtype=torch.int64, device=device)
        return torch.arange(len(self.token_ids), device=device) - starts.repeat_interleave(lengths)

    def one(self, index: int) -> "SequenceBatch":
        """Makes a batch of a single sequence of this one."""
        start = self.starts[index]
        end = start + self.lengths[index]
        types = None if self.token_types is None else self.token_types[start:end]
        return SequenceBatch(self.token_ids[start:end], types, (end - start,))

    def runs(self) -> Iterator["Run"]:
        """Groups neighbours of equal length, which can be viewed as `[count, length]` without a copy."""
        start = 0
        for length, group in groupby(self.lengths):
            count = len(list(group))
            yield Run(start, count, length)
            start += count * length


@dataclass(frozen=True)
class Run:
    """Neighbouring sequences of equal length."""

    start: int
    """Index of the first token."""
    count: int
    length: int
    """Number of tokens of each sequence."""

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.start + self.count * self.length)
