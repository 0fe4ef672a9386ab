"""Checks of greedy tokens against grammars: a token that its grammar allows needs no mask.

The largest of all logits is also the largest of the allowed ones when its token is allowed. Masks take a pass over the
vocabulary in the grammar and another over the logits, a check takes microseconds, and most tokens pass. On a GPU masks
cost nothing, since they are computed beside the forward pass; on a CPU both want the same cores.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from gridwork_server.sampling.matching import Matching
    from gridwork_server.sampling.token_masks import TokenMasks


@dataclass
class TokenChecks:
    """R of B rows whose greedy tokens are checked."""

    rows: np.ndarray
    """int64 `[R]`, ascending: the rows of the logits, on the host."""
    matchings: "list[Matching]"
    """The sequence of each row, within its grammar."""
    before: Callable[[], None] | None
    """Feeds the tokens of the step before; called first."""
    masks_of: "Callable[[list[int]], TokenMasks]"
    """Computes the masks of some of these rows, by index."""
    failures: dict[int, str] = field(default_factory=dict)
    """Reasons why sequences have no mask, by id, once their tokens were checked."""

    def refused(self, tokens: torch.Tensor, maxima: torch.Tensor) -> "TokenMasks | None":
        """Masks of the rows whose token is not allowed; None when all are. Allowed tokens are added to their texts.

        tokens: int64 `[B]`, maxima: float32 `[B]`, the largest logit of each row and its token, on the host. Rows with
        NaN fail in any case, so they are left as they are.
        """
        if self.before is not None:
            self.before()
        found = maxima.numpy()[self.rows]
        refused = []
        for index, token in enumerate(tokens.numpy()[self.rows].tolist()):
            maximum = found[index]
            # Where everything else is forbidden, a grammar's tokens count more.
            if maximum == -np.inf or (maximum == maximum and not self.matchings[index].take(token)):
                refused.append(index)
        if not refused:
            return None
        masks = self.masks_of(refused)
        self.failures.update(masks.failures)
        return masks
