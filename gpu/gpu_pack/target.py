"""The machine that a pack is for."""

from pathlib import Path

from packaging.markers import default_environment

ROOT = Path(__file__).resolve().parents[2]

PYTHON = "3.12"
ARCHITECTURE = "x86_64"
GLIBC = (2, 31)
"""The oldest glibc: that of the wheel of llguidance. PyTorch's own wheels take 2.28."""

MACHINE = frozenset({"torch", "triton", "numpy"})
"""Packages that the machine brings, with everything that they need. PyTorch is built for its numpy."""


class PackError(Exception):
    """A pack cannot be made. The message says what to do."""


def environment() -> dict[str, str]:
    """Values of the markers of requirements on the machine."""
    return {name: str(value) for name, value in default_environment().items()} | {
        "python_version": PYTHON,
        "python_full_version": f"{PYTHON}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": ARCHITECTURE,
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
        "extra": "",
    }


def platforms() -> list[str]:
    """Platform tags of wheels that the machine can use, the newest first."""
    minor = [f"manylinux_{GLIBC[0]}_{each}_{ARCHITECTURE}" for each in range(GLIBC[1], 4, -1)]
    return [*minor, *(f"{name}_{ARCHITECTURE}" for name in ("manylinux2014", "manylinux2010", "manylinux1"))]
