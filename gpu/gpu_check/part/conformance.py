"""Part 5: a tiny model of each sample type, served in float32 and bfloat16, against Transformers on the CPU.

Each type runs in a process of its own: an error on a GPU makes every later call of its process fail.
"""

import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from conformance.tests.test_types import CAUSAL_TYPES
from gpu_check.part.conformance_type import Outcome
from gpu_check.part.context import Context

_TINY = ("llama", "gpt2")
_AT_ONCE = 8
_TYPE_LIMIT_S = 120.0


def run(context: Context) -> None:
    """Reports each type as soon as it is done."""
    types = _TINY if context.tiny else tuple(CAUSAL_TYPES)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2 if context.tiny else _AT_ONCE) as pool:
        futures = {pool.submit(_outcome, context, name, Path(folder)): name for name in types}
        for future in as_completed(futures):
            _report(context, futures[future], future.result())


def _outcome(context: Context, name: str, folder: Path) -> Outcome | None:
    """Runs a type; None when there is no time for it."""
    limit_s = min(_TYPE_LIMIT_S, context.left_s)
    if limit_s < 10:
        return None
    command = [sys.executable, "-m", "gpu_check.part.conformance_type", name, context.device.type, str(folder / name)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return Outcome(error=f"not done after {limit_s:.0f} s")
    print(done.stderr[-2000:], end="", flush=True)
    try:
        return Outcome(**json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, LookupError, TypeError):
        tail = " ".join(done.stderr.split())[-300:]
        return Outcome(error=f"its process ended with exit code {done.returncode}: {tail}")


def _report(context: Context, name: str, outcome: Outcome | None) -> None:
    if outcome is None:
        context.was_cut = True
        context.leave_out(f"{name}: there was no time")
        return
    if outcome.error:
        context.check(name, outcome.error)
        return
    expected, _kind = CAUSAL_TYPES[name]
    wrong_path = f"runs on the {outcome.path} path, not on {expected}: {outcome.reason}"
    problem = outcome.in_float32 or (wrong_path if outcome.path != expected else "")
    context.check(f"{name} in float32", problem, f"{outcome.path} path, {outcome.seconds:.0f} s")
    if outcome.not_in_bfloat16:
        context.leave_out(f"{name} in bfloat16: {outcome.not_in_bfloat16}")
        return
    context.check(f"{name} in bfloat16", outcome.in_bfloat16, f"{outcome.path_in_bfloat16} path")
