"""Replays decode steps over buffers that never move: as CUDA graphs on a GPU.

A step that computes one token of each sequence is padded to the next of a few sizes, and its inputs are written where
the step of that size reads them. Padding reads and writes a block of its own, and its logits are dropped. Nothing here
needs a GPU: a `Recorder` turns a step into a graph, or leaves it as it is.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from gridwork_kernels.device_copies import to_device
from gridwork_kernels.paged_attention import PagedLayout
from gridwork_server.paths.sequence_table import DeviceTokens

DEFAULT_SIZES = (1, 2, 4, *range(8, 65, 8), *range(80, 257, 16))
"""Numbers of sequences in a step. Up to 8, reading the weights takes all of the time; above, padding stays below a
quarter of the step."""


@dataclass(frozen=True)
class BlockSpace:
    """Blocks that keys and values may lie in."""

    block_size: int
    max_blocks: int
    """Maximum number of blocks of one sequence."""
    null_block: int
    """Block that stays zero. Padding writes to the block after it."""

    @property
    def scratch_block(self) -> int:
        """Block that padding writes to."""
        return self.null_block + 1


@dataclass(frozen=True)
class StepPlaces:
    """Places of a decode step's tokens in one space. n sequences."""

    tables: np.ndarray
    """int32 `[n, width]`"""
    slots: np.ndarray
    """int64 `[n]`"""


@dataclass(frozen=True)
class DecodeInputs:
    """Inputs of a step of one size. Tensors stay in place, except for those derived from others on the device."""

    input_ids: torch.Tensor
    """int64 `[1, size]`"""
    position_ids: torch.Tensor
    """int64 `[1, size]`"""
    kept: torch.Tensor
    """int64 `[size]`: tokens whose logits are wanted, which is all of them."""
    layout: PagedLayout
    window_layout: PagedLayout | None


RunStep = Callable[[DecodeInputs], torch.Tensor]
"""Computes a step. Returns logits `[size, vocab_size]`."""

Replay = Callable[[], torch.Tensor]


class Recorder(Protocol):
    """Makes a step repeatable."""

    def record(self, step: Replay) -> Replay:
        """Returns a function that runs the step again. Raises any error of a step that cannot be recorded."""


class EagerRecorder:
    """Runs the step's code each time."""

    def record(self, step: Replay) -> Replay:
        """See Recorder."""
        return step


class CudaGraphRecorder:
    """Records a CUDA graph. All graphs share memory, since no two run at once and each result is read before the next
    graph runs."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, step: Replay) -> Replay:
        """See Recorder."""
        # Compilers, libraries and caches set themselves up at first use, which cannot be recorded.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
            # A step that waits for the GPU cannot be recorded: find out before a recording has begun.
            with _waiting_is_an_error():
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile, as the NCCL watchdog does, without ending the recording.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = step()

        def replay() -> torch.Tensor:
            graph.replay()
            return logits

        return replay


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    """Within the context, an operation that makes the host wait for the GPU raises RuntimeError."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def recorder_for(device: torch.device) -> Recorder:
    """Recorder for a device: CUDA graphs on GPUs."""
    return CudaGraphRecorder() if device.type == "cuda" else EagerRecorder()


@dataclass
class _Step:
    """Buffers and recording of one size."""

    numbers: torch.Tensor
    """int64 `[4 or 5, size]`: token ids, positions, slots, lengths, slots in windows."""
    sequence: torch.Tensor
    """int32 `[size]`"""
    kept: torch.Tensor
    tiles: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """See PagedLayout. Tiles depend on the size alone."""
    replay: Replay | None = None


