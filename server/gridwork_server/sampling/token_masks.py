"""Masks of the tokens that may be sampled, as grammars give them, and their application to logits."""

from dataclasses import dataclass, field

import numpy as np
import torch

from gridwork_kernels.token_masks import forbid_tokens
from gridwork_server.sampling.weights import rows_per_chunk


@dataclass(frozen=True)
class TokenMasks:
    """Tokens that R of B rows may sample."""

    rows: np.ndarray
    """int64 `[R]`, ascending: the rows of the logits."""
    allowed: torch.Tensor
    """int32 `[R, W]`, on the host, pinned where the logits are on a GPU: a bit for each token, the lowest first. Tokens
    beyond the bits are not allowed."""
    failures: dict[int, str] = field(default_factory=dict)
    """Reasons why sequences have no mask, by id. Their rows mean nothing."""
    behind_end: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """int64: rows behind a draft that ends the grammar. Nothing is taken from them."""

    def apply(self, logits: torch.Tensor) -> None:
        """Sets the logits of tokens that are not allowed to -inf, in place. logits: float32 `[B, V]`."""
        step = len(self.rows) if logits.device.type == "cpu" else rows_per_chunk(logits)
        for start in range(0, len(self.rows), max(1, step)):
            part = slice(start, start + step)
            forbid_tokens(logits, self.rows[part], self.allowed[part])
