"""The table of recorded programs, the writer, and the checks of the compiled library."""

from typing import Any

import pytest
import torch

from gridwork_kernels import cpu_library, program_table
from gridwork_kernels.paged_attention import PagedLayout
from gridwork_kernels.program import OPERATIONS, Call, CompiledProgram, Measurement, ProgramWriter

needs_library = pytest.mark.skipif(cpu_library.load() is None, reason="no compiled kernels for this CPU")


def sum_program(width: int = 5) -> list[int]:
    """The third external tensor becomes the sum of the first two."""
    writer = ProgramWriter()
    writer.begin_section()
    operands: dict[str, Any] = {"a": (0, 0, width), "b": (1, 0, width), "out": 2, "width": width}
    writer.operation("add", torch.float32, **operands)
    writer.end_section(independent_tokens=True)
    return writer.code


def layout() -> PagedLayout:
    tables = torch.zeros(1, 1, dtype=torch.int32)
    return PagedLayout(tables, tables[0], tables[0], torch.zeros(1, dtype=torch.int64), 16, [1], [1], 0)


@needs_library
@pytest.mark.parametrize("num_tokens", [1, 7, 500])
def test_a_program_computes_its_operations(num_tokens: int) -> None:
    a, b, out = torch.randn(num_tokens, 5), torch.randn(num_tokens, 5), torch.empty(num_tokens, 5)
    program, call = CompiledProgram(sum_program(), 3, [], 0, 0), Call(3)
    call.set(num_tokens, layout(), layout(), None, [a, b, out])
    with Measurement() as measured:
        program.run(call)
    assert torch.equal(out, a + b)
    assert {name for name, calls in zip(OPERATIONS, measured.calls, strict=True) if calls} == {"add"}


@needs_library
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda code: [*code[:1], 99, *code[2:]], 1),  # an unknown operation
        (lambda code: [*code[:1], -1, *code[2:]], 1),
        (lambda code: [*code[:2], 3, *code[3:]], 1),  # an unknown type
        (lambda code: [*code[:3], 3, *code[4:]], 3),  # a slot that does not exist
        (lambda code: [*code[:3], -1, *code[4:]], 3),
        (lambda code: code[:-1], 0),  # a section longer than the program
        (lambda code: [len(code) - 2, *code[1:-1]], 10),  # a missing operand
        (lambda code: [len(code), *code[1:], 4], 11),  # a number after the last operand
        (lambda code: [-(2**63), *code[1:]], 0),
    ],
)
def test_a_program_that_is_not_valid_is_refused(change: Any, error: int) -> None:
    code = change(sum_program())
    with pytest.raises(ValueError, match=f"not valid at number {error} of {len(code)}"):
        CompiledProgram(code, 3, [], 0, 0)


def test_the_writer_takes_exactly_the_operands_of_the_table() -> None:
    writer = ProgramWriter()
    with pytest.raises(TypeError, match="operation `add` has no value for operand `out`"):
        writer.operation("add", torch.float32, a=(0, 0, 5), b=(1, 0, 5), width=5)
    with pytest.raises(TypeError, match="operation `add` has no operand `factor`"):
        writer.operation("add", torch.float32, a=(0, 0, 5), b=(1, 0, 5), out=2, width=5, factor=1.0)


def test_names_in_the_table_are_unique() -> None:
    for name, operands in program_table.OPERATIONS.items():
        assert len({operand for _, operand in operands}) == len(operands) > 0, name
    kinds = {kind for operands in program_table.OPERATIONS.values() for kind, _ in operands}
    assert kinds == {"rows", "slot", "number", "flag", "real", "address"}
    assert list(program_table.TYPES) == ["float32", "bfloat16", "float16"]


@needs_library
def test_a_library_built_from_another_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    path = cpu_library._path()
    assert path is not None
    cpu_library._check_table(path)
    monkeypatch.setattr(program_table, "HASH", program_table.HASH + 1)
    with pytest.raises(RuntimeError, match=rf"{path.name} was built from another version .*; rebuild .* `make build`"):
        cpu_library._check_table(path)


def test_a_library_without_a_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    path = cpu_library.Path("_cpu_old.so")
    monkeypatch.setattr(cpu_library, "library", lambda: object())
    with pytest.raises(RuntimeError, match=r"_cpu_old\.so was built from another version"):
        cpu_library._check_table(path)
