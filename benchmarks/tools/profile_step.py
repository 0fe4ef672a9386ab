"""Profiles steps of the shard's runner, without a server, with PyTorch's profiler.

    .venv/bin/python benchmarks/tools/profile_step.py --model-id FOLDER --batch 8 --context 512
    .venv/bin/python benchmarks/tools/profile_step.py --model-id FOLDER --batch 4 --prefill 128

Runs the steps without the profiler first, for their real time, then again with it. Prints a Markdown table of
operations by their own time, and the time between operations (Python above all). Native programs count their operations
themselves.
"""

import argparse
import logging
import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from gridwork_kernels import cpu_library, program
from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.config import ShardConfig
from gridwork_server.model.loading import load
from gridwork_server.parallel.group import RankGroup
from gridwork_server.step.runner import Runner
from loguru import logger

BLOCK = 16
PREFILL_CHUNK = 512
GREEDY = pb.SamplingParameters(greedy=True, temperature=1, top_p=1, typical_p=1, repetition_penalty=1)


@dataclass(frozen=True)
class Operation:
    name: str
    calls: float  # in a step
    own_ms: float  # in a step, without the operations that it calls


def runner_for(config: ShardConfig, batch: int, total_tokens: int) -> Runner:
    """A runner with a cache for `batch` sequences of `total_tokens`."""
    group = RankGroup()
    runner = Runner(load(config, group), config, group)
    limits = pb.WarmupRequest(
        block_size_tokens=BLOCK,
        max_batch_tokens=max(PREFILL_CHUNK, batch * total_tokens),
        max_sequences=batch,
        max_total_tokens=total_tokens,
    )
    runner.warm_up(limits)
    return runner


