"""Stands in for `python -m gpu_check.part` in tests: each part behaves as its name in `BEHAVIOURS` says."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from gpu_check import parts, results
from gpu_check.results import Check, Result

BEHAVIOURS = {"machine": "passes", "attention": "raises", "sampling": "hangs", "graphs": "dies", "conformance": "fails"}


def main() -> int:
    """Behaves like one part."""
    (part,) = parts.choose(sys.argv[1])
    folder = Path(sys.argv[sys.argv.index("--results") + 1])
    path = results.path_of(folder, part.label)
    result = Result(part.number, part.name, part.title)
    behaviour = BEHAVIOURS.get(part.name, "passes")
    first = results.read(results.path_of(folder, parts.PARTS[0].label))
    known = first.state if first is not None else "not there"
    result.checks.append(Check("a check", "wrong" if behaviour == "fails" else "", f"the first part is {known}"))
    results.write(path, result)
    if behaviour == "raises":
        raise RuntimeError("out of memory")
    if behaviour == "hangs":
        child = subprocess.Popen(["sleep", "600"])
        (folder / "child.pid").write_text(str(child.pid))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if behaviour == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    result.state = results.FAILED if behaviour == "fails" else results.PASSED
    results.write(path, result)
    return 1 if result.is_bad else 0


if __name__ == "__main__":
    sys.exit(main())
