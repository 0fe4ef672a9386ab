"""Logits of the tokens that masks forbid."""

import ctypes
import functools
from typing import Any

import numpy as np
import torch

from gridwork_kernels import cpu_library
from gridwork_kernels.device_copies import to_device

_LOWEST = torch.finfo(torch.float32).min
_SHIFTS = range(8)


def num_words(vocab_size: int) -> int:
    """Number of 32-bit words that a mask of this many tokens has."""
    return -(-vocab_size // 32)


def reference(logits: torch.Tensor, rows: torch.Tensor, allowed: torch.Tensor) -> None:
    """The plain form of `forbid_tokens`."""
    missing = num_words(logits.shape[1]) - allowed.shape[1]
    if missing > 0:
        allowed = torch.nn.functional.pad(allowed, (0, missing))
    shifts = torch.tensor(_SHIFTS, dtype=torch.uint8, device=allowed.device)
    bits = ((allowed.contiguous().view(torch.uint8)[:, :, None] >> shifts) & 1).flatten(1)[:, : logits.shape[1]]
    changed = logits.index_select(0, rows).clamp_(min=_LOWEST).masked_fill_(bits == 0, -torch.inf)
    logits.index_copy_(0, rows, changed)


def forbid_tokens(logits: torch.Tensor, rows: np.ndarray, allowed: torch.Tensor) -> None:
    """Sets the logits of tokens that are not allowed to -inf, in place. Where an allowed token has -inf, it gets the
    lowest finite number, so that it can be taken where the mask allows no other.

    logits: float32 `[B, vocab_size]`, a row's values contiguous. rows: int64 `[R]`, each once. allowed: int32
    `[R, words]` on the host, a bit for each token, the lowest first; tokens beyond the bits are not allowed.
    """
    compiled = _compiled() if logits.device.type == "cpu" else None
    if compiled is None:
        reference(logits, to_device(rows, logits.device), to_device(allowed, logits.device))
        return
    rows, allowed = np.ascontiguousarray(rows), allowed.contiguous()
    compiled(
        logits.data_ptr(),
        logits.shape[1],
        logits.stride(0),
        rows.ctypes.data,
        len(rows),
        allowed.data_ptr(),
        allowed.shape[1],
    )


@functools.cache
def _compiled() -> Any:
    if cpu_library.load() is None:
        return None
    function = cpu_library.library().gridwork_forbid_tokens
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, number, number, pointer, number, pointer, number]
    function.restype = None
    return function
