"""Results of a part, which are on disk as soon as they are known."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PASSED, FAILED, STOPPED, CUT, SKIPPED, RUNNING = "passed", "FAILED", "STOPPED", "cut short", "skipped", "running"
"""States of a part. `cut short`: nothing failed, and there was no time for some checks."""


@dataclass(frozen=True)
class Check:
    """Result of a comparison."""

    name: str
    problem: str = ""
    """The reason why it failed; empty when it passed."""
    detail: str = ""


@dataclass(frozen=True)
class Figure:
    """Result of a measurement."""

    name: str
    value: float
    unit: str
    target: str = ""
    """The value that is wanted, for readers; empty when there is none."""
    reached: bool | None = None
    """Tells whether the target is reached; None without a target."""


@dataclass
class Result:
    """Everything that is known of a part."""

    number: int
    name: str
    title: str
    state: str = RUNNING
    seconds: float = 0.0
    reason: str = ""
    """The reason why the part failed as a whole, was stopped or skipped."""
    left_out: list[str] = field(default_factory=list)
    """Checks for which there was no time, or that do not apply, with the reason."""
    facts: dict[str, str] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    @property
    def failed(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.problem]

    @property
    def is_bad(self) -> bool:
        """True if the part found an error or did not come to its end."""
        return self.state in (FAILED, STOPPED)


def path_of(folder: Path, label: str) -> Path:
    """File of a part's result."""
    return folder / f"{label}.json"


def write_json(path: Path, content: Any) -> None:
    """Replaces a file in one step, so that a reader never sees half of it."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def write(path: Path, result: Result) -> None:
    """Writes a part's result."""
    write_json(path, asdict(result))


def read(path: Path) -> Result | None:
    """Reads a part's result; None when there is none that can be read."""
    try:
        content = json.loads(path.read_text())
        content["checks"] = [Check(**each) for each in content["checks"]]
        content["figures"] = [Figure(**each) for each in content["figures"]]
        return Result(**content)
    except (OSError, ValueError, LookupError, TypeError):
        return None
