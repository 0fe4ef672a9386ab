"""Sets up a machine from a pack (`gpu_pack`), without a network and without pip: unpacks wheels and programs."""

import hashlib
import json
import lzma
import os
import platform
import shutil
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, or the sources within a pack."""

_SOURCES = ("gpu", "server", "kernels", "kernels/tests", "benchmarks", "integration-tests", ".")
"""Folders of Python packages and of helpers that the parts share with the tests."""

CONTENTS = "contents.json"
_STAMP = "contents.sha256"
_PROTO = Path("server/gridwork_server/_proto")
_CONTRACT = Path("proto/gridwork/shard/v1/shard.proto")


class SetupError(Exception):
    """The machine cannot be set up. The message says what to do."""


@dataclass(frozen=True)
class Site:
    """A place with everything that the parts need besides what the machine has."""

    packages: Path | None
    """Unpacked wheels; None: the packages of this Python are enough."""
    programs: Path
    """Folder of `gridwork` and `gridwork-router`."""

    def environment(self, is_interpreted: bool) -> dict[str, str]:
        """Environment of the parts. is_interpreted: run Triton's kernels in its interpreter."""
        places = [str(ROOT / each) for each in _SOURCES]
        places += [str(self.packages)] if self.packages else []
        places += [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
        path = [str(self.programs), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        changes = {
            "PYTHONPATH": os.pathsep.join(places),
            "PATH": os.pathsep.join(path),
            "GRIDWORK_BIN": str(self.programs / "gridwork"),
            "HF_HUB_OFFLINE": "1",
            "OMP_WAIT_POLICY": "passive",
            "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        return {**os.environ, **changes, **({"TRITON_INTERPRET": "1"} if is_interpreted else {})}


def prepare(pack: Path | None, place: Path) -> Site:
    """Sets up. pack: a pack's folder, or None for the packages of this Python and the programs of the checkout; place:
    folder to unpack to, which is kept for the next run. Raises SetupError."""
    if pack is None:
        return Site(None, ROOT / "target" / "release")
    contents = read_contents(pack)
    check_machine(contents)
    packages, programs = place / "packages", place / "bin"
    stamp, digest = place / _STAMP, hashlib.sha256((pack / CONTENTS).read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        shutil.rmtree(place, ignore_errors=True)
        packages.mkdir(parents=True)
        _unpack([(pack / "wheels" / each["file"], each["sha256"]) for each in contents["wheels"]], packages)
        _copy_programs(pack / "bin", programs, contents["programs"])
        stamp.write_text(digest)
    _copy_generated(pack)
    return Site(packages, programs)


def read_contents(pack: Path) -> dict[str, Any]:
    """Reads the list of a pack's contents. Raises SetupError."""
    try:
        contents: dict[str, Any] = json.loads((pack / CONTENTS).read_text())
    except (OSError, ValueError) as error:
        raise SetupError(f"{pack} is no pack ({error}); make one with `make gpu-pack` and bring it along") from None
    return contents


def check_machine(contents: dict[str, Any]) -> None:
    """Compares the machine with what a pack was made for. Raises SetupError."""
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if python != contents["python"]:
        raise SetupError(
            f"this is Python {python}, and the pack is for {contents['python']}; "
            f"run `make gpu-check PYTHON=python{contents['python']}`, or give --no-pack to use this Python's packages"
        )
    if platform.machine() != contents["architecture"]:
        raise SetupError(f"this machine is {platform.machine()}, and the pack is for {contents['architecture']}")
    name, version = platform.libc_ver()
    if name != "glibc" or numbers(version) < numbers(contents["glibc"]):
        raise SetupError(
            f"this machine has {name or 'no glibc'} {version}, and the pack's programs need glibc {contents['glibc']} "
            "or newer; use a newer system image"
        )


def numbers(version: str) -> tuple[int, ...]:
    """A version as numbers that can be compared."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _unpack(wheels: list[tuple[Path, str]], target: Path) -> None:
    def unpack(wheel: tuple[Path, str]) -> None:
        file, sha256 = wheel
        if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
            raise SetupError(f"{file} is damaged; bring the pack along again")
        with zipfile.ZipFile(file) as archive:
            archive.extractall(target)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(unpack, wheels):
            pass


def _copy_programs(source: Path, target: Path, names: list[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        (target / name).write_bytes(lzma.decompress((source / f"{name}.xz").read_bytes()))
        (target / name).chmod(0o755)
    server = target / "gridwork-server"
    server.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gridwork_server "$@"\n')
    server.chmod(0o755)


def _copy_generated(pack: Path) -> None:
    """Copies the generated side of the contract to a checkout that lacks it. Raises SetupError when the pack's programs
    and this checkout have different contracts."""
    generated, theirs = pack / "source" / _PROTO, pack / "source" / _CONTRACT
    if theirs.exists() and theirs.read_bytes() != (ROOT / _CONTRACT).read_bytes():
        raise SetupError(f"{_CONTRACT} differs from the pack's; make the pack again with `make gpu-pack`")
    if not (ROOT / _PROTO).exists() and generated.exists():
        shutil.copytree(generated, ROOT / _PROTO)
