"""Part 8: decode and prefill of an 8B Llama as a share of the measured limits, time between steps, time to ready.

The order is that of importance: when time runs out, the rest is left out.
"""

import argparse
import gc
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from gridwork_server.step.runner import Runner
from support.models import tokenizer_file
from support.paths import GRIDWORK
from support.server import Server
from tools.gpu_roofline import (
    TINY,
    Measured,
    Shape,
    bandwidth_bytes_per_s,
    decode,
    matmul_flop_per_s,
    prefill,
    runner_for,
)

from gpu_check import results
from gpu_check.part import profile
from gpu_check.part.context import Context

_GRID = (
    *((1, 128), (64, 2048), (1, 2048), (8, 2048), (256, 128), (32, 2048), (16, 8192), (1, 32_768)),
    *((128, 2048), (256, 2048), (4, 32_768), (8, 16_384), (2, 2048), (4, 2048), (16, 2048)),
)
"""Sequences and context tokens of the measured decodes, the most important first."""
_TINY_GRID = ((1, 24), (4, 24))
_DECODE_TARGET = 0.8
"""Share of the memory bandwidth that a decode at batch 1 should reach."""
_PREFILL_TARGET = 0.6
"""Share of the matrix rate that a prefill should reach."""
_DECODE_S = 5.0
"""Time that a measurement takes beside the prefill of its context."""
_READY_TARGET_S = 10.0
_READY_DISK_BYTES = 24 << 30
"""Free space that the files of the 8B model need, with room."""
_READY_S = 90.0


@dataclass(frozen=True)
class Limits:
    """Measured limits of the device."""

    bytes_per_s: float
    flop_per_s: float


def run(context: Context) -> None:
    """Measures decodes and prefills with one runner, then the server's time to ready."""
    shape = _shape(context)
    limits = _limits(context, shape)
    args = argparse.Namespace(attention="auto", block_size=16, cuda_graphs=None)
    runner, size = runner_for(shape, context.device, args)
    capacity = size.num_blocks * runner.config.block_size
    context.fact("attention", runner.path.attention_name)
    context.fact("decode steps as graphs", getattr(runner.path, "decode_sizes", []) or "none")
    context.fact("tokens in the cache", capacity)
    context.fact("parameters", f"{runner.loaded.num_parameters / 1e9:.2f} billion")
    slowest = _decodes(context, runner, shape, limits, capacity)
    if slowest is not None and context.has_time("host time between steps", 20):
        profile.steps(context, runner, shape, slowest)
    if not context.tiny and context.has_time("time to ready with 8B", _READY_S):
        _ready(context, runner, shape)


def _shape(context: Context) -> Shape:
    if context.tiny:
        return TINY
    grid_tokens = max(tokens for _, tokens in _GRID)
    return replace(Shape(), batch=max(batch for batch, _ in _GRID), context_tokens=grid_tokens)


def _limits(context: Context, shape: Shape) -> Limits:
    """The limits that part 1 measured, or the same measurement where part 1 did not run."""
    first = results.read(results.path_of(context.folder, "1-machine"))
    found = {figure.unit: figure.value for figure in first.figures} if first is not None else {}
    bandwidth = found.get("TB/s") or bandwidth_bytes_per_s(context.device, shape) / 1e12
    flop = found.get("TFLOP/s") or matmul_flop_per_s(context.device, shape) / 1e12
    return Limits(bandwidth * 1e12, flop * 1e12)


def _decodes(context: Context, runner: Runner, shape: Shape, limits: Limits, capacity: int) -> tuple[int, int] | None:
    """Measures a prefill after the first decodes, and all decodes that a cache of `capacity` tokens holds. Returns the
    sequences and the context of the decode with the smallest share of the bandwidth."""
    slowest: tuple[float, int, int] | None = None
    s_per_token = 0.0
    for index, (batch, tokens) in enumerate(_TINY_GRID if context.tiny else _GRID):
        if index == 1:
            s_per_token = _prefill(context, runner, shape, limits)
        what = f"decode, {batch} × {tokens} tokens"
        needed = batch * (tokens + 2 * shape.steps + 2 + runner.config.block_size)
        if needed > capacity:
            context.leave_out(f"{what}: the cache holds {capacity} tokens")
            continue
        if not context.has_time(what, _DECODE_S + 1.5 * s_per_token * batch * tokens):
            continue
        row = decode(runner, shape, batch, tokens, limits.bytes_per_s)
        _report(context, row, _DECODE_TARGET if batch == 1 else None)
        slowest = min(slowest or (row.share, batch, tokens), (row.share, batch, tokens))
    return slowest[1:] if slowest else None


def _prefill(context: Context, runner: Runner, shape: Shape, limits: Limits) -> float:
    """Measures a prefill. Returns its seconds a token; 0 when there is no time."""
    if not context.has_time("prefill", _DECODE_S):
        return 0.0
    row = prefill(runner, shape, limits.flop_per_s)
    _report(context, row, _PREFILL_TARGET)
    return row.ms / 1e3 / shape.prefill_tokens


def _report(context: Context, row: Measured, target: float | None) -> None:
    wanted = ("", None) if target is None else (f"at least {target:.0%}", row.share >= target)
    context.figure(
        f"{row.what}: share of the limit", row.share, f"({row.ms:.2f} ms, {row.reached:.2f} {row.unit})", *wanted
    )


def _ready(context: Context, runner: Runner, shape: Shape) -> None:
    """Saves the model, starts the real server with it, and compares its time to ready with that of reading the
    weights."""
    if not GRIDWORK.exists():
        context.leave_out(f"time to ready with 8B: there is no launcher at {GRIDWORK}")
        return
    if shutil.disk_usage(tempfile.gettempdir()).free < _READY_DISK_BYTES:
        context.leave_out(f"time to ready with 8B: less than {_READY_DISK_BYTES >> 30} GiB are free in TMPDIR")
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "llama-8b"
        model = runner.loaded.model
        model.save_pretrained(folder, max_shard_size="4GB")
        tokenizer_file(folder)
        _free(runner)
        read_s = _read_seconds(folder)
        flags = ("--model-id", folder, "--device", context.device.type, "--dtype", "bfloat16")
        server = Server(*flags)
        try:
            server.start()
            server.wait_ready(max(1.0, context.left_s))
            ready_s = server.ready_after_s
            server.client.generate("The boats are past", max_new_tokens=4)
        finally:
            (context.folder / f"{context.label}-server.log").write_text(server.log())
            server.kill()
    context.figure("reading the weights of 8B", read_s, "s")
    target = f"at most {_READY_TARGET_S:.0f} s beside reading the weights"
    context.figure("ready with 8B after", ready_s, "s", target, ready_s - read_s <= _READY_TARGET_S)


def _free(runner: Runner) -> None:
    """Gives the memory of the cache and of the graphs back: the server needs it."""
    runner.path.reset()
    runner._free_cache()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _read_seconds(folder: Path) -> float:
    """Seconds to read all weights from the files."""
    started = time.perf_counter()
    buffer = bytearray(64 << 20)
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    return time.perf_counter() - started
