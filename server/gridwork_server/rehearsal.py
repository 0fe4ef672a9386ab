"""What steps take of a GPU's memory beside the cache, found by running the largest ones before the cache is sized.

The largest prefill takes the most memory for what lies between layers, and recorded decode steps keep theirs for good.
Both are run with a cache that holds them and no more. PyTorch's allocator keeps what it once had from the driver, so
that the driver's count of free memory tells how much it came to.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.memory import free_cuda_bytes
from gridwork_server.paths.base import ModelPath
from gridwork_server.paths.paged import PagedPath
from gridwork_server.sequence_table import SequenceTable

if TYPE_CHECKING:
    from gridwork_server.sequence_table import StepBatch

_LOGIT_COPIES = 4
"""What a step keeps of its logits at once, in float32, while they are sampled from."""


def step_bytes(path: ModelPath, limits: "pb.WarmupRequest", vocab_size: int, device: torch.device) -> int:
    """Bytes on the GPU that steps within these limits take beside the cache; 0 on CPUs, where the cache takes a share
    that leaves enough. The path has a cache of some size afterwards. Raises RuntimeError when there is not even memory
    for this."""
    if device.type != "cuda" or not isinstance(path, PagedPath):
        return 0
    before = free_cuda_bytes(device)
    largest_steps(path, limits, vocab_size, device)
    torch.cuda.synchronize(device)
    # Not what PyTorch has given back since, but what it has had.
    taken = before - torch.cuda.mem_get_info(device)[0]
    return int(max(0, taken - path.cache_bytes))


@torch.inference_mode()
def largest_steps(path: PagedPath, limits: "pb.WarmupRequest", vocab_size: int, device: torch.device) -> None:
    """Runs the largest prefill, and makes room for as many rows of logits as sequences can have; decode steps are
    recorded when the cache is allocated, which it stays."""
    block_size = limits.block_size_tokens
    longest = limits.max_total_tokens or limits.max_batch_tokens
    tokens = min(limits.max_batch_tokens, longest)
    # Several prompts, where one cannot be as long as a step.
    count = min(limits.max_sequences, -(-limits.max_batch_tokens // tokens))
    per_sequence = -(-tokens // block_size)
    num_blocks = count * per_sequence
    path.allocate(limits, num_blocks)
    table = SequenceTable(limits.max_sequences, max(longest, tokens), block_size, num_blocks)
    ids = np.arange(count)
    for id in ids.tolist():
        table.admit(pb.NewSequence(id=id, token_ids=[0] * tokens, num_prompt_tokens=tokens))
    table.append_blocks(ids, np.full(count, per_sequence), np.arange(num_blocks))
    batch = table.batch(ids, _shares(limits.max_batch_tokens, tokens, count))
    path.forward(batch, table, _every_row(batch, limits.max_sequences))
    path.release(ids)
    rows = torch.empty(_LOGIT_COPIES, limits.max_sequences, vocab_size, dtype=torch.float32, device=device)
    del rows


def _shares(total: int, most: int, count: int) -> np.ndarray:
    """int64 `[count]`: at most `most` each, `total` together as far as that goes."""
    taken = np.minimum(np.arange(1, count + 1) * most, total)
    return np.diff(taken, prepend=0)


def _every_row(batch: "StepBatch", most: int) -> np.ndarray:
    """int64: tokens of a batch whose logits are asked for, as many as sequences can decode at once."""
    return np.arange(min(len(batch.positions), most))
