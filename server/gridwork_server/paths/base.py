"""The interface of paths, which are the ways of running a model: for running steps and for checking the path."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from gridwork_server._proto import shard_pb2 as pb
    from gridwork_server.paths.sequence_table import SequenceTable, StepBatch


@dataclass(frozen=True)
class CacheNeeds:
    """Memory that a path takes on this rank."""

    bytes_per_token: int
    """Bytes for each token of a sequence's context; 0 when nothing grows with the context."""
    bytes_per_sequence: int = 0
    """Bytes that each sequence takes besides."""
    window_bytes_per_token: int = 0
    """The part of `bytes_per_token` that belongs to layers which see only a window of the context."""
    window_tokens: int = 0
    """Tokens of the widest such window."""

    def without_windows(self) -> "CacheNeeds":
        """The needs when all layers keep the whole context."""
        return replace(self, window_bytes_per_token=0, window_tokens=0)


class ModelPath(ABC):
    """Runs the model over steps, and keeps what its sequences need between them.

    Callers ask for the capabilities below and never for a class.
    """

    name: str
    """`paged`, `batched` or `solo`."""
    attention_name: str
    """Attention implementation, for people to read."""
    needs: CacheNeeds
    notes: Sequence[str] = ()
    """Remarks on how the path runs, for people to read."""

    shares_blocks: bool = False
    """True if several sequences may hold the same block, so that its tokens are computed once."""
    takes_drafts: bool = False
    """True if a decode may compute several tokens, and the last of them again in the next step."""
    takes_device_tokens: bool = False
    """True if a step may have input tokens that are on the device alone (`StepBatch.device_tokens`)."""
    takes_positions: bool = False
    """True if `logits_at` works, so that the model can be told positions other than those in the cache."""
    allocates_cache: bool = False
    """True if `allocate` takes all memory of the cache at once, which `cache_bytes` then tells."""
    has_paged_attention: bool = False
    """True if layers attend by an implementation in `gridwork_kernels`, which `attention_name` names."""
    recomputes_alike: bool = False
    """True if tokens that are computed again are computed in calls of the same lengths as the first time."""
    check_block_size: int = 4
    """Block size of the cache that the path is checked with."""

    @property
    def is_recorded(self) -> bool:
        """True if recorded operations run in place of the model's code."""
        return False

    @property
    def foreign_operations(self) -> list[str]:
        """Recorded operations of PyTorch's whose results may depend on what else is computed; empty when nothing is
        recorded."""
        return []

    @property
    def decode_sizes(self) -> list[int]:
        """Numbers of sequences for which decode steps are replayed, ascending."""
        return []

    @property
    def cache_bytes(self) -> int:
        """Memory of keys and values, on paths with `allocates_cache`."""
        return 0

    def allocate(self, limits: "pb.WarmupRequest", num_blocks: int) -> None:
        """Makes everything whose size depends on the limits, in place of what was there. Raises RuntimeError or
        MemoryError when memory runs out. As it stands, for paths that allocate caches when they need them."""
        self.reset()

    @abstractmethod
    def forward(self, batch: "StepBatch", table: "SequenceTable", extra: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """Computes a step. extra: int64, tokens of the batch whose logits are wanted in addition to `batch.sampled`.
        Returns logits `[num_kept, vocab_size]` and the tokens of the batch that they belong to, int64 `[num_kept]`,
        ascending."""

    @abstractmethod
    def release(self, ids: np.ndarray) -> None:
        """Forgets sequences. ids: int64."""

    @abstractmethod
    def reset(self) -> None:
        """Forgets every sequence, and keeps the memory."""

    def give_up_shortcut(self, reason: str) -> str | None:
        """Gives up one way in which the path runs faster than by the model's own code. Returns its description; None
        when there is none left."""
        return None

    def without_replays(self) -> AbstractContextManager[None]:
        """Runs decode steps like other steps within the context."""
        return nullcontext()

    def logits_at(self, batch: "StepBatch", table: "SequenceTable", positions: np.ndarray) -> torch.Tensor:
        """Logits `[T, vocab_size]` of all tokens by the model's own code, for checks; only with `takes_positions`.
        positions: int64 `[T]`, told to the model, while keys lie at the batch's own positions."""
        raise NotImplementedError

    def spoil_cache(self, value: float) -> None:
        """Fills blocks that nothing was written to, keys with 0 and values with `value`, so that attending to one
        shows; recurrent states too. Paths without blocks do nothing."""
        return


def wanted_tokens(batch: "StepBatch", extra: np.ndarray) -> np.ndarray:
    """Tokens of the batch whose logits a step returns, int64, ascending."""
    return np.union1d(batch.sampled, extra) if len(extra) else batch.sampled
