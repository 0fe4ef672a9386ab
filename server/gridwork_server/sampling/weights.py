"""Softmax whose sums are equal bit for bit, whatever else is in the batch.

A token's relative probability is exp((logit - max) / temperature). Its weight is the same number as an integer in units
of 2^-40, rounded down. Sums decide which tokens stay and which one is drawn, so they must not depend on the order of
summation, which PyTorch chooses by shape and number of threads. Sums over the vocabulary are therefore added as a tree
of element-wise additions within blocks, and all later sums are of integers.
"""

import torch

# Tokens in a block of a row: block b of n holds the tokens b, b + n, b + 2n, … (strided, so that reductions over a
# block run along contiguous memory).
BLOCK = 64

# Weight of the most likely token. The sum over a vocabulary of 2^20 tokens stays below 2^60.
_LARGEST_WEIGHT = 1 << 40

# Elements in a chunk of rows, by device: on a CPU the temporaries stay in the cache.
_CHUNK_ELEMENTS = {"cpu": 1 << 19, "other": 1 << 25}


def rows_per_chunk(logits: torch.Tensor, factor: float = 1) -> int:
    """Number of rows to compute at once. factor: elements, as a multiple of those in a streaming pass."""
    elements = _CHUNK_ELEMENTS["cpu" if logits.device.type == "cpu" else "other"]
    return max(1, int(factor * elements) // logits.shape[1])


def relative_probabilities(
    logits: torch.Tensor, maxima: torch.Tensor, inverse_temperatures: torch.Tensor
) -> torch.Tensor:
    """float32 [R, n] in [0, 1] of logits float32 [R, n]; maxima and inverse_temperatures float32 [R, 1]."""
    return torch.sub(logits, maxima).mul_(inverse_temperatures).exp_()


def integer_weights(relative: torch.Tensor) -> torch.Tensor:
    """int64 weights of relative probabilities, which are 1 for the most likely token."""
    return (relative.to(torch.float64) * _LARGEST_WEIGHT).to(torch.int64)


def block_members(blocks: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """Token ids [..., BLOCK] of blocks [...]. Ids past the vocabulary's end belong to the padding of `in_blocks`."""
    return blocks.unsqueeze(-1) + num_blocks * torch.arange(BLOCK, device=blocks.device)


def in_blocks(values: torch.Tensor, padding: float) -> torch.Tensor:
    """Views [R, V] as [R, BLOCK, ceil(V / BLOCK)]. The end is padded where V is no multiple of BLOCK."""
    missing = -values.shape[1] % BLOCK
    if missing:
        values = torch.nn.functional.pad(values, (0, missing), value=padding)
    return values.view(values.shape[0], BLOCK, -1)


def block_weights(relative: torch.Tensor) -> torch.Tensor:
    """Weights of blocks, int64 [R, ceil(V / BLOCK)], from float32 [R, V], which is overwritten."""
    blocks = in_blocks(relative, 0)
    half = BLOCK // 2
    while half:
        blocks[:, :half] += blocks[:, half : 2 * half]
        half //= 2
    return integer_weights(blocks[:, 0])


def pick(weights: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Chooses by the inverse CDF: the first index at which the running sum exceeds uniform times the total.

    weights: int64 [R, n] with a positive sum; uniforms: float64 [R, 1] in [0, 1). Returns the index int64 [R, 1], and
    the place of the target within the picked weight, float64 [R, 1] in [0, 1): again a uniform number.
    """
    running = weights.cumsum(1)
    totals = running[:, -1:]
    targets = torch.minimum((uniforms * totals).to(torch.int64), totals - 1)
    index = torch.searchsorted(running, targets, right=True).clamp_(max=weights.shape[1] - 1)
    picked = weights.gather(1, index)
    inside = targets - (running.gather(1, index) - picked)
    return index, inside.to(torch.float64) / picked
