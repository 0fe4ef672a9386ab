"""Time between steps on the device, and a profile of the slowest step."""

from pathlib import Path
from typing import Any

import torch
from gridwork_server.step.runner import Runner
from tools.gpu_roofline import Sequences, Shape
from torch.profiler import ProfilerActivity

from gpu_check.part.context import Context

_STEPS = 12
_GAP_US = 8.0
"""Pause between two kernels from which on the device waits for the host. Kernels of one graph follow each other within
a few microseconds."""
_ROWS = 25


def steps(context: Context, runner: Runner, shape: Shape, slowest: tuple[int, int]) -> None:
    """Reports the time that the device waits for the host between steps, which must be 0 with steps in flight, and
    writes a profile of the slowest decode."""
    for what, (batch, tokens) in {"1 sequence": (1, min(128, slowest[1])), "the slowest decode": slowest}.items():
        name = f"profile-{batch}x{tokens}"
        waits_us, step_us = _profile(context, runner, shape, batch, tokens, name)
        if context.device.type == "cuda":
            context.figure(f"device waits for the host, {what}", waits_us, "µs a step", "0", waits_us == 0)
            context.figure(f"device time, {what}", step_us / 1e3, "ms a step")
        context.fact(f"profile of {what}", f"{batch} × {tokens} tokens: {context.label}-{name}.txt")


def _profile(context: Context, runner: Runner, shape: Shape, batch: int, tokens: int, name: str) -> tuple[float, float]:
    """Writes the table of the operations that take most. Returns the microseconds a step that the device waits, and
    those that it works."""
    sequences = Sequences(runner, batch, tokens, shape)
    sequences.decode(4)
    is_gpu = context.device.type == "cuda"
    # Without the host's activities, recording delays the host less, which would otherwise make the device wait.
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU]) as profiler:
        sequences.decode(_STEPS)
    sequences.release()
    key = "self_device_time_total" if is_gpu else "self_cpu_time_total"
    text = profiler.key_averages().table(sort_by=key, row_limit=_ROWS, max_name_column_width=80)
    (context.folder / f"{context.label}-{name}.txt").write_text(text)
    if is_gpu:
        trace: Path = context.folder / f"{context.label}-{name}.json.gz"
        profiler.export_chrome_trace(str(trace))
    spans = _spans(profiler) if is_gpu else []
    waits, works = waiting(spans)
    return waits / _STEPS, works / _STEPS


def _spans(profiler: Any) -> list[tuple[float, float]]:
    """Start and end of everything that ran on the device, in microseconds."""
    device = torch.autograd.DeviceType.CUDA
    return [
        (event.time_range.start, event.time_range.end) for event in profiler.events() if event.device_type == device
    ]


def waiting(spans: list[tuple[float, float]]) -> tuple[float, float]:
    """Microseconds in pauses of at least `_GAP_US`, and microseconds in which anything runs. spans: in any order."""
    waits = works = 0.0
    until: float | None = None
    for start, end in sorted(spans):
        if until is not None and start - until >= _GAP_US:
            waits += start - until
        begin = start if until is None else max(start, until)
        works += max(0.0, end - begin)
        until = end if until is None else max(until, end)
    return waits, works
