"""Memory of a GPU that steps take beside the cache, measured by running the largest steps before the cache is sized.

The largest prefill takes the most memory for activations, sampling sorts the logits of all sequences, and recorded
decode steps keep their memory for good. All of these run with a cache that just holds them. PyTorch's allocator keeps
memory that it once got from the driver, so the driver's count of free memory tells the peak.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from gridwork_kernels.token_masks import num_words
from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.paths.base import ModelPath
from gridwork_server.paths.memory import free_cuda_bytes
from gridwork_server.paths.sequence_table import SequenceTable
from gridwork_server.sampling import Sampler, TokenMasks, costly_parameters

if TYPE_CHECKING:
    from gridwork_server.paths.sequence_table import StepBatch

_TOP_LOGPROBS = 20
"""Top log-probabilities of each token. Requests seldom want more, and more take hardly more memory."""


def step_bytes(path: ModelPath, limits: "pb.WarmupRequest", vocab_size: int, device: torch.device) -> int:
    """Bytes on the GPU that steps within these limits take beside the cache; 0 on CPUs, where the cache takes a share
    that leaves enough. Leaves the path with a cache of some size. Raises RuntimeError when memory runs out."""
    if device.type != "cuda" or not path.allocates_cache:
        return 0
    before = free_cuda_bytes(device)
    largest_steps(path, limits, vocab_size, device)
    torch.cuda.synchronize(device)
    # The driver's count, since the peak matters, and not what PyTorch has in use now.
    taken = before - torch.cuda.mem_get_info(device)[0]
    return int(max(0, taken - path.cache_bytes))


@torch.inference_mode()
def largest_steps(path: ModelPath, limits: "pb.WarmupRequest", vocab_size: int, device: torch.device) -> None:
    """Runs the largest prefill, and samples for the maximum number of sequences. Decode steps are recorded when the
    cache is allocated. The cache stays."""
    block_size = limits.block_size_tokens
    longest = limits.max_total_tokens or limits.max_batch_tokens
    tokens = min(limits.max_batch_tokens, longest)
    # Several prompts, where one prompt cannot fill a step.
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
    _sample_with_everything(limits.max_sequences, vocab_size, device)


def _sample_with_everything(count: int, vocab_size: int, device: torch.device) -> None:
    """Samples for `count` sequences, each of which needs all stages that take memory."""
    settings = costly_parameters()
    sampler = Sampler(count, vocab_size, device)
    for id in range(count):
        sampler.admit(id, np.zeros(1, dtype=np.int32), 1, settings, logprobs=True, top_n=_TOP_LOGPROBS)
    logits = torch.zeros(count, vocab_size, dtype=torch.float32, device=device)
    allowed = torch.full((count, num_words(vocab_size)), -1, dtype=torch.int32)
    masks = TokenMasks(np.arange(count), allowed)
    sampler.begin(logits, np.arange(count), np.ones(count, dtype=np.int64), masks)


def _shares(total: int, most: int, count: int) -> np.ndarray:
    """int64 `[count]`: up to `most` tokens each, and up to `total` together."""
    taken = np.minimum(np.arange(1, count + 1) * most, total)
    return np.diff(taken, prepend=0)


def _every_row(batch: "StepBatch", most: int) -> np.ndarray:
    """int64: tokens of a batch whose logits are wanted, as many as sequences can decode at once."""
    return np.arange(min(len(batch.positions), most))
