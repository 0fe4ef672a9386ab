"""Recorded programs: consecutive operations that the compiled library runs in one call.

`ProgramWriter` writes the numbers that `cpu/program/program.cpp` reads. Both follow `program_table.def`.
"""

import ctypes
import struct
from typing import Any

import numpy as np
import torch

from gridwork_kernels import cpu_library, program_table
from gridwork_kernels.paged_attention import PagedLayout
from gridwork_kernels.states import StateLayout

TYPES = {getattr(torch, name): number for name, number in program_table.TYPES.items()}
"""Data types of values, with their numbers."""

OPERATIONS = tuple(program_table.OPERATIONS)
"""Names of operations, in the order of their numbers."""

Rows = tuple[int, int, int]
"""A `rows` operand: slot, offset and stride."""


class ProgramWriter:
    """Writes the numbers of one program, section by section."""

    def __init__(self) -> None:
        self.code: list[int] = []
        self._section = 0

    def begin_section(self) -> None:
        """Begins the next section; its length is filled in by `end_section`."""
        self._section = len(self.code)
        self.code.append(0)

    def end_section(self, independent_tokens: bool) -> None:
        """independent_tokens: whether every operation of the section computes each token independently."""
        length = len(self.code) - self._section - 1
        self.code[self._section] = length if independent_tokens else -length

    def operation(self, name: str, dtype: torch.dtype, **operands: Any) -> None:
        """Adds an operation. operands: a value for each name in the table: `Rows` for rows, a tensor or None for an
        address, else a number. Raises TypeError for a missing operand and for an unknown one."""
        self.code += (OPERATIONS.index(name), TYPES[dtype])
        for kind, operand in program_table.OPERATIONS[name]:
            if operand not in operands:
                raise TypeError(f"operation `{name}` has no value for operand `{operand}`")
            value = operands.pop(operand)
            match kind:
                case "rows":
                    self.code += value
                case "real":
                    self.code.append(_bits(value))
                case "address":
                    self.code.append(0 if value is None else value.data_ptr())
                case _:
                    self.code.append(int(value))
        if operands:
            raise TypeError(f"operation `{name}` has no operand `{next(iter(operands))}`")


class CompiledProgram:
    """A program in the compiled library's memory."""

    def __init__(
        self, code: list[int], num_external: int, places: list[int], persistent_bytes: int, temporary_bytes: int
    ) -> None:
        """code: as `ProgramWriter` writes it; num_external: slots that each call gives; places: where the other slots
        lie, in bytes for each token: an offset in persistent memory, which sections share, or `~offset` in temporary
        memory, which one section uses; persistent_bytes, temporary_bytes: of all of them, for each token. Raises
        ValueError when the library cannot read the code."""
        numbers, offsets = np.array(code, dtype=np.int64), np.array(places, dtype=np.int64)
        error = ctypes.c_int64()
        self._run = _library().gridwork_program_run
        self._program: int | None = _library().gridwork_program_new(
            numbers.ctypes.data,
            len(numbers),
            num_external,
            offsets.ctypes.data,
            len(offsets),
            persistent_bytes,
            temporary_bytes,
            ctypes.byref(error),
        )
        if self._program is None:
            raise ValueError(f"the recorded program is not valid at number {error.value} of {len(numbers)}")

    def run(self, call: "Call") -> None:
        """Runs all operations. At most one call may run at a time."""
        self._run(self._program, call.address)

    def __del__(self) -> None:
        if getattr(self, "_program", None) is not None:
            _library().gridwork_program_delete(self._program)
            self._program = None


class Call:
    """The arguments of a call: the number of tokens, two layouts of the cache, the places of states, and the external
    slots' addresses."""

    def __init__(self, num_external: int) -> None:
        self._numbers = np.zeros(_EXTERNAL + num_external, dtype=np.int64)
        self.address = self._numbers.ctypes.data

    def set(
        self,
        num_tokens: int,
        near: PagedLayout,
        far: PagedLayout,
        states: StateLayout | None,
        external: list[torch.Tensor],
    ) -> None:
        """near, far: the layouts of layers without and with a window, which may be the same; states: None for models
        without recurrent states."""
        numbers = _layout_numbers(near)
        self._numbers[:] = (
            num_tokens,
            *numbers,
            *(numbers if far is near else _layout_numbers(far)),
            *(_NO_STATES if states is None else _state_numbers(states)),
            *(tensor.data_ptr() for tensor in external),
        )


_EXTERNAL = 1 + program_table.NUM_LAYOUTS * len(program_table.LAYOUT) + len(program_table.STATES)
"""Numbers of a call before its external slots."""


def _layout_numbers(layout: PagedLayout) -> tuple[int, ...]:
    """The fields of a layout, in the order of the table."""
    tables = layout.block_tables
    return (
        tables.data_ptr(),
        tables.stride(0),
        layout.sequence.data_ptr(),
        layout.length.data_ptr(),
        layout.slots.data_ptr(),
    )


_NO_STATES = (0,) * len(program_table.STATES)


def _state_numbers(states: StateLayout) -> tuple[int, ...]:
    """The fields of the places of states, in the order of the table."""
    return len(states.slots), states.starts.data_ptr(), states.slots.data_ptr(), states.fresh.data_ptr()


def _bits(value: float) -> int:
    number: int = struct.unpack("q", struct.pack("d", value))[0]
    return number


def _library() -> Any:
    library = cpu_library.library()
    if library.gridwork_program_new.restype is not ctypes.c_void_p:
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        library.gridwork_program_new.restype = pointer
        library.gridwork_program_new.argtypes = [pointer, number, number, pointer, *[number] * 3, pointer]
        library.gridwork_program_delete.argtypes = [pointer]
        library.gridwork_program_run.argtypes = [pointer, pointer]
        library.gridwork_program_measured.argtypes = [pointer, pointer]
    return library


class Measurement:
    """Seconds and calls of each operation of all programs while it is open."""

    def __enter__(self) -> "Measurement":
        self.seconds = np.zeros(len(OPERATIONS))
        self.calls = np.zeros(len(OPERATIONS), dtype=np.int64)
        _library().gridwork_program_measure()
        return self

    def __exit__(self, *_: object) -> None:
        _library().gridwork_program_measured(self.seconds.ctypes.data, self.calls.ctypes.data)