class Prefills:
    """Steps that prefill `batch` prompts of `length` tokens, with new prompts in each step."""

    def __init__(self, runner: Runner, batch: int, length: int) -> None:
        self._runner = runner
        self._ids = range(batch)
        self._length = length
        self._count = 0

    def step(self) -> float:
        """Runs one step; returns its milliseconds."""
        blocks = -(-(self._length + 1) // BLOCK)
        self._count += 1
        step = pb.Step(
            sequence_ids=self._ids,
            num_tokens=[self._length] * len(self._ids),
            num_new_blocks=[blocks] * len(self._ids),
            new_blocks=range(blocks * len(self._ids)),
        )
        for sequence in self._ids:
            seed = 13 * sequence + 29 * self._count
            tokens = [(7 * position + seed) % self._runner.loaded.vocab_size for position in range(self._length)]
            step.admitted.add(id=sequence, token_ids=tokens, num_prompt_tokens=self._length, sampling=GREEDY)
        started = time.perf_counter()
        _run(self._runner, step)
        spent_ms = 1e3 * (time.perf_counter() - started)
        _run(self._runner, pb.Step(released=self._ids))
        return spent_ms


class Decodes:
    """Decode steps of `batch` sequences with `context` tokens at the beginning."""

    def __init__(self, runner: Runner, batch: int, context: int, total_tokens: int) -> None:
        self._runner = runner
        self._ids = range(batch)
        # Each sequence gets all of its blocks at once; allocation is the router's work.
        blocks = -(-(total_tokens + 1) // BLOCK)
        for sequence in self._ids:
            tokens = [(7 * position + 13 * sequence) % runner.loaded.vocab_size for position in range(context)]
            done = 0
            while done < context:
                count = min(PREFILL_CHUNK, context - done)
                step = pb.Step(sequence_ids=[sequence], num_tokens=[count], num_new_blocks=[0 if done else blocks])
                if not done:
                    step.new_blocks.extend(range(sequence * blocks, (sequence + 1) * blocks))
                    step.admitted.add(id=sequence, token_ids=tokens, num_prompt_tokens=context, sampling=GREEDY)
                _run(runner, step)
                done += count

    def step(self) -> float:
        """Decodes one token of every sequence; returns the step's milliseconds."""
        ones = [1] * len(self._ids)
        started = time.perf_counter()
        _run(self._runner, pb.Step(sequence_ids=self._ids, num_tokens=ones, num_new_blocks=[0] * len(ones)))
        return 1e3 * (time.perf_counter() - started)


def _run(runner: Runner, step: "pb.Step") -> None:
    if failures := runner.run(step).failures:
        raise RuntimeError(failures[0].message)


def profile(steps: Prefills | Decodes, count: int) -> tuple[float, list[Operation]]:
    """Mean milliseconds of a step under the profiler, and its operations, slowest first."""
    measured = program.Measurement() if cpu_library.load() else None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        with measured or nullcontext():
            spent_ms = [steps.step() for _ in range(count)]
    operations = [
        Operation(event.key, event.count / count, event.self_cpu_time_total / 1e3 / count)
        for event in profiler.key_averages()
    ]
    if measured:
        operations += [
            Operation(f"{name}, in a program", calls / count, 1e3 * seconds / count)
            for name, calls, seconds in zip(program.OPERATIONS, measured.calls, measured.seconds, strict=True)
            if calls
        ]
    return statistics.mean(spent_ms), sorted(operations, key=lambda operation: -operation.own_ms)


def table(step_ms: float, profiled_ms: float, operations: Sequence[Operation], rows: int) -> list[str]:
    """A Markdown table. Shares are of the step under the profiler, which makes every call a little longer."""
    lines = [
        f"A step takes {step_ms:.2f} ms, and {profiled_ms:.2f} ms under the profiler.",
        "",
        "| operation | calls a step | ms a step | share |",
        "|---|---|---|---|",
    ]
    shown, rest = operations[:rows], operations[rows:]
    lines += [_row(operation.name, f"{operation.calls:.0f}", operation.own_ms, profiled_ms) for operation in shown]
    if rest:
        calls = sum(operation.calls for operation in rest)
        lines.append(
            _row(f"{len(rest)} others", f"{calls:.0f}", sum(operation.own_ms for operation in rest), profiled_ms)
        )
    between_ms = profiled_ms - sum(operation.own_ms for operation in operations)
    lines.append(_row("between operations", "", between_ms, profiled_ms))
    return lines


def _row(name: str, calls: str, spent_ms: float, whole_ms: float) -> str:
    return f"| {name} | {calls} | {spent_ms:.3f} | {100 * spent_ms / whole_ms:.1f} % |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model-id", type=Path, required=True, help="a model's folder")
    parser.add_argument("--batch", type=int, default=1, help="sequences")
    parser.add_argument("--context", type=int, default=256, help="tokens that each has before, for decode steps")
    parser.add_argument("--prefill", type=int, metavar="TOKENS", help="profile prefills of prompts of that many tokens")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=20, help="operations in the table")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--disable-fusion", action="store_true")
    parser.add_argument("--cpu-threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    if min(args.batch, args.context, args.steps, args.rows, args.cpu_threads, args.prefill or 1) < 1:
        sys.exit("--batch, --context, --prefill, --steps, --rows and --cpu-threads must be at least 1")

    logger.remove()
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.cpu_threads)
    cpu_library.set_num_threads(args.cpu_threads)
    config = ShardConfig(
        model_path=args.model_id.resolve(),
        socket="",
        dtype=args.dtype,
        attention=args.attention,
        fuse=not args.disable_fusion,
    )
    # One warm-up step, then each step twice, without and with the profiler.
    total_tokens = (args.prefill or args.context + 2 * args.steps) + 2
    runner = runner_for(config, args.batch, total_tokens)
    steps: Prefills | Decodes
    if args.prefill:
        steps, what = Prefills(runner, args.batch, args.prefill), f"prefill of {args.prefill} tokens each"
    else:
        steps = Decodes(runner, args.batch, args.context, total_tokens)
        what = f"decode after {args.context} tokens"
    steps.step()
    step_ms = statistics.median(steps.step() for _ in range(args.steps))
    profiled_ms, operations = profile(steps, args.steps)
    print(f"{args.model_id.name}, {args.dtype}, {args.cpu_threads} threads, batch {args.batch}, ", end="")
    print(f"{what}, path {runner.path.name}.\n")
    print("\n".join(table(step_ms, profiled_ms, operations, args.rows)))


if __name__ == "__main__":
    main()
