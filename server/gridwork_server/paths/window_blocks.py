"""Blocks for layers that see only the last so many tokens: given back as soon as they lie behind the window.

The router hands out blocks by a sequence's whole length, which is what layers need that see everything. For those that
do not, the shard keeps a pool of its own, of a size that can never run out, and a second block table. Nothing here
loops over sequences.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gridwork_server._proto import shard_pb2 as pb


def most_in_use(window: int, limits: "pb.WarmupRequest") -> int:
    """Blocks that can be in use at once. window: tokens, the computed one's own included."""
    block_size = limits.block_size_tokens
    # Between steps: a window that begins and ends within blocks, and room for drafts behind it. In a step: what it
    # computes besides, a block more for each sequence that it begins, and the block of prefill that goes beside any
    # number of decodes.
    kept = limits.max_sequences * (-(-(window + limits.max_drafts) // block_size) + 1)
    return kept + limits.max_sequences + -(-limits.max_batch_tokens // block_size) + 1


class WindowBlocks:
    """The pool and the tables."""

    def __init__(self, window: int, limits: "pb.WarmupRequest", max_blocks: int) -> None:
        """max_blocks: of one sequence."""
        self.window, self.block_size = window, limits.block_size_tokens
        self.num_blocks = most_in_use(window, limits)
        self.null_block = self.num_blocks
        """Behind the last one; its slots stay zero."""
        self.tables = np.full((limits.max_sequences, max_blocks), self.null_block, dtype=np.int32)
        """int32 `[max_sequences, max_blocks]`: by a token's position, as in a table of all blocks."""
        self._first = np.zeros(limits.max_sequences, dtype=np.int64)
        self._end = np.zeros(limits.max_sequences, dtype=np.int64)
        self._free = np.arange(self.num_blocks - 1, -1, -1, dtype=np.int32)
        self._num_free = self.num_blocks

    def reserve(self, ids: np.ndarray, ends: np.ndarray) -> None:
        """Takes blocks for all positions before `ends`. ids, ends: int64 [B]."""
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
        """Gives back what the tokens from `positions` on do not see. ids, positions: int64 [B]."""
        first = np.minimum(np.maximum(positions - self.window + 1, 0) // self.block_size, self._end[ids])
        self._give_back(ids, np.maximum(first - self._first[ids], 0))

    def release(self, ids: np.ndarray) -> None:
        """Gives back all that sequences hold. ids: int64 [B], each once."""
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
    """Rows and columns of `counts` entries from `starts` on in each row. int64 [B] each; returns int64 [sum]."""
    total = int(counts.sum())
    within = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(ids, counts), np.repeat(starts, counts) + within
