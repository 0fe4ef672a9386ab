"""Builds the wheel `gridwork`: launcher, router, CPU kernels for all instruction sets, shard and Python API in one.

What belongs into it is gathered in `target/wheel` first, since it lies in several folders of the checkout. maturin then
compiles the launcher, which the wheel has as a program, and packs. `--tools` is the folder with `maturin`,
`cargo-zigbuild` and `python-zig`. The wheel is for the processor of this machine: kernels exist for x86-64 only, and
elsewhere it has none.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

from build_cpu import LIBRARIES
from gpu_pack import programs
from gpu_pack.target import PackError

ROOT = Path(__file__).resolve().parents[1]
GLIBC = (2, 28)
"""The oldest glibc that PyTorch's own wheels run with."""
GLIBCXX = (3, 4, 25)
"""The libstdc++ of the oldest machines that have this glibc: that of GCC 8."""
MACHINE = os.uname().machine
TRIPLE = f"{MACHINE}-unknown-linux-gnu"
KERNELS = tuple(f"_cpu_{isa}.so" for isa in LIBRARIES) if MACHINE == "x86_64" else ()
_TARGET = os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target"))
STAGE = Path(_TARGET) / "wheel"
PACKAGES = {
    "gridwork": ROOT / "python" / "gridwork",
    "gridwork_server": ROOT / "server" / "gridwork_server",
    "gridwork_kernels": ROOT / "kernels" / "gridwork_kernels",
}
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", "*.partial", "_import_structure.json")


class WheelError(Exception):
    """The wheel cannot be built. The message says what to do."""


def main() -> int:
    """Builds the wheel and prints what is in it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tools", type=Path, required=True, help="folder of maturin, cargo-zigbuild and python-zig")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for the wheel")
    args = parser.parse_args()
    try:
        gather(args.tools.resolve())
        wheel = pack(args.tools.resolve(), args.out.resolve())
        describe(wheel)
    except (WheelError, PackError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def gather(tools: Path) -> None:
    """Puts packages, router and the description of the wheel into the stage. Raises WheelError."""
    kernels = PACKAGES["gridwork_kernels"]
    if missing := [name for name in KERNELS if not (kernels / name).is_file()]:
        raise WheelError(f"{', '.join(missing)} are not built in {kernels}; run kernels/build_cpu.py")
    if not (PACKAGES["gridwork_server"] / "_proto" / "shard_pb2.py").exists():
        raise WheelError("the Python side of the contract is missing; run server/generate_proto.py")
    shutil.rmtree(STAGE, ignore_errors=True)
    for name, folder in PACKAGES.items():
        shutil.copytree(folder, STAGE / "python" / name, ignore=_LEFT_OUT)
    shutil.copyfile(ROOT / "README.md", STAGE / "README.md")
    shutil.copyfile(ROOT / "LICENSE", STAGE / "LICENSE")
    text = (ROOT / "python" / "pyproject.toml").read_text()
    text = text.replace('license = "Apache-2.0"', 'license = "Apache-2.0"\nreadme = "README.md"', 1)
    (STAGE / "pyproject.toml").write_text(text + _MATURIN.format(manifest=ROOT / "launcher" / "Cargo.toml"))
    scripts = STAGE / "data" / "scripts"
    programs.build(tools, scripts, GLIBC, TRIPLE, (ROUTER,))
    needed = programs.check(scripts, GLIBC, (ROUTER,))
    print(f"the router needs glibc {_text(needed)}")
    for name in KERNELS:
        check_library(name, programs.symbols(kernels / name))
    (scripts / SERVER).write_text(_SERVER_SCRIPT)
    (scripts / SERVER).chmod(0o755)


def check_library(name: str, symbols: str) -> None:
    """Raises WheelError for a library of kernels that needs more than the oldest machines have. symbols: those that
    `objdump -T` lists."""
    for library, allowed in (("GLIBC", GLIBC), ("GLIBCXX", GLIBCXX)):
        versions = re.findall(rf"\b{library}_([0-9.]+)", symbols)
        needed = max((tuple(map(int, version.split("."))) for version in versions), default=(0,))
        if needed > allowed:
            raise WheelError(f"{name} needs {library} {_text(needed)}, and machines may have {_text(allowed)}")


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


ROUTER = "gridwork-router"
SERVER = "gridwork-server"
# A script and no entry point: maturin refuses entry points beside programs. Installers put their Python in its first
# line.
_SERVER_SCRIPT = """#!python
import sys

from gridwork_server.cli import main

sys.exit(main())
"""

_MATURIN = """
[tool.maturin]
bindings = "bin"
manifest-path = "{manifest}"
python-source = "python"
python-packages = ["gridwork", "gridwork_server", "gridwork_kernels"]
data = "data"
include = [{{ path = "python/**/*", format = "wheel" }}]

# It would list the launcher's crates and not the router's, with paths of this machine.
[tool.maturin.sbom]
rust = false
"""


def pack(tools: Path, out: Path) -> Path:
    """Runs maturin in the stage; returns the wheel. Raises WheelError."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("gridwork-*.whl"):
        old.unlink()
    glibc = "_".join(map(str, GLIBC))
    command = [str(tools / "maturin"), "build", "--release", "--locked", "--zig"]
    command += ["--target", TRIPLE, "--compatibility", f"manylinux_{glibc}", "--out", str(out)]
    environment = os.environ | {"PATH": os.pathsep.join([str(tools), os.environ["PATH"]]), "CARGO_TARGET_DIR": _TARGET}
    # As in `programs`: symbols are left out by the linker.
    environment["CARGO_PROFILE_RELEASE_STRIP"] = "symbols"
    if subprocess.run(command, cwd=STAGE, env=environment, check=False).returncode != 0:
        raise WheelError("maturin failed; see its messages above")
    [wheel] = out.glob("gridwork-*.whl")
    return wheel


def describe(wheel: Path) -> None:
    """Prints size and contents. Raises WheelError when something is missing or is there twice."""
    with zipfile.ZipFile(wheel) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        contents = Counter(archive.read(entry) for entry in entries if entry.file_size > 10_000)
    twice = [content for content, count in contents.items() if count > 1]
    if twice:
        raise WheelError(f"{len(twice)} files are in {wheel.name} twice")
    names = {entry.filename for entry in entries}
    wanted = ["gridwork/py.typed", "gridwork_server/_proto/shard_pb2.py", "gridwork_kernels/program_table.def"]
    wanted += [f"gridwork_kernels/{name}" for name in KERNELS]
    scripts = {Path(name).name for name in names if ".data/scripts/" in name}
    missing = [name for name in wanted if name not in names] + sorted({*programs.NAMES, SERVER} - scripts)
    if missing:
        raise WheelError(f"{wheel.name} lacks {', '.join(missing)}")
    roots = {name.split("/")[0].partition("-")[0] for name in names}
    if others := sorted(roots - {*PACKAGES}):
        raise WheelError(f"{wheel.name} has {', '.join(others)}, which belongs to none of its packages")
    folders: Counter[str] = Counter()
    for entry in entries:
        folders[entry.filename.split("/")[0]] += entry.compress_size
    for folder, size in sorted(folders.items()):
        print(f"{size / 2**20:8.2f} MiB  {folder}")
    for entry in sorted(entries, key=lambda entry: -entry.compress_size)[:8]:
        print(f"{entry.compress_size / 2**20:8.2f} MiB  of which {entry.filename}")
    print(f"{wheel}: {wheel.stat().st_size / 2**20:.1f} MiB, {len(entries)} files")


if __name__ == "__main__":
    sys.exit(main())
