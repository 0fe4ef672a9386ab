"""Part 1: the machine, the versions of its packages, the features that the code needs of them, and its limits."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

from gpu_check.part import probes
from gpu_check.part.context import Context

_PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "grpcio",
    "protobuf",
    "flash-attn",
)
_QUERY = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit"


def run(context: Context) -> None:
    """Reports facts first: they are wanted most where something fails."""
    _facts(context)
    if context.device_name == "cuda":
        problem = (
            "" if torch.cuda.is_available() else "torch.cuda.is_available() is False; compare driver and CUDA above"
        )
        context.check("PyTorch sees the GPU", problem)
    device = context.device
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        context.fact("compute capability", f"{properties.major}.{properties.minor}")
        context.fact("multiprocessors", properties.multi_processor_count)
        context.fact("memory", f"{properties.total_memory / 2**30:.1f} GiB")
    _limits(context)
    for probe in probes.PROBES:
        if not context.has_time(probe.name):
            return
        probes.report(context, probe)


def _facts(context: Context) -> None:
    context.fact("system", f"{platform.platform()}, {' '.join(platform.libc_ver())}")
    context.fact("Python", platform.python_version())
    context.fact("cores", os.cpu_count())
    for name in _PACKAGES:
        context.fact(name, _version(name))
    context.fact("CUDA of PyTorch", f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    driver = Path("/proc/driver/nvidia/version")
    context.fact("driver", driver.read_text().splitlines()[0] if driver.exists() else "none")
    context.fact("nvidia-smi", _output("nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"))
    context.fact("nvcc", _output("nvcc", "--version").rpartition("release ")[2] or "not found")
    context.fact("C compiler", os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or "not found")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _output(*command: str) -> str:
    """The last line that a program prints; empty where there is no such program."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"({type(error).__name__})"
    return " | ".join(line.strip() for line in (done.stdout or done.stderr).strip().splitlines()[-8:])


def _limits(context: Context) -> None:
    """Measures what the figures of part 8 are compared with."""
    from tools.gpu_roofline import TINY, Shape, bandwidth_bytes_per_s, matmul_flop_per_s

    shape = TINY if context.tiny else Shape()
    context.figure("memory bandwidth", bandwidth_bytes_per_s(context.device, shape) / 1e12, "TB/s")
    context.figure("matrix products in bfloat16", matmul_flop_per_s(context.device, shape) / 1e12, "TFLOP/s")
