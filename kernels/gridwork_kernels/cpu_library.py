"""The compiled CPU kernels, loaded once: the library for the widest vectors that the CPU has."""

import ctypes
import functools
from pathlib import Path

import torch

_LIBRARIES = {"AVX2": "avx2", "AVX512": "avx512"}
"""By PyTorch's name of what the CPU can do (which `ATEN_CPU_CAPABILITY` lowers)."""


@functools.cache
def load() -> str | None:
    """Registers `torch.ops.gridwork_cpu` and names its instruction set. None where there is no library: on CPUs without
    AVX2, and where none was built."""
    isa = _LIBRARIES.get(torch.backends.cpu.get_cpu_capability())
    path = Path(__file__).with_name(f"_cpu_{isa}.so")
    if isa is None or not path.exists():
        return None
    torch.ops.load_library(str(path))
    # Symbols of a library that is loaded already.
    _library().gridwork_set_num_threads.argtypes = [ctypes.c_int64]
    return isa


@functools.cache
def _library() -> ctypes.CDLL:
    isa = _LIBRARIES[torch.backends.cpu.get_cpu_capability()]
    return ctypes.CDLL(str(Path(__file__).with_name(f"_cpu_{isa}.so")))


def set_num_threads(count: int) -> None:
    """Threads that the kernels use, the caller's included. They are not PyTorch's."""
    if load():
        _library().gridwork_set_num_threads(count)
