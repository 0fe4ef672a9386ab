"""The compiled CPU kernels, loaded once."""

import ctypes
import functools
from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("_cpu.so")


@functools.cache
def load() -> bool:
    """Registers `torch.ops.gridwork_cpu`. False when the library was not built (other architectures)."""
    if not LIBRARY.exists():
        return False
    torch.ops.load_library(str(LIBRARY))
    return True


def has_avx512() -> bool:
    """Whether the kernels that need AVX-512 run here."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and load()


def set_num_threads(count: int) -> None:
    """Threads that the kernels use, the caller's included. They are not PyTorch's."""
    if load():
        ctypes.CDLL(str(LIBRARY)).gridwork_set_num_threads(ctypes.c_int64(count))
