"""The checkout's sources that the check runs."""

import shutil
import subprocess
from pathlib import Path

from gpu_pack.target import ROOT, PackError

FOLDERS = (
    "gpu",
    "server",
    "kernels",
    "proto",
    "conformance",
    "benchmarks/tools",
    "benchmarks/suite",
    "integration-tests",
)
GENERATED = "server/gridwork_server/_proto"
_LEFT_OUT = (".lock",)


def copy(target: Path) -> int:
    """Copies sources as they are in the work tree, and the generated side of the contract. Returns their number. Raises
    PackError."""
    generated = sorted((ROOT / GENERATED).glob("*.py"))
    if not generated:
        raise PackError(f"{GENERATED} is not there; run `make python` first")
    files = [*_listed(), *(str(each.relative_to(ROOT)) for each in generated)]
    for name in files:
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, place)
    return len(files)


def commit() -> str:
    """The commit of the sources, marked where the work tree differs from it."""
    return _git("describe", "--always", "--dirty", "--abbrev=12").strip()


def _listed() -> list[str]:
    """Files of the folders that git knows or does not ignore, and that exist."""
    names = _git("ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *FOLDERS).split("\0")
    return [name for name in sorted(set(names)) if name and (ROOT / name).is_file() and not name.endswith(_LEFT_OUT)]


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PackError(f"git {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout
