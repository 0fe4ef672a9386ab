"""The processor, memory and bandwidth of the machine that results are measured on."""

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from suite.paths import BENCHMARKS

_KERNEL_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8")


@dataclass(frozen=True)
class Machine:
    cpu: str
    cores: int
    flags: tuple[str, ...]  # CPU flags that decide which kernels can run
    memory_gib: int


def this_machine() -> Machine:
    cpu, flags = parse_cpuinfo(Path("/proc/cpuinfo").read_text())
    memory_gib = round(psutil.virtual_memory().total / (1 << 30))
    return Machine(cpu, os.cpu_count() or 1, flags, memory_gib)


def memory_gb_s() -> float:
    """Memory bandwidth in GB/s, measured in a process of its own, which gives its memory back."""
    program = str(BENCHMARKS / "tools/bandwidth.py")
    done = subprocess.run([sys.executable, program], check=True, capture_output=True, text=True)
    return float(done.stdout)


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """The processor's name and its flags that matter here, from the text of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    known = fields.get("flags", fields.get("Features", "")).split()
    name = fields.get("model name", platform.machine())
    # Virtual machines often hide the model's name; family and model number identify it all the same.
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields.get('model', '?')})"
    return name, tuple(flag for flag in _KERNEL_FLAGS if flag in known)
