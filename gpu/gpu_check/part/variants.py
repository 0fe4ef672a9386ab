"""Variants of a part, each in a process of its own: an error on a GPU makes every later call of its process fail."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from gpu_check import results
from gpu_check.part.context import Context

_LEAST_S = 10.0
"""Minimum time for a variant. With less, its packages would not even be imported."""

Variant = Callable[[Context, str], None]


def run_all(context: Context, names: Sequence[str], run_one: Variant, at_once: int) -> None:
    """Runs `run_variant` of the part's module for each name, and adds what each reports. run_one: that function; a dry
    run calls it in this process."""
    if context.tiny:
        for name in names:
            if context.has_time(name):
                run_one(context, name)
        return
    with ThreadPoolExecutor(at_once) as pool:
        futures = {pool.submit(_run, context, name): name for name in names}
        for future in as_completed(futures):
            _add(context, futures[future], future.result())


def label_of(label: str, name: str) -> str:
    """The name of a variant's files."""
    return f"{label}-{name.replace(' ', '-')}"


def _run(context: Context, name: str) -> str:
    """Runs a variant's process. Returns the reason why it did not end by itself, or nothing."""
    limit_s = context.left_s
    if limit_s < _LEAST_S:
        return "there was no time"
    command = [sys.executable, "-m", "gpu_check.part", context.result.name, "--variant", name]
    command += ["--results", str(context.folder), "--device", context.device_name, "--limit-s", f"{limit_s:.1f}"]
    with open(context.folder / f"{label_of(context.label, name)}.log", "wb") as log:
        try:
            code = subprocess.run(command, stdout=log, stderr=log, timeout=limit_s, check=False).returncode
        except subprocess.TimeoutExpired:
            return f"it was ended after {limit_s:.0f} s"
    return "" if code in (0, 1) else f"its process ended with exit code {code}"


def _add(context: Context, name: str, problem: str) -> None:
    """Adds a variant's report to the part's."""
    label = label_of(context.label, name)
    found = results.read(results.path_of(context.folder, label))
    if found is None:
        if problem == "there was no time":
            context.was_cut = True
            context.leave_out(f"{name}: {problem}")
        else:
            context.check(name, f"{problem or 'it has no result'}; see {label}.log")
        return
    mine = context.result
    mine.checks += found.checks
    mine.left_out += found.left_out
    mine.facts |= found.facts
    context.was_cut |= found.state == results.CUT
    if problem or found.reason:
        context.check(name, f"{problem or found.reason}; see {label}.log")
    context.write()