class DecodeGraphs:
    """Decode steps of a few sizes."""

    def __init__(self, sizes: Sequence[int], run: RunStep, device: torch.device) -> None:
        """sizes: numbers of sequences in a step; run: computes a step."""
        self._all_sizes = sorted(set(sizes))
        self._run, self._device = run, device
        self._spaces: list[BlockSpace] = []
        self._tables: list[torch.Tensor] = []
        self._steps: dict[int, _Step] = {}
        self.sizes: list[int] = []
        """Sizes that are ready, ascending."""

    def clear(self) -> None:
        """Drops all buffers and recordings."""
        self._spaces, self._tables, self._steps, self.sizes = [], [], {}, []

    @torch.inference_mode()
    def prepare(self, max_sequences: int, space: BlockSpace, window_space: BlockSpace | None) -> None:
        """Makes the buffers, and records every size up to the one that holds `max_sequences`. The cache must have been
        allocated. Raises any error of a step that cannot be recorded."""
        self.clear()
        self._spaces = [space] if window_space is None else [space, window_space]
        sizes = sizes_for(self._all_sizes, max_sequences)
        if not sizes:
            return
        self._tables = [
            torch.full((sizes[-1], each.max_blocks), each.scratch_block, dtype=torch.int32, device=self._device)
            for each in self._spaces
        ]
        recorder = recorder_for(self._device)
        # The largest size first: the memory of its graph is enough for the others.
        for size in reversed(sizes):
            step = _Step(
                numbers=torch.zeros(3 + len(self._spaces), size, dtype=torch.int64, device=self._device),
                sequence=torch.arange(size, dtype=torch.int32, device=self._device),
                kept=torch.arange(size, device=self._device),
            )
            self._steps[size] = step
            self._fill(step, np.zeros(0, np.int64), np.zeros(0, np.int64), self._nowhere())
            step.replay = recorder.record(lambda step=step: self._run(self._inputs(step)))  # type: ignore[misc]
        self.sizes = sizes

    def takes(self, num_sequences: int, num_tokens: int) -> bool:
        """Returns whether a step is replayed: it has one token of each sequence, and a size that holds it is ready."""
        return num_sequences == num_tokens and bool(self.sizes) and num_sequences <= self.sizes[-1]

    def run(
        self,
        input_ids: np.ndarray,
        positions: np.ndarray,
        places: Sequence[StepPlaces],
        device_tokens: DeviceTokens | None = None,
    ) -> torch.Tensor:
        """Runs a step. input_ids, positions: int64 `[n]`; places: where its tokens lie in each space; device_tokens:
        input tokens that are on the device alone. Returns logits `[n, vocab_size]`, which the next step overwrites."""
        step = self._steps[self.sizes[bisect_left(self.sizes, len(input_ids))]]
        self._fill(step, input_ids, positions, places)
        if device_tokens is not None:
            device_tokens.put_into(step.numbers[0])
        assert step.replay is not None
        return step.replay()[: len(input_ids)]

    def _nowhere(self) -> list[StepPlaces]:
        return [StepPlaces(np.zeros((0, 1), np.int32), np.zeros(0, np.int64)) for _ in self._spaces]

    def _fill(self, step: _Step, input_ids: np.ndarray, positions: np.ndarray, places: Sequence[StepPlaces]) -> None:
        """Writes a step's inputs. Padding is the first token of a sequence of its own, in the scratch block."""
        n, size = len(input_ids), step.numbers.shape[1]
        numbers = np.zeros((len(step.numbers), size), dtype=np.int64)
        numbers[0, :n] = input_ids
        numbers[1, :n] = positions
        numbers[3, :] = 1
        numbers[3, :n] = positions + 1
        for row, space, place, buffer in zip((2, 4), self._spaces, places, self._tables, strict=False):
            numbers[row, :] = space.scratch_block * space.block_size
            numbers[row, :n] = place.slots
            width = place.tables.shape[1]
            tables = np.full((size, width), space.scratch_block, dtype=np.int32)
            tables[:n] = place.tables
            buffer[:size, :width].copy_(to_device(tables, self._device), non_blocking=True)
        step.numbers.copy_(to_device(numbers, self._device), non_blocking=True)

    def _inputs(self, step: _Step) -> DecodeInputs:
        """Inputs of a recording. Values derived from lengths and tables are computed within it: otherwise each replay
        would have those of the recording."""
        numbers, size = step.numbers, step.numbers.shape[1]
        length = numbers[3].to(torch.int32)
        layouts = [
            PagedLayout(
                block_tables=tables[:size],
                sequence=step.sequence,
                length=length,
                slots=numbers[row],
                block_size=space.block_size,
                num_tokens=[1] * size,
                end=[],
                null_slot=space.null_block * space.block_size,
                is_fixed=True,
                tiles=step.tiles,
            )
            for row, space, tables in zip((2, 4), self._spaces, self._tables, strict=False)
        ]
        near, far = layouts[0], layouts[1] if len(layouts) > 1 else None
        return DecodeInputs(numbers[0:1], numbers[1:2], step.kept, near, far)


def sizes_for(sizes: Sequence[int], max_sequences: int) -> list[int]:
    """Ascending sizes up to the first that holds all sequences."""
    return list(sizes[: bisect_left(sizes, max_sequences) + 1])
