"""Device, time and report of a running part."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gpu_check import results
from gpu_check.results import Check, Figure, Result


class Refused(Exception):
    """The part cannot run on this machine. The message says why."""


@dataclass
class Context:
    """Everything that a part is given."""

    folder: Path
    """Folder of the results."""
    label: str
    device_name: str
    """`cuda` or `cpu`."""
    tiny: bool
    """True in a dry run: shapes are tiny, and figures mean nothing."""
    deadline: float
    """Time on the monotonic clock by which the part should have ended by itself."""
    result: Result
    started: float = field(default_factory=time.monotonic)
    was_cut: bool = False
    """True if there was no time for something."""

    @property
    def device(self) -> torch.device:
        """The device. Raises Refused when PyTorch does not see it."""
        if self.device_name == "cuda":
            if not torch.cuda.is_available():
                raise Refused("PyTorch sees no GPU; see part 1 for the driver, or try `--dry-run` on the CPU")
            return torch.device("cuda", 0)
        return torch.device("cpu")

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def write(self) -> None:
        """Writes everything that is known."""
        self.result.seconds = time.monotonic() - self.started
        results.write(results.path_of(self.folder, self.label), self.result)

    def check(self, name: str, problem: str = "", detail: str = "") -> None:
        """Reports a check. problem: the reason why it failed; empty when it passed."""
        self.result.checks.append(Check(name, problem, detail))
        self.write()
        print(f"{'FAILED' if problem else 'ok':7} {name}: {problem or detail}", flush=True)

    @contextmanager
    def checking(self, name: str) -> Iterator[None]:
        """Reports a check that fails when the block raises an exception."""
        try:
            yield
        except Exception as error:
            self.check(name, one_line(error))
        else:
            self.check(name)

    def fact(self, name: str, value: object) -> None:
        """Reports a property of the machine or of the run."""
        self.result.facts[name] = str(value)
        self.write()
        print(f"        {name}: {value}", flush=True)

    def figure(self, name: str, value: float, unit: str, target: str = "", reached: bool | None = None) -> None:
        """Reports a measurement. A dry run has no targets."""
        self.result.figures.append(Figure(name, value, unit, *(() if self.tiny else (target, reached))))
        self.write()
        print(f"        {name}: {value:.4g} {unit}", flush=True)

    def has_time(self, what: str, needed_s: float = 0.0) -> bool:
        """True if there is time for something. Reports that it is left out otherwise."""
        if self.left_s > needed_s:
            return True
        self.was_cut = True
        self.leave_out(f"{what}: there was no time")
        return False

    def leave_out(self, what: str) -> None:
        """Reports something that is not checked, with the reason."""
        self.result.left_out.append(what)
        self.write()
        print(f"        left out: {what}", flush=True)


def one_line(error: BaseException) -> str:
    """An exception as one line of up to 300 characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else text[:300] + " …"
