"""The largest logit of each row, for greedy sequences."""

import ctypes
import functools
from typing import Any

import torch

from gridwork_kernels import cpu_library


def reference(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The plain form of `argmax`."""
    # On a CPU numpy's argmax is several times faster than PyTorch's, on one thread.
    index = torch.from_numpy(logits.numpy().argmax(1)) if logits.device.type == "cpu" else logits.argmax(1)
    return index, logits.gather(1, index[:, None])[:, 0]


def argmax(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the index of each row's largest value, int64 `[B]`, and the value, float32 `[B]`. Of equal values the
    first counts, and NaN is larger than any number.

    logits: float32 `[B, vocab_size]` with `vocab_size` of at least 1, a row's values contiguous.
    """
    compiled = _compiled() if logits.device.type == "cpu" else None
    if compiled is None:
        return reference(logits)
    rows, width = logits.shape
    # A plain function call: a PyTorch operation takes several times as long for one row.
    indices, maxima = torch.empty(rows, dtype=torch.int64), torch.empty(rows, dtype=torch.float32)
    compiled(logits.data_ptr(), rows, width, logits.stride(0), indices.data_ptr(), maxima.data_ptr())
    return indices, maxima


@functools.cache
def _compiled() -> Any:
    if cpu_library.load() is None:
        return None
    function = cpu_library.library().gridwork_argmax
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, number, number, number, pointer, pointer]
    function.restype = None
    return function
