"""Random draws for the rows of a batch that do not decode greedily.

This module draws rows whose distribution is cut by nothing but min-p: over the whole vocabulary, in two steps (block,
then token) and in the order of `weights.block_members`. Rows with other cuts are cut to candidates first and drawn in
order of falling logit (`truncation`). A row's own settings alone decide which way it goes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from gridwork_server.sampling.parameters import CUTS
from gridwork_server.sampling.weights import (
    block_members,
    block_weights,
    integer_weights,
    pick,
    relative_probabilities,
    rows_per_chunk,
)


@dataclass(frozen=True)
class Cuts:
    """Cuts that rows of a batch have, by the contract's field. The host knows them, so that no value has to be read
    from a device."""

    in_some: frozenset[str]
    """Cuts that at least one row has."""
    in_all: frozenset[str]
    """Cuts that every row has."""

    @staticmethod
    def of(limits: Mapping[str, np.ndarray]) -> "Cuts":
        """Cuts of rows with these limits, `[R]` for each of `CUTS`."""
        active = {field: limits[field] != neutral for field, neutral in CUTS.items()}
        return Cuts(
            in_some=frozenset(field for field, rows in active.items() if rows.any()),
            in_all=frozenset(field for field, rows in active.items() if rows.all()),
        )


@dataclass(frozen=True)
class DrawSettings:
    """Settings of R rows; all tensors are on the logits' device."""

    inverse_temperature: torch.Tensor
    """float32 `[R, 1]`"""
    uniform: torch.Tensor
    """float64 `[R, 1]`: the row's random number in [0, 1)."""
    limits: Mapping[str, torch.Tensor]
    """`[R, 1]` for each of `CUTS`; the neutral value switches a cut off."""
    cuts: Cuts
    """Cuts of all rows that are drawn together, of which these may be a part."""

    def take(self, index: torch.Tensor) -> "DrawSettings":
        """Settings of some of the rows. index: int64."""
        return replace(
            self,
            inverse_temperature=self.inverse_temperature[index],
            uniform=self.uniform[index],
            limits={field: values[index] for field, values in self.limits.items()},
        )

    def has(self, field: str) -> torch.Tensor:
        """bool `[R, 1]`: whether each row has a cut."""
        return self.limits[field] != CUTS[field]


def draw_untruncated(
    logits: torch.Tensor, rows: torch.Tensor, maxima: torch.Tensor, settings: DrawSettings
) -> torch.Tensor:
    """Token ids int64 [R] drawn from the whole vocabulary of rows int64 [R], ascending, of logits float32 [B, V].

    maxima: float32 [R], each row's largest logit.
    """
    every = len(rows) == len(logits)
    inverse_temperature, min_p = settings.inverse_temperature, settings.limits["min_p"]
    blocks = []
    step = rows_per_chunk(logits)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        chunk = logits[part] if every else logits.index_select(0, rows[part])
        relative = relative_probabilities(chunk, maxima[part, None], inverse_temperature[part])
        if "min_p" in settings.cuts.in_some:
            relative *= relative >= min_p[part]
        blocks.append(block_weights(relative))
    weights = torch.cat(blocks)

    block, inside = pick(weights, settings.uniform)
    members = block_members(block[:, 0], weights.shape[1])
    values = logits[rows[:, None], members.clamp(max=logits.shape[1] - 1)]
    relative = relative_probabilities(values, maxima[:, None], inverse_temperature)
    relative.masked_fill_((relative < min_p) | (members >= logits.shape[1]), 0)
    index, _ = pick(integer_weights(relative), inside)
    return members.gather(1, index)[:, 0]
