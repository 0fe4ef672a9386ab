"""Number of blocks that the KV cache gets, from the memory there is and the router's limits."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gridwork_server.errors import LimitError
from gridwork_server.paths.base import CacheNeeds
from gridwork_server.paths.window_blocks import most_in_use

if TYPE_CHECKING:
    from gridwork_server._proto import shard_pb2 as pb
    from gridwork_server.parallel.group import RankGroup

_KEPT = 4
"""With a prefix cache, allow up to this many times the blocks that can be in use at once."""


@dataclass(frozen=True)
class CacheSize:
    """Size of the cache, agreed among the ranks."""

    num_blocks: int
    bytes: int
    """Memory over all ranks."""
    bytes_per_token: int
    """Memory for each token over all ranks."""

    def check(self, limits: "pb.WarmupRequest") -> None:
        """Raises LimitError when the cache is too small for the limits: on every rank, since all have the same size."""
        if self.num_blocks == 0:
            needed = limits.block_size_tokens * self.bytes_per_token
            raise LimitError(
                f"the memory for it does not hold one block of {limits.block_size_tokens} tokens, which takes {needed} "
                "bytes; give it more with --kv-cache-memory"
            )
        capacity = self.num_blocks * limits.block_size_tokens
        if capacity < limits.max_total_tokens:
            raise LimitError(
                f"it would hold {capacity} tokens, too few for one sequence of {limits.max_total_tokens} tokens; set "
                f"--max-total-tokens to {capacity} or less, or give it more memory with --kv-cache-memory"
            )


def cache_size(needs: CacheNeeds, limits: "pb.WarmupRequest", budget: int, group: "RankGroup") -> CacheSize:
    """Size of the cache within a budget of bytes on this rank. Raises LimitError when the budget is too small for what
    sequences take besides blocks."""
    fixed = needs.bytes_per_sequence * limits.max_sequences
    if fixed > budget:
        raise LimitError(
            f"the states of {limits.max_sequences} sequences take {fixed} bytes, and the memory for them is "
            f"{budget}; give a smaller --max-batch-size, or more memory with --kv-cache-memory"
        )
    # Without a limit every sequence may become as long as there is memory, and the ids of its tokens take some too.
    id_bytes = 0 if limits.max_total_tokens else np.dtype(np.int32).itemsize * limits.max_sequences
    num_blocks = _num_blocks(needs, limits, budget - fixed, id_bytes)
    if limits.max_total_tokens:
        longest = -(-(limits.max_total_tokens + 1) // limits.block_size_tokens)
        num_blocks = min(num_blocks, longest * limits.max_sequences * (_KEPT if limits.prefix_cache else 1))
    num_blocks = min(group.minimum(num_blocks), 2**31 // limits.block_size_tokens)
    in_windows = min(num_blocks, most_in_use(needs.window_tokens, limits))
    local_bytes = limits.block_size_tokens * (
        num_blocks * (needs.bytes_per_token - needs.window_bytes_per_token) + in_windows * needs.window_bytes_per_token
    )
    bytes_per_token, total_bytes = group.sum([needs.bytes_per_token, local_bytes])
    return CacheSize(num_blocks, total_bytes, bytes_per_token)


def _num_blocks(needs: CacheNeeds, limits: "pb.WarmupRequest", budget: int, id_bytes: int) -> int:
    """Blocks that fit into a budget of bytes. id_bytes: memory for the id of each token. Layers that see a window take
    no more than the blocks that windows can use at once."""
    block = limits.block_size_tokens
    num_blocks = budget // max(1, (needs.bytes_per_token + id_bytes) * block)
    most = most_in_use(needs.window_tokens, limits)
    if not needs.window_tokens or num_blocks <= most:
        return num_blocks
    rest = budget - most * block * (needs.bytes_per_token + id_bytes)
    return most + rest // max(1, (needs.bytes_per_token - needs.window_bytes_per_token + id_bytes) * block)
