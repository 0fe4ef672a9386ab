"""Runs the parts one after the other, each in a process of its own that is ended at its limit."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_check import results
from gpu_check.parts import Part
from gpu_check.results import Result

_GRACE_S = 5.0
"""Time that a part has to end after SIGTERM."""
_LEAST_S = 5.0
"""Minimum time for a part. With less, its packages would not even be imported."""


@dataclass(frozen=True)
class Plan:
    """Settings of a run."""

    folder: Path
    """Folder of the results."""
    environment: dict[str, str]
    device: str
    tiny: bool
    program: tuple[str, ...] = (sys.executable, "-m", "gpu_check.part")
    """Command that runs a part, up to the part's name."""
    until: float | None = None
    """End of the time that there is, on the monotonic clock; None: each part has its own limit."""


def limit_of(part: Part, rest: Sequence[Part], left_s: float | None) -> float:
    """Seconds for a part. rest: the part and those after it; left_s: time for all of them, None for no limit. A part's
    share follows from the limits, and what earlier parts did not use is shared among the later ones."""
    if left_s is None:
        return part.limit_s
    share = part.limit_s / sum(each.limit_s for each in rest)
    return min(part.limit_s, left_s * share)


def run(parts: Sequence[Part], plan: Plan) -> list[Result]:
    """Runs parts in order. Whatever becomes of a part, the next one runs."""
    found = []
    for index, part in enumerate(parts):
        left_s = None if plan.until is None else max(0.0, plan.until - time.monotonic())
        limit_s = limit_of(part, parts[index:], left_s)
        print(f"==> {part.number} {part.title} (up to {limit_s:.0f} s)", flush=True)
        result = _skip(part, plan, limit_s) if limit_s < _LEAST_S else run_part(part, plan, limit_s)
        found.append(result)
        print(
            f"    {result.state} after {result.seconds:.1f} s{f': {result.reason}' * bool(result.reason)}", flush=True
        )
    return found


def _skip(part: Part, plan: Plan, limit_s: float) -> Result:
    reason = f"there are {limit_s:.0f} s for it; give more --minutes, or fewer parts"
    result = Result(part.number, part.name, part.title, results.SKIPPED, reason=reason)
    results.write(results.path_of(plan.folder, part.label), result)
    return result


def run_part(part: Part, plan: Plan, limit_s: float) -> Result:
    """Runs one part, with its output in a log, and completes its result."""
    path = results.path_of(plan.folder, part.label)
    results.write(path, Result(part.number, part.name, part.title))
    command = [*plan.program, part.name, "--results", str(plan.folder)]
    command += ["--device", plan.device, "--limit-s", f"{limit_s:.1f}", *(["--tiny"] if plan.tiny else [])]
    started = time.monotonic()
    with open(plan.folder / f"{part.label}.log", "wb") as log:
        process = subprocess.Popen(
            command, env=plan.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            problem = _wait(process, limit_s)
        finally:
            _end(process)
    result = results.read(path) or Result(part.number, part.name, part.title)
    result.seconds = time.monotonic() - started
    if problem:
        result.state, result.reason = problem
    elif result.state == results.RUNNING:
        result.state, result.reason = results.FAILED, f"it ended without a result; see {part.label}.log"
    results.write(path, result)
    return result


def _wait(process: "subprocess.Popen[bytes]", limit_s: float) -> tuple[str, str] | None:
    """Waits for a part. Returns the state and the reason when it does not end well."""
    try:
        code = process.wait(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return results.STOPPED, f"it was ended at its limit of {limit_s:.0f} s"
    if code < 0:
        return results.FAILED, f"it was ended by signal {signal.Signals(-code).name}"
    # 1: the part itself has written what failed.
    return None if code in (0, 1) else (results.FAILED, f"it ended with exit code {code}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a part's process group: SIGTERM, then SIGKILL. A process that hangs in the driver may stay; the next part
    does not wait for it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass
        try:
            process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            continue
        if not _group_exists(process.pid):
            return


def _group_exists(group: int) -> bool:
    """True if a process of the group is left, for example a server that a part has started."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
