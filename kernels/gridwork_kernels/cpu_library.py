"""Loads the compiled CPU kernels: the library for the fastest instruction set of the CPU."""

import ctypes
import functools
import os
from pathlib import Path

import torch

from gridwork_kernels import program_table


@functools.cache
def load() -> str | None:
    """Registers `torch.ops.gridwork_cpu` and names its instruction set. None where there is no library: on CPUs without
    AVX2, and where none was built. Raises RuntimeError for a library that was built from another table of programs."""
    path = _path()
    if path is None:
        return None
    torch.ops.load_library(str(path))
    _check_table(path)
    library().gridwork_set_num_threads.argtypes = [ctypes.c_int64]
    return path.stem.removeprefix(_PREFIX)


def _check_table(path: Path) -> None:
    """Compares the table of recorded programs that the library was built from with this package's."""
    function = getattr(library(), "gridwork_program_table_hash", None)
    if function is not None:
        function.restype = ctypes.c_uint64
    if function is None or function() != program_table.HASH:
        raise RuntimeError(
            f"{path} was built from another version of the table of recorded programs ({program_table.PATH.name}); "
            "rebuild the CPU kernels with `make build`"
        )


_PREFIX = "_cpu_"


def _path() -> Path | None:
    path = Path(__file__).with_name(f"{_PREFIX}{instruction_set()}.so")
    return path if path.exists() else None


def instruction_set() -> str | None:
    """The fastest instruction set that the CPU supports; `ATEN_CPU_CAPABILITY` lowers it, as for PyTorch."""
    match torch.backends.cpu.get_cpu_capability():
        case "AVX2":
            return "avx2"
        case "AVX512":
            if not torch.cpu._is_vnni_supported() or os.environ.get("ATEN_CPU_CAPABILITY"):
                return "avx512"
            if not torch.cpu._is_avx512_bf16_supported():
                return "avx512_vnni"
            # A process must request the tile registers from the operating system.
            if torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx():
                return "amx"
            # Intel's cores multiply pairs of bfloat16 at half the rate of float32, by measurement.
            return "avx512_vnni" if _is_of_intel(Path("/proc/cpuinfo").read_text()) else "avx512_bf16"
        case _:
            return None


def _is_of_intel(cpuinfo: str) -> bool:
    fields = (line.partition(":") for line in cpuinfo.splitlines())
    return any(key.strip() == "vendor_id" and value.strip() == "GenuineIntel" for key, _, value in fields)


@functools.cache
def library() -> ctypes.CDLL:
    """The library, for functions that are not PyTorch operations. Only valid where `load` returns a name."""
    return ctypes.CDLL(str(_path()))


def set_num_threads(count: int) -> None:
    """Sets the number of threads that the kernels use, including the caller. PyTorch's threads are others."""
    if load():
        library().gridwork_set_num_threads(count)
