"""Makes the pack: `make gpu-pack`, or

python -m gpu_pack --output gpu-pack --pip PYTHON_WITH_PIP --tools FOLDER_OF_CARGO_ZIGBUILD
"""

import argparse
import hashlib
import json
import lzma
import shutil
import sys
from pathlib import Path
from typing import Any

from gpu_pack import lock, programs, sources, wheels
from gpu_pack.target import ARCHITECTURE, GLIBC, PYTHON, ROOT, PackError

MAX_BYTES = 60 << 20
"""Maximum size of a pack."""
_OF_TESTS = ("pytest", "httpx", "psutil")
"""Packages of the tests whose helpers the check uses."""
_NOT_NEEDED = frozenset({"torch", "setuptools", "grpcio-tools", "aiohttp", "tqdm"})
"""Direct requirements that the machine has, or that only building and the Python API need."""
_MAKEFILE = """# Checks this machine: docs/gpu.md of the repository describes it.
PYTHON ?= python3

gpu-check:
\t@PYTHONPATH=source/gpu $(PYTHON) -m gpu_check --pack . --site site --results results \\
\t    --parts "$(GPU_PARTS)" $(GPU_ARGS)
.PHONY: gpu-check
"""


def main() -> int:
    """Makes a pack; returns the exit code."""
    parser = argparse.ArgumentParser(prog="gpu_pack", description="Makes the pack for a machine with a GPU.")
    parser.add_argument("--output", type=Path, default=ROOT / "gpu-pack", metavar="FOLDER")
    parser.add_argument("--pip", required=True, metavar="PYTHON", help="a Python that has pip")
    parser.add_argument("--tools", type=Path, required=True, metavar="FOLDER", help="folder of cargo-zigbuild")
    args = parser.parse_args()
    try:
        make(args.output.resolve(), args.pip, args.tools.resolve())
    except PackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def make(output: Path, pip: str, tools: Path) -> None:
    """Makes the pack beside its place, and moves it there when it is whole. Raises PackError."""
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "wheels").mkdir(parents=True)
    server = ROOT / "server"
    pinned = lock.read(server / "requirements.lock", server / "requirements-dev.lock")
    names = [name for name in lock.roots(server / "requirements.in") if name not in _NOT_NEEDED]
    found = wheels.gather([*names, *_OF_TESTS], pinned, [pip, "-m", "pip"], partial / "wheels")
    programs.build(tools, partial / "bin")
    needed = programs.check(partial / "bin")
    for name in programs.NAMES:
        _compress(partial / "bin" / name)
    num_sources = sources.copy(partial / "source")
    (partial / "Makefile").write_text(_MAKEFILE)
    contents = _contents(found, num_sources, needed)
    (partial / "contents.json").write_text(json.dumps(contents, indent=1) + "\n")
    size = size_of(partial)
    _print(contents, partial)
    check_size(size)
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)
    print(
        f"{output}: {size / 2**20:.1f} MiB of at most {MAX_BYTES >> 20}; for Python {PYTHON}, glibc {contents['glibc']}"
    )


def check_size(size: int) -> None:
    """Raises PackError when a pack is too large."""
    if size > MAX_BYTES:
        raise PackError(
            f"the pack has {size / 2**20:.1f} MiB, and at most {MAX_BYTES >> 20} travel; take a package out of "
            "server/requirements.in, or leave it to the machine (gpu/gpu_pack/target.py)"
        )


def size_of(folder: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _contents(found: list[wheels.Wheel], num_sources: int, needed: tuple[int, ...]) -> dict[str, Any]:
    entries = [
        {
            "name": wheel.name,
            "version": wheel.version,
            "file": wheel.file.name,
            "sha256": hashlib.sha256(wheel.file.read_bytes()).hexdigest(),
        }
        for wheel in found
    ]
    return {
        "commit": sources.commit(),
        "python": PYTHON,
        "architecture": ARCHITECTURE,
        "glibc": ".".join(map(str, GLIBC)),
        "glibc_of_programs": ".".join(map(str, needed)),
        "programs": list(programs.NAMES),
        "sources": num_sources,
        "needs_of_machine": wheels.needs_of_machine(found),
        "wheels": entries,
    }


def _compress(file: Path) -> None:
    """Replaces a file by a compressed one."""
    file.with_name(f"{file.name}.xz").write_bytes(lzma.compress(file.read_bytes()))
    file.unlink()


def _print(contents: dict[str, Any], folder: Path) -> None:
    """Says what is in the pack."""
    for wheel in contents["wheels"]:
        size = (folder / "wheels" / wheel["file"]).stat().st_size
        print(f"{size / 2**20:8.2f} MiB  {wheel['name']} {wheel['version']}")
    for name in contents["programs"]:
        size = (folder / "bin" / f"{name}.xz").stat().st_size
        print(f"{size / 2**20:8.2f} MiB  {name}, compressed; needs glibc {contents['glibc_of_programs']}")
    print(f"{size_of(folder / 'source') / 2**20:8.2f} MiB  {contents['sources']} source files of {contents['commit']}")
    print(f"the machine must have {'; '.join(contents['needs_of_machine'])}")


if __name__ == "__main__":
    sys.exit(main())
