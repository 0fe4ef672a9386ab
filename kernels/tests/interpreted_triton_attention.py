"""The Triton kernel against the reference, in Triton's interpreter where there is no GPU."""

import os
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernel is defined

from attention_problems import DECODES, MIXED, OPTIONS, on_device, options_on, problem

from gridwork_kernels import triton_attention
from gridwork_kernels.paged_attention import AttentionOptions
from gridwork_kernels.slot_attention import reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compare(chunks: Any, kv_heads: int, sizes: tuple[int, int], dtype: torch.dtype, options: AttentionOptions) -> None:
    query, keys, values, layout = on_device(problem(chunks, kv_heads, sizes, dtype), DEVICE)
    out = triton_attention.attend(query, keys, values, layout, options)
    assert out.dtype == dtype
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2**-6, "atol": 2**-5}
    torch.testing.assert_close(out, reference(query, keys, values, layout, options), **tolerance)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("chunks", [MIXED, DECODES], ids=["mixed", "decodes"])
def test_equals_the_reference(options: AttentionOptions, chunks: list[tuple[int, int]]) -> None:
    compare(chunks, 2, (16, 32), torch.float32, options_on(options, DEVICE))


@pytest.mark.parametrize("kv_heads", [1, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", [(16, 16), (20, 28), (64, 64)], ids=str)
def test_heads_and_sizes(kv_heads: int, dtype: torch.dtype, sizes: tuple[int, int]) -> None:
    compare(MIXED, kv_heads, sizes, dtype, AttentionOptions(scale=0.1))


def test_tiles_are_computed_once_a_step() -> None:
    *_, layout = problem([(5, 5), (1, 9), (20, 20)], 2)
    first = triton_attention._tiles(layout, 8)
    assert [column.tolist() for column in first] == [[0, 5, 6, 14, 22], [5, 1, 8, 8, 4], [0, 1, 2, 2, 2]]
    assert triton_attention._tiles(layout, 8)[0] is first[0]


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends to have a GPU that the few tiles of a small problem do not fill."""
    monkeypatch.setattr(triton_attention, "_processors", lambda device: 1000)
    monkeypatch.setattr(triton_attention, "_KEYS_OF_A_SPLIT", 4)


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_shared_context_gives_the_same_result(options: AttentionOptions) -> None:
    # Longer than a piece, so that no share is empty.
    compare([(1, 110), (3, 40), (1, 2)], 2, (16, 20), torch.float32, options_on(options, DEVICE))


@pytest.mark.usefixtures("split")
def test_number_of_splits_depends_on_the_longest_context() -> None:
    *_, layout = problem(DECODES, 2)
    device, plain = layout.slots.device, AttentionOptions(scale=1)
    assert triton_attention._splits(layout, 6, plain, device) == 4
    assert triton_attention._splits(layout, 6, AttentionOptions(scale=1, window=4), device) == 1
    layout.is_fixed, layout.end = True, []
    assert triton_attention._splits(layout, 6, plain, device) == 8, "by the capacity of a block table"
    assert triton_attention._splits(layout, 2000, plain, device) == 1, "there are enough tiles"


@pytest.mark.usefixtures("split")
def test_a_fixed_step_reads_lengths_only_from_tensors() -> None:
    options = AttentionOptions(scale=0.25)
    query, keys, values, layout = on_device(problem([(1, 1), (1, 110), (1, 30)], 2), DEVICE)
    expected = reference(query, keys, values, layout, options)
    layout.is_fixed, layout.end = True, []
    out = triton_attention.attend(query, keys, values, layout, options)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
