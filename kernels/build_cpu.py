"""Compiles the CPU kernels of `cpu/` into shared libraries inside the package, one for each instruction set.

Needs a C++20 compiler (`$CXX`, else `c++`) and the PyTorch that it will run with, whose stable ABI it uses. Arguments
are names of instruction sets, or `native` for the one that this machine would use; without any, all are built. A
library that is newer than its sources stays as it is. `gridwork_kernels/cpu_library.py` chooses the library at run
time. Products and sums are fused only where a source says so; elsewhere they are rounded as in PyTorch.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CPU = HERE / "cpu"
SOURCES = sorted(CPU.rglob("*.cpp"))
BUILD = HERE / "build"
"""Object files, so that a change of one source compiles only that source."""
PACKAGE = HERE / "gridwork_kernels"
HEADERS = [*CPU.rglob("*.h"), PACKAGE / "program_table.def"]

AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
AVX512_VNNI = (*AVX512, "-mavx512vnni")
AVX512_BF16 = (*AVX512_VNNI, "-mavx512bf16")
AMX = (*AVX512_BF16, "-mamx-tile", "-mamx-bf16")


@dataclass(frozen=True)
class Library:
    flags: tuple[str, ...]
    like: str | None = None
    """Another library. This one links its objects of all sources that do not include `header`."""
    header: str = ""
    """The only header that uses the flags that `like` lacks."""


LIBRARIES = {
    "avx2": Library(AVX2),
    "avx512": Library(AVX512),
    "avx512_vnni": Library(AVX512_VNNI, "avx512", "common/simd_int.h"),
    "avx512_bf16": Library(AVX512_BF16),
    "amx": Library(AMX, "avx512_bf16", "common/amx.h"),
}


def main(wanted: Sequence[str]) -> int:
    """wanted: names of instruction sets, or `native`; all of them when empty."""
    if "x86_64" not in os.uname().machine:
        print("no CPU kernels for this architecture; PyTorch's own operations are used")
        return 0
    if "native" in wanted:
        from gridwork_kernels.cpu_library import instruction_set

        if (native := instruction_set()) is None:
            print("this CPU lacks AVX2; PyTorch's own operations are used")
            return 0
        wanted = [native if isa == "native" else isa for isa in wanted]
    if unknown := [isa for isa in wanted if isa not in LIBRARIES]:
        print(f"error: `{unknown[0]}` is not an instruction set; use native, {', '.join(LIBRARIES)}", file=sys.stderr)
        return 2
    newest_source = max(path.stat().st_mtime for path in [*SOURCES, *HEADERS, Path(__file__)])
    stale = {isa: path for isa in wanted or LIBRARIES if _is_stale(path := PACKAGE / f"_cpu_{isa}.so", newest_source)}
    if not stale:
        return 0
    from torch.utils.cpp_extension import include_paths, library_paths

    compiler = os.environ.get("CXX", "c++")
    common = ["-std=c++20", "-O3", "-ffp-contract=off", "-fPIC", "-pthread"]
    common += [f"-I{path}" for path in (CPU, PACKAGE, *include_paths())]
    link = [*(f"-L{path}" for path in library_paths()), "-ltorch", "-ltorch_cpu"]
    print(f"compiling the CPU kernels for {', '.join(stale)}", flush=True)
    BUILD.mkdir(exist_ok=True)
    begun = time.time()
    compiled_for = {isa: {source: _compiled_for(isa, source) for source in SOURCES} for isa in stale}
    objects = {(of, source) for sources in compiled_for.values() for source, of in sources.items()}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = pool.map(
            lambda item: _compile([compiler, *common, *LIBRARIES[item[0]].flags], item[1], _object(*item)),
            sorted(objects),
        )
        built = all(list(compiled))
    for isa, library in stale.items():
        partial = library.with_suffix(f".{os.getpid()}.partial")
        parts = [str(_object(of, source)) for source, of in compiled_for[isa].items()]
        if built and (built := _run([compiler, "-shared", "-pthread", *parts, "-o", str(partial), *link])):
            os.utime(partial, (begun, begun))
            partial.replace(library)
        partial.unlink(missing_ok=True)
    if not built:
        print(f"error: the CPU kernels could not be compiled with {compiler}", file=sys.stderr)
    return 0 if built else 1


def _compiled_for(isa: str, source: Path) -> str:
    """The library whose object of this source is linked."""
    library = LIBRARIES[isa]
    return isa if library.like is None or library.header in _included(source) else library.like


def _included(source: Path) -> set[str]:
    """Names of the kernels' own headers that a source includes, directly or indirectly."""
    direct = {*re.findall(r'^#include "(.+)"$', source.read_text(), re.MULTILINE)}
    return direct.union(*(_included(path) for path in HEADERS if _name(path) in direct))


def _name(header: Path) -> str:
    """A header's name in an `#include`."""
    return str(header.relative_to(CPU)) if header.is_relative_to(CPU) else header.name


def _object(isa: str, source: Path) -> Path:
    return BUILD / f"{isa}-{source.stem}.o"


def _is_stale(library: Path, newest_source: float) -> bool:
    return not library.exists() or library.stat().st_mtime <= newest_source


def _compile(command: list[str], source: Path, target: Path) -> bool:
    headers = [path for path in HEADERS if _name(path) in _included(source)]
    if not _is_stale(target, max(path.stat().st_mtime for path in [source, *headers, Path(__file__)])):
        return True
    partial, begun = target.with_suffix(f".{os.getpid()}.partial"), time.time()
    if not _run([*command, "-c", str(source), "-o", str(partial)]):
        return False
    os.utime(partial, (begun, begun))  # a source that was changed meanwhile is newer
    partial.replace(target)
    return True


def _run(command: list[str]) -> bool:
    return subprocess.run(command, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
