"""Random draws for the rows of a batch that do not decode greedily.

Here are the rows whose distribution is cut by nothing but min-p: drawn over the whole vocabulary, in two steps (block,
then token) and in the order of `weights.block_members`. The others are cut to candidates first and drawn in order of
falling logit (`truncation`). Which way a row goes depends on its own settings alone.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch

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
    """Which cuts any row of a batch has: known to the host, so that nothing has to be read from a device for it."""

    top_k: bool
    only_top_k: bool
    """Whether every row has that."""
    typical_p: bool
    top_p: bool
    min_p: bool

    @staticmethod
    def of(top_k: np.ndarray, typical_p: np.ndarray, top_p: np.ndarray, min_p: np.ndarray) -> "Cuts":
        """Of rows with these settings, [R] each."""
        has_top_k = top_k > 0
        return Cuts(
            top_k=bool(has_top_k.any()),
            only_top_k=bool(has_top_k.all()),
            typical_p=bool((typical_p < 1).any()),
            top_p=bool((top_p < 1).any()),
            min_p=bool((min_p > 0).any()),
        )


@dataclass
class DrawSettings:
    """Per-row settings, all tensors of length R and on the logits' device; neutral values switch a cut off."""

    inverse_temperature: torch.Tensor  # float32
    top_k: torch.Tensor  # int64, 0 off
    typical_p: torch.Tensor  # float32, 1 off
    top_p: torch.Tensor  # float32, 1 off
    min_p: torch.Tensor  # float32, 0 off
    uniform: torch.Tensor  # float64 in [0, 1), the row's random number
    cuts: Cuts  # those of all rows that were asked for together

    def take(self, index: torch.Tensor) -> "DrawSettings":
        """The settings of some of the rows."""
        rows = {field.name: getattr(self, field.name)[index] for field in fields(self) if field.name != "cuts"}
        return replace(self, **rows)


def draw_untruncated(
    logits: torch.Tensor, rows: torch.Tensor, maxima: torch.Tensor, settings: DrawSettings
) -> torch.Tensor:
    """Token ids int64 [R] drawn from the whole vocabulary of rows int64 [R], ascending, of logits float32 [B, V].

    maxima: float32 [R], each row's largest logit.
    """
    every = len(rows) == len(logits)
    inverse_temperature, min_p = settings.inverse_temperature[:, None], settings.min_p[:, None]
    blocks = []
    step = rows_per_chunk(logits)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        chunk = logits[part] if every else logits.index_select(0, rows[part])
        relative = relative_probabilities(chunk, maxima[part, None], inverse_temperature[part])
        if settings.cuts.min_p:
            relative *= relative >= min_p[part]
        blocks.append(block_weights(relative))
    weights = torch.cat(blocks)

    block, inside = pick(weights, settings.uniform[:, None])
    members = block_members(block[:, 0], weights.shape[1])
    values = logits[rows[:, None], members.clamp(max=logits.shape[1] - 1)]
    relative = relative_probabilities(values, maxima[:, None], inverse_temperature)
    relative.masked_fill_((relative < min_p) | (members >= logits.shape[1]), 0)
    index, _ = pick(integer_weights(relative), inside)
    return members.gather(1, index)[:, 0]
