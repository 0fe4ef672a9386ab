"""Masks of the tokens that may be sampled, as grammars give them, and their application to logits."""

from dataclasses import dataclass, field

import numpy as np
import torch

from gridwork_kernels.device_copies import to_device
from gridwork_server.sampling.weights import rows_per_chunk

_LOWEST = torch.finfo(torch.float32).min
"""Logit of a token that a bias forbids, and that is taken only where the mask allows no other."""


@dataclass(frozen=True)
class TokenMasks:
    """Tokens that R of B rows may sample."""

    rows: np.ndarray
    """int64 `[R]`, ascending: the rows of the logits."""
    allowed: torch.Tensor
    """int32 `[R, W]`, on the host, pinned where the logits are on a GPU: a bit for each token, the lowest first. Tokens
    beyond the bits are not allowed."""
    failures: dict[int, str] = field(default_factory=dict)
    """Reasons why sequences have no mask, by id. Their rows mean nothing."""
    behind_end: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """int64: rows behind a draft that ends the grammar. Nothing is taken from them."""

    def apply(self, logits: torch.Tensor) -> None:
        """Sets the logits of tokens that are not allowed to -inf, in place. logits: float32 `[B, V]`."""
        every = len(self.rows) == len(logits)
        step = rows_per_chunk(logits)
        for start in range(0, len(self.rows), step):
            part = slice(start, start + step)
            forbidden = _forbidden(self.allowed[part], logits.shape[1], logits.device)
            if every:
                _forbid(logits[part], forbidden)
                continue
            index = to_device(self.rows[part], logits.device)
            chunk = logits.index_select(0, index)
            _forbid(chunk, forbidden)
            logits.index_copy_(0, index, chunk)


def num_words(vocab_size: int) -> int:
    """Number of 32-bit words that a mask of this many tokens has."""
    return -(-vocab_size // 32)


def _forbid(logits: torch.Tensor, forbidden: torch.Tensor) -> None:
    logits.clamp_(min=_LOWEST).masked_fill_(forbidden, -torch.inf)


def _forbidden(allowed: torch.Tensor, vocab_size: int, device: torch.device) -> torch.Tensor:
    """bool `[R, V]` on a device: the tokens whose bits are not set. allowed: int32 `[R, W]`."""
    words = ~allowed
    missing = num_words(vocab_size) - words.shape[1]
    if missing > 0:
        words = torch.nn.functional.pad(words, (0, missing), value=-1)
    if device.type == "cpu":
        packed = words.numpy().view(np.uint8)
        bits = np.unpackbits(packed, axis=1, count=vocab_size, bitorder="little")
        return torch.from_numpy(bits).view(torch.bool)
    bytes_ = to_device(words, device).view(torch.uint8)
    shifts = torch.arange(8, dtype=torch.uint8, device=device)
    return ((bytes_[:, :, None] >> shifts) & 1).flatten(1)[:, :vocab_size].bool()
