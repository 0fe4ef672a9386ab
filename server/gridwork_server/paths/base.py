"""What every way of running a model offers to the runner."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from gridwork_server._proto import shard_pb2 as pb
    from gridwork_server.paths.sequence_table import SequenceTable, StepBatch


@dataclass(frozen=True)
class CacheNeeds:
    """Memory that a path takes on this rank."""

    bytes_per_token: int
    """Of a sequence's context; 0 when nothing grows with it."""
    bytes_per_sequence: int = 0
    """Whatever a sequence takes besides."""
    window_bytes_per_token: int = 0
    """What of `bytes_per_token` is for layers that see only a window of the context."""
    window_tokens: int = 0
    """The widest such window."""

    def without_windows(self) -> "CacheNeeds":
        """When all layers keep the whole context."""
        return replace(self, window_bytes_per_token=0, window_tokens=0)


class ModelPath(Protocol):
    """Runs the model over steps, and keeps what its sequences need between them."""

    name: str
    """`paged`, `batched` or `solo`."""
    attention_name: str
    """Attention implementation, for people to read."""
    needs: CacheNeeds
    shares_blocks: bool
    """Whether sequences may be given the same blocks, so that what stands there need not be computed again."""
    takes_drafts: bool
    """Whether a decode may compute several tokens, and the last of them again in the next step."""

    def allocate(self, limits: "pb.WarmupRequest", num_blocks: int) -> None:
        """Makes all that the limits determine the size of, in place of what was there. Raises RuntimeError or
        MemoryError when there is no memory for it."""

    def forward(self, batch: "StepBatch", table: "SequenceTable", extra: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """Computes a step. extra: int64, tokens of the batch whose logits are wanted besides those behind
        which a token is sampled. Returns logits `[num_kept, vocab_size]` and the tokens of the batch that they belong
        to, int64 `[num_kept]`, sorted."""

    def release(self, ids: np.ndarray) -> None:
        """Forgets what is kept of sequences. ids: int64."""

    def reset(self) -> None:
        """Forgets every sequence, and keeps the memory."""


def wanted_tokens(batch: "StepBatch", extra: np.ndarray) -> np.ndarray:
    """The tokens of the batch whose logits a step gives, int64, sorted."""
    return np.union1d(batch.sampled, extra) if len(extra) else batch.sampled
