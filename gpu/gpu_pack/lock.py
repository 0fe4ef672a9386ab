"""The locks' pinned packages."""

from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gpu_pack.target import PackError, environment


@dataclass(frozen=True)
class Pinned:
    """A package with its version and the hashes of its files."""

    name: str
    line: str
    """The requirement as pip reads it, without its marker."""
    hashes: tuple[str, ...]

    @property
    def requirement(self) -> str:
        """The requirement with its hashes."""
        return " ".join([self.line, *(f"--hash={each}" for each in self.hashes)])


def read(*files: Path) -> dict[str, Pinned]:
    """The packages of the locks that the machine would install, by name. The first lock that has a package counts."""
    found: dict[str, Pinned] = {}
    for file in files:
        for pinned in _entries(file.read_text()):
            found.setdefault(pinned.name, pinned)
    if not found:
        raise PackError(f"{', '.join(map(str, files))} pin no package; renew them as their headers say")
    return found


def _entries(text: str) -> list[Pinned]:
    entries = []
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        head, *hashes = line.split(" --hash=")
        requirement = Requirement(head.strip())
        if requirement.marker is None or requirement.marker.evaluate(environment()):
            name = canonicalize_name(requirement.name)
            kept = f"{requirement.name}{requirement.specifier}"
            entries.append(Pinned(name, kept, tuple(each.strip() for each in hashes)))
    return entries


def roots(file: Path) -> list[str]:
    """Names of the packages that a file of direct requirements names."""
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    return [canonicalize_name(Requirement(line).name) for line in lines if line]
