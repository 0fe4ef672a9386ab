"""Helpers of the sampler's tests."""

import numpy as np
import torch

from gridwork_server.sampling import Sampler

from .naive import Parameters


def sampler_for(vocab_size: int, sequences: list[Parameters], **admit) -> Sampler:
    """Makes a sampler with a sequence for each of the parameters: ids from 0, with a prompt of one token."""
    sampler = Sampler(max(len(sequences), 1), vocab_size, "cpu")
    for sequence_id, params in enumerate(sequences):
        sampler.admit(sequence_id, np.zeros(1, dtype=np.int32), 1, params, **admit)
    return sampler


def sample(sampler: Sampler, logits: torch.Tensor, ids=None, positions=None):
    """Samples one step on a copy of the logits."""
    ids = np.arange(len(logits)) if ids is None else np.asarray(ids)
    positions = np.ones(len(logits), dtype=np.int64) if positions is None else np.asarray(positions)
    return sampler.sample(logits.clone(), ids, positions)


def peaked_logits(rows: int, vocab_size: int, seed: int = 0, coarse: bool = False) -> torch.Tensor:
    """Makes logits like a model's: a broad floor, and some dozens of tokens far above it.

    coarse: rounded to bfloat16, so that many of them are equal.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab_size, generator=generator) * 2
    peaks = torch.randint(0, vocab_size, (rows, 40), generator=generator)
    logits.scatter_add_(1, peaks, torch.rand(rows, 40, generator=generator) * 12)
    return logits.bfloat16().float() if coarse else logits
