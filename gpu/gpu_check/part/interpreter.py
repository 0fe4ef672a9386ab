"""Triton's interpreter, which runs kernels on a CPU in a dry run."""

import functools
import importlib.metadata
from typing import Any

import torch
import triton
import triton.language as tl

from gpu_check.part.context import one_line


@triton.jit
def _count(until: Any, out: Any) -> None:
    total = 0
    for at in range(0, tl.load(until), 4):
        total += at
    tl.store(out, total)


@functools.cache
def problem() -> str:
    """The reason why the interpreter cannot run even a loop, or nothing. That of Triton 3.6 fails with numpy 2.4, while
    kernels for a GPU do not use it."""
    until, out = torch.tensor([10], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    try:
        _count[(1,)](until, out)
        if out.item() != 12:
            return f"Triton's interpreter computes {out.item()} for 0 + 4 + 8"
    except Exception as error:
        versions = " and ".join(f"{name} {importlib.metadata.version(name)}" for name in ("triton", "numpy"))
        return f"the interpreter of {versions} cannot run a loop ({one_line(error)})"
    return ""
