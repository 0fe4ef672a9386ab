"""Wheels of the locks for the machine's Python: what it lacks, and everything that these packages require."""

import subprocess
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

from gpu_pack.lock import Pinned
from gpu_pack.target import MACHINE, PYTHON, PackError, environment, platforms


@dataclass(frozen=True)
class Wheel:
    """A wheel in the pack."""

    file: Path
    name: str
    version: str
    requires: tuple[Requirement, ...]


def gather(names: Iterable[str], pinned: dict[str, Pinned], pip: Sequence[str], folder: Path) -> list[Wheel]:
    """Downloads the wheels of these packages, and of all that they require, to a folder. pip: the command of a pip.
    Raises PackError when there is no wheel that fits, or a requirement that no lock pins."""
    found: dict[str, Wheel] = {}
    wanted = {name: "gpu_pack" for name in names if name not in MACHINE}
    while wanted:
        for name, by in wanted.items():
            if name not in pinned:
                raise PackError(f"{by} requires {name}, which no lock pins; add it to server/requirements.in")
        _download([pinned[name] for name in wanted], pip, folder)
        for file in sorted(folder.glob("*.whl")):
            wheel = read(file)
            found[wheel.name] = wheel
        wanted = missing(found.values())
    return sorted(found.values(), key=lambda wheel: wheel.name)


def missing(wheels: Iterable[Wheel]) -> dict[str, str]:
    """Packages that wheels require and that neither they nor the machine bring, with one that requires each. Raises
    PackError when a wheel's version is not the required one."""
    known = {wheel.name: wheel for wheel in wheels}
    lacking: dict[str, str] = {}
    for wheel in known.values():
        for requirement in wheel.requires:
            name = canonicalize_name(requirement.name)
            if name in MACHINE:
                continue
            if name not in known:
                lacking.setdefault(name, wheel.name)
            elif not requirement.specifier.contains(known[name].version, prereleases=True):
                raise PackError(f"{wheel.name} requires {requirement}, and the lock has {known[name].version}")
    return lacking


def needs_of_machine(wheels: Iterable[Wheel]) -> list[str]:
    """Requirements on packages that the machine brings."""
    return sorted(
        f"{requirement} (by {wheel.name})"
        for wheel in wheels
        for requirement in wheel.requires
        if canonicalize_name(requirement.name) in MACHINE
    )


def read(file: Path) -> Wheel:
    """Reads a wheel's requirements, and checks that it can be unpacked on the machine. Raises PackError."""
    name, version, _build, tags = parse_wheel_filename(file.name)
    if not tags & usable_tags():
        raise PackError(
            f"{file.name} does not fit Python {PYTHON} on {platforms()[0]}; pin a version with such a wheel"
        )
    with zipfile.ZipFile(file) as archive:
        if bad := archive.testzip():
            raise PackError(f"{file.name} is damaged at {bad}; remove it and run `make gpu-pack` again")
        entries = archive.namelist()
        (path,) = (entry for entry in entries if entry.endswith(".dist-info/METADATA") and entry.count("/") == 1)
        metadata = Metadata.from_email(archive.read(path), validate=False)
    placed = {entry.split("/")[1] for entry in entries if entry.split("/")[0].endswith(".data")}
    if placed - {"scripts", "headers", "data"}:
        raise PackError(f"{file.name} has files for {', '.join(sorted(placed))}, which only an installer can place")
    requires = [
        requirement
        for requirement in metadata.requires_dist or []
        if requirement.marker is None or requirement.marker.evaluate(environment())
    ]
    return Wheel(file, name, str(version), tuple(requires))


def usable_tags() -> set[Tag]:
    """Tags of wheels that the machine can use."""
    major, minor = map(int, PYTHON.split("."))
    interpreter = f"cp{major}{minor}"
    return {
        *cpython_tags((major, minor), [interpreter], platforms()),
        *compatible_tags((major, minor), interpreter, platforms()),
    }


def _download(pinned: Sequence[Pinned], pip: Sequence[str], folder: Path) -> None:
    interpreter = f"cp{PYTHON.replace('.', '')}"
    limits = ["--python-version", PYTHON, "--implementation", "cp"]
    limits += [part for abi in (interpreter, "abi3", "none") for part in ("--abi", abi)]
    limits += [part for platform in platforms() for part in ("--platform", platform)]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(each.requirement for each in pinned) + "\n")
        file.flush()
        command = [*pip, "download", "--no-deps", "--require-hashes", "--only-binary", ":all:", *limits]
        done = subprocess.run(
            [*command, "--dest", str(folder), "--quiet", "-r", file.name], capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        reason = " ".join(done.stderr.split())[-600:]
        raise PackError(f"no wheels for Python {PYTHON} on {platforms()[0]}: {reason}")
