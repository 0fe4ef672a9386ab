"""Removes from a folder of installed packages what no import of the server needs.

`torch`: headers go to another folder, since kernels are compiled with them; static libraries, tools and stubs go. For
`--variant cpu` so do Triton and those of NVIDIA's libraries that the CUDA build of PyTorch does not load when it is
imported: the ones that the dynamic linker names (`ldd`) must stay. `others`: packages' own tests, stubs of types, and
the sources from which Transformers generates its models.

All times become whole seconds, which every way to copy a layer keeps: a cache of the server compares them.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

UNUSED_ON_CPU = ("libtorch_cuda_linalg.so", "libcaffe2_nvrtc.so")
"""Libraries of PyTorch that it loads only for work on a GPU."""
TOOLS = "torch_shm_manager"
"""The only one of PyTorch's programs that it starts itself."""


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["torch", "others"])
    parser.add_argument("--site", type=Path, required=True, help="folder of the installed packages")
    parser.add_argument("--variant", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--headers", type=Path, help="folder that PyTorch's headers are moved to")
    args = parser.parse_args()
    before = size(args.site)
    if args.part == "torch":
        slim_torch(args.site, args.headers)
        if args.variant == "cpu":
            slim_for_cpu(args.site)
    else:
        slim_others(args.site)
    remove_tests(args.site)
    for path in [args.site, *args.site.rglob("*")]:
        os.utime(path, (int(path.lstat().st_mtime),) * 2, follow_symlinks=False)
    print(f"{args.site}: {before / 1e6:,.0f} MB, {size(args.site) / 1e6:,.0f} MB of it kept")
    for package in sorted(args.site.iterdir(), key=size, reverse=True)[:12]:
        print(f"{size(package) / 1e6:10,.1f} MB  {package.name}")
    return 0


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path, *path.rglob("*")]
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())


def slim_torch(site: Path, headers: Path | None) -> None:
    """Removes what only programs that compile against PyTorch or NVIDIA's libraries need."""
    torch = site / "torch"
    if headers is not None:
        shutil.move(torch / "include", headers)
    for program in (torch / "bin").iterdir():
        if program.name != TOOLS:
            program.unlink()
    for path in [torch / "share", *site.glob("nvidia/*/include"), *site.glob("nvidia/*/cccl")]:
        shutil.rmtree(path, ignore_errors=True)
    # Headers that are left: templates that PyTorch generates code from.
    for path in [*torch.rglob("*.h"), *(site / "torchgen").rglob("*.h")]:
        path.unlink()
    for path in [*torch.rglob("*.a"), *site.glob("nvidia/**/*.a"), *site.glob("nvidia/**/*.bc")]:
        path.unlink()


def slim_for_cpu(site: Path) -> None:
    """Removes what the CUDA build of PyTorch does not load on a machine without a GPU. The CPU-only build has nothing
    of it."""
    torch = site / "torch"
    for name in UNUSED_ON_CPU:
        (torch / "lib" / name).unlink(missing_ok=True)
    needed = set()
    for library in (torch / "lib").glob("*.so*"):
        listed = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=True).stdout
        needed |= {Path(path).resolve() for path in re.findall(r"=> (/\S+)", listed)}
    for library in site.glob("nvidia/**/*"):
        if library.is_file() and ".so" in library.name and library.resolve() not in needed:
            library.unlink()
    for package in ("triton", "cuda"):
        shutil.rmtree(site / package, ignore_errors=True)
        for info in site.glob(f"{package}[-_]*.dist-info"):
            shutil.rmtree(info)


def slim_others(site: Path) -> None:
    """Removes what nothing imports: a `modular_x.py` is there to generate `modeling_x.py`, and `.pyi` files and sources
    in C are for compilers."""
    for path in (site / "transformers" / "models").glob("*/**/modular_*"):
        path.unlink()
    for pattern in ("*.pyi", "*.pyx", "*.pxd", "*.c", "*.h", "*.cpp", "*.hpp", "*.a"):
        for path in site.rglob(pattern):
            path.unlink()


def remove_tests(site: Path) -> None:
    """Removes the tests of packages. `torch/testing` and `numpy/testing` are interfaces, not tests."""
    for folder in [*site.glob("*/**/tests"), *site.glob("*/**/test")]:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
