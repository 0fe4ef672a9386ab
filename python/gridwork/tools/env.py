"""`gridwork env`: what belongs in a report of a problem."""

import argparse
import os
import platform
import subprocess
from importlib import metadata

from gridwork import program
from gridwork.errors import EngineDied

_PACKAGES = (
    *("gridwork", "torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "numpy", "llguidance"),
    *("triton", "flash-attn", "accelerate", "grpcio", "protobuf", "aiohttp"),
)
_PREFIXES = ("GRIDWORK_", "CUDA", "OMP_", "MKL_", "HF_", "TORCH", "PYTORCH_", "ATEN_", "LD_", "NCCL_", "TRANSFORMERS_")
_SECRET_WORDS = ("TOKEN", "SECRET", "PASSW", "KEY", "CREDENTIAL")


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("env", help="print what belongs in a report of a problem", description=__doc__)
    parser.set_defaults(run=run, takes_flags=False)


def run(args: argparse.Namespace) -> int:
    print(report())
    return 0


def report() -> str:
    """Versions, machine and settings, a line each, without secrets."""
    lines = [_of_launcher(), f"Python: {platform.python_version()}", f"glibc: {' '.join(platform.libc_ver())}"]
    lines += [f"{name}: {_version(name)}" for name in _PACKAGES]
    lines.append(f"CPU: {_cpu()}")
    lines.append(f"CPU kernels: {_kernels()}")
    lines += [f"{name}={_shown(name)}" for name in sorted(os.environ) if name.startswith(_PREFIXES)]
    return "\n".join(lines)


def _of_launcher() -> str:
    try:
        done = subprocess.run([program.find(), "--env"], capture_output=True, text=True, check=False)
    except EngineDied as error:
        return f"Launcher: {error}"
    return (done.stdout or done.stderr).strip()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        models = []
    return models[0] if models else platform.machine()


def _kernels() -> str:
    """The instruction set of the kernels that would be loaded."""
    try:
        from gridwork_kernels import cpu_library

        return cpu_library.load() or f"none, PyTorch's operations are used ({cpu_library.instruction_set()})"
    except Exception as error:
        return f"cannot be loaded: {error}"


def _shown(name: str) -> str:
    is_secret = any(word in name.upper() for word in _SECRET_WORDS) and name != "HF_HUB_DISABLE_IMPLICIT_TOKEN"
    return "***" if is_secret else os.environ[name]
