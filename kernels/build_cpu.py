"""Compiles the CPU kernels of `cpu/` into one shared library inside the package.

Needs a C++20 compiler (`$CXX`, else `c++`) and the PyTorch that it will run with; uses PyTorch's stable ABI. Does
nothing when the library is newer than its sources. Instruction sets are chosen at run time, not here.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = sorted((HERE / "cpu").glob("*.cpp"))
LIBRARY = HERE / "gridwork_kernels" / "_cpu.so"


def main() -> int:
    newest_source = max(path.stat().st_mtime for path in [*(HERE / "cpu").iterdir(), Path(__file__)])
    if LIBRARY.exists() and LIBRARY.stat().st_mtime > newest_source:
        return 0
    if "x86_64" not in os.uname().machine:
        print("no CPU kernels for this architecture; PyTorch's own operations are used")
        return 0
    from torch.utils.cpp_extension import include_paths, library_paths

    partial = LIBRARY.with_suffix(f".{os.getpid()}.partial")
    command = [
        os.environ.get("CXX", "c++"),
        *("-std=c++20", "-O3", "-fPIC", "-shared", "-pthread"),
        *(f"-I{path}" for path in include_paths()),
        *map(str, SOURCES),
        *("-o", str(partial)),
        *(f"-L{path}" for path in library_paths()),
        *("-ltorch", "-ltorch_cpu"),
    ]
    print("compiling the CPU kernels", flush=True)
    result = subprocess.run(command, check=False)
    if result.returncode != 0:
        partial.unlink(missing_ok=True)
        print(f"error: the CPU kernels could not be compiled with {command[0]}", file=sys.stderr)
        return 1
    partial.replace(LIBRARY)
    return 0


if __name__ == "__main__":
    sys.exit(main())
