"""Blocks for layers with a sliding window, which are freed as soon as they lie before the window.

The router hands out blocks for the whole length of a sequence, as layers with full attention need them. For layers with
a window, the shard keeps a pool of its own, large enough that it never runs out, and a second block table. Nothing here
loops over sequences.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gridwork_server._proto import shard_pb2 as pb


def most_in_use(window: int, limits: "pb.WarmupRequest") -> int:
    """Maximum number of blocks in use at once. window: tokens, the computed token included."""
    block_size = limits.block_size_tokens
    # Between steps: a window that begins and ends within blocks, and room for drafts after it. In a step: the tokens
    # that it computes besides, one more block for each sequence that it begins, and one for a prefill beside any number
    # of decodes.
    kept = limits.max_sequences * (-(-(window + limits.max_drafts) // block_size) + 1)
    return kept + limits.max_sequences + -(-limits.max_batch_tokens // block_size) + 1


class WindowBlocks:
    """The pool of blocks, and the tables of all sequences."""

    def __init__(self, window: int, limits: "pb.WarmupRequest", max_blocks: int) -> None:
        """max_blocks: maximum number of blocks of one sequence."""
        self.window, self.block_size = window, limits.block_size_tokens
        self.num_blocks = most_in_use(window, limits)
        self.null_block = self.num_blocks
        """Block after the last one. Its slots stay zero."""
        self.tables = np.full((limits.max_sequences, max_blocks), self.null_block, dtype=np.int32)
        """int32 `[max_sequences, max_blocks]`: columns follow the token's position, as in the router's table."""
        self._first = np.zeros(limits.max_sequences, dtype=np.int64)
        self._end = np.zeros(limits.max_sequences, dtype=np.int64)
        self._free = np.arange(self.num_blocks - 1, -1, -1, dtype=np.int32)
        self._num_free = self.num_blocks

    def reserve(self, ids: np.ndarray, ends: np.ndarray) -> None:
        """Allocates blocks for all positions before `ends`. ids, ends: int64 [B]."""
        needed = -(-ends // self.block_size)
        num_new = np.maximum(needed - self._end[ids], 0)
        total = int(num_new.sum())
        if total == 0:
            return
        if total > self._num_free:
            raise RuntimeError(f"{total} blocks are needed for windows, and {self._num_free} are free")
        rows, columns = _spread(ids, self._end[ids], num_new)
        self.tables[rows, columns] = self._free[self._num_free - total : self._num_free]
        self._num_free -= total
        self._end[ids] += num_new

    def trim(self, ids: np.ndarray, positions: np.ndarray) -> None:
        """Frees blocks that no token from `positions` on sees. ids, positions: int64 [B]."""
        first = np.minimum(np.maximum(positions - self.window + 1, 0) // self.block_size, self._end[ids])
        self._give_back(ids, np.maximum(first - self._first[ids], 0))

    def release(self, ids: np.ndarray) -> None:
        """Frees all blocks of sequences. ids: int64 [B], each once."""
        self._give_back(ids, self._end[ids] - self._first[ids])
        self._first[ids] = 0
        self._end[ids] = 0

    def _give_back(self, ids: np.ndarray, counts: np.ndarray) -> None:
        total = int(counts.sum())
        if total == 0:
            return
        rows, columns = _spread(ids, self._first[ids], counts)
        self._free[self._num_free : self._num_free + total] = self.tables[rows, columns]
        self._num_free += total
        self.tables[rows, columns] = self.null_block
        self._first[ids] += counts


def _spread(ids: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of `counts` entries in each row, beginning at `starts`. int64 [B] each; returns int64 [sum]."""
    total = int(counts.sum())
    within = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(ids, counts), np.repeat(starts, counts) + within
