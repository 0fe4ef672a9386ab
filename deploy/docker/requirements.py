"""Prints one part of server/requirements.lock, which is read from stdin: `torch`, `build` or `others`.

The parts of the image are installed apart, so that each is a layer of its own. `torch` is PyTorch with what is only
there for it: NVIDIA's libraries, Triton, and packages for symbolic mathematics. With --cpu-only it is PyTorch alone,
without hashes, since that build has others; then `others` has the packages for it. `build` is what only building needs.
Everything else is in `others`.
"""

import argparse
import re
import sys

TORCH = re.compile(r"torch$|triton$|nvidia-|cuda-")
FOR_TORCH = {"mpmath", "networkx", "sympy"}
"""Packages of every build of PyTorch, which nothing else here needs."""
BUILD = {"grpcio-tools", "setuptools"}


def main() -> int:
    """Reads stdin and writes stdout; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["torch", "build", "others"])
    parser.add_argument("--cpu-only", action="store_true", help="PyTorch alone, from an index with its CPU-only build")
    args = parser.parse_args()
    for name, entry in entries(sys.stdin.read()):
        if part_of(name, args.cpu_only) != args.part:
            continue
        if args.cpu_only and args.part == "torch":
            if name == "torch":
                print(entry.split()[0])
        else:
            print(entry, end="")
    return 0


def entries(lock: str) -> list[tuple[str, str]]:
    """Names of packages, each with its lines of the lock."""
    found: list[tuple[str, str]] = []
    for line in lock.splitlines(keepends=True):
        if match := re.match(r"([A-Za-z0-9._-]+)==", line):
            found.append((match[1].lower(), line))
        elif found and line.strip():
            found[-1] = (found[-1][0], found[-1][1] + line)
    return found


def part_of(name: str, cpu_only: bool) -> str:
    """The part that a package belongs to."""
    if TORCH.match(name) or (name in FOR_TORCH and not cpu_only):
        return "torch"
    return "build" if name in BUILD else "others"


if __name__ == "__main__":
    sys.exit(main())
