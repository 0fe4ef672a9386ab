"""Tests that the first part of the KV cache is page-faulted in ahead of time."""

import ctypes
import mmap

import pytest
import torch

from gridwork_server.paths import prefault

SIZE = 16 << 20


def resident_bytes(tensor: torch.Tensor) -> int:
    """Size of a tensor's memory that the system has allocated."""
    begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    first = begin // mmap.PAGESIZE * mmap.PAGESIZE
    pages = (ctypes.c_ubyte * (-(-(end - first) // mmap.PAGESIZE)))()
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(first), ctypes.c_size_t(end - first), pages) == 0
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


@pytest.fixture
def memory() -> torch.Tensor:
    """Fresh memory from the system."""
    return torch.frombuffer(mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8)


def test_pages_are_allocated_before_they_are_written(memory: torch.Tensor) -> None:
    assert resident_bytes(memory) == 0
    assert prefault.populate([memory[:1000], memory]) == SIZE, "two views of one memory"
    assert resident_bytes(memory) == SIZE


def test_each_tensor_gets_its_share_of_the_limit(memory: torch.Tensor) -> None:
    other = torch.empty(SIZE // 4, dtype=torch.uint8)
    given = prefault.populate([memory, other], most_bytes=SIZE // 2)
    assert SIZE // 2 - 8 * mmap.PAGESIZE <= given <= SIZE // 2
    share = SIZE // 2 / (SIZE + other.nbytes)
    assert abs(resident_bytes(memory) - SIZE * share) <= 2 << 20
    assert resident_bytes(other) >= other.nbytes * share - 2 * mmap.PAGESIZE


def test_populate_respects_the_time_limit_and_keeps_values(memory: torch.Tensor) -> None:
    assert prefault.populate([memory], most_seconds=-1) == 0
    assert prefault.populate([]) == 0
    assert prefault.populate([torch.empty(0), torch.empty(10, device="meta")]) == 0
    written = torch.arange(SIZE // 4)
    assert prefault.populate([written]) > 0
    assert torch.equal(written, torch.arange(SIZE // 4))
