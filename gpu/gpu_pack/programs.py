"""Router and launcher, built for an old glibc by zig's linker, without their symbols."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpu_pack.target import ARCHITECTURE, GLIBC, ROOT, PackError

NAMES = ("gridwork", "gridwork-router")
_PACKAGES = {"gridwork": "gridwork-launcher", "gridwork-router": "gridwork-router"}
TRIPLE = f"{ARCHITECTURE}-unknown-linux-gnu"


def build(
    tools: Path, folder: Path, glibc: tuple[int, int] = GLIBC, triple: str = TRIPLE, names: Sequence[str] = NAMES
) -> None:
    """Builds programs into a folder. tools: folder of `cargo-zigbuild` and its Python. Raises PackError."""
    command = ["cargo", "zigbuild", "--release", "--locked", "--target", f"{triple}.{_text(glibc)}", "--bins"]
    for name in names:
        command += ["-p", _PACKAGES[name]]
    # zig's own linker writes no symbols then; `strip` of an older binutils would not know all sections.
    changes = {"PATH": os.pathsep.join([str(tools), os.environ["PATH"]]), "CARGO_PROFILE_RELEASE_STRIP": "symbols"}
    if subprocess.run(command, cwd=ROOT, env=os.environ | changes, check=False).returncode != 0:
        raise PackError(f"{' '.join(command)} failed; see its messages above")
    built = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / triple / "release"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(built / name, folder / name)
        (folder / name).chmod(0o755)


def check(folder: Path, glibc: tuple[int, int] = GLIBC, names: Sequence[str] = NAMES) -> tuple[int, ...]:
    """The glibc that the programs need. Raises PackError when it is newer than the machine may have."""
    needed = max(glibc_of(symbols(folder / name)) for name in names)
    if needed > glibc:
        raise PackError(f"the programs need glibc {_text(needed)}, and the machine may have {_text(glibc)}")
    return needed


def glibc_of(listed: str) -> tuple[int, ...]:
    """The newest version of glibc among the symbols that `objdump -T` lists."""
    versions = re.findall(r"\bGLIBC_([0-9.]+)", listed)
    return max((tuple(map(int, version.split("."))) for version in versions), default=(0,))


def symbols(program: Path) -> str:
    """Dynamic symbols of a program or library, as `objdump -T` lists them. Raises PackError."""
    environment: Mapping[str, str] = os.environ | {"LC_ALL": "C"}
    done = subprocess.run(["objdump", "-T", str(program)], capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise PackError(f"objdump -T {program} failed: {done.stderr.strip()}; install binutils")
    return done.stdout


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
